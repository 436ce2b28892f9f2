"""QM9 as PyTorch Geometric distributes it (qm9_v3.pt): a list of dictionaries, 19 properties in `y`; eV and Å.

Its 130,831 molecules are those of the publishers without the 3,054 that they call uncharacterised.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.record import BadRecord
from jmp_ds.errors import UserError
from jmp_ds.legacy_pickle import read_torch_file

#: Label -> unit, in the order of `y`.
PROPERTIES = {
    "mu": "D",
    "alpha": "a0^3",
    "eps_HOMO": "eV",
    "eps_LUMO": "eV",
    "delta_eps": "eV",
    "R_2_Abs": "a0^2",
    "ZPVE": "eV",
    "U_0": "eV",
    "U": "eV",
    "H": "eV",
    "G": "eV",
    "c_v": "cal/(mol K)",
    "U_0_ATOM": "eV",
    "U_ATOM": "eV",
    "H_ATOM": "eV",
    "G_ATOM": "eV",
    "A": "GHz",
    "B": "GHz",
    "C": "GHz",
}

ABOUT = About(
    title="QM9 as PyTorch Geometric distributes it (qm9_v3.pt)",
    units="Å; eV, D, a0^3, a0^2, GHz, cal/(mol K)",
    level_of_theory="B3LYP/6-31G(2df,p)",
    licence="CC0",
    citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014)",
    patterns=("*.pt",),
    labels=PROPERTIES,
)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every molecule with 19 labels, named as in the specification, section 10.5; there is no label `energy`.

    Raises:
        UserError: not such a file.
    """
    molecules = read_torch_file(path)
    if not isinstance(molecules, list) or not all(isinstance(m, dict) for m in molecules[:10]):
        raise UserError(f"{path} holds no list of dictionaries; lists of records are format ocp")
    collector = Collector()
    for at, molecule in enumerate(molecules):
        where = f"{path.stem}#{at}"
        try:
            collector.add(where, id=where, **_fields(molecule))
        except BadRecord as bad:
            collector.skip(bad, where)
        if collector.full:
            yield collector.take((at + 1) / len(molecules))
    yield collector.take(1.0)


def _fields(molecule: dict[str, Any]) -> dict[str, Any]:
    """What `make_record` needs, of one entry."""
    missing = [key for key in ("z", "pos", "y") if key not in molecule]
    if missing:
        raise BadRecord("unreadable", f"no {missing}; there are {sorted(molecule)}")
    values = np.asarray(molecule["y"], dtype=np.float64).reshape(-1)
    if len(values) != len(PROPERTIES):
        raise BadRecord("shape", f"y has {len(values)} entries, expected {len(PROPERTIES)}")
    name = molecule.get("name")
    return {
        "pos": np.asarray(molecule["pos"], dtype=np.float64),
        "atomic_numbers": np.asarray(molecule["z"]),
        "labels": dict(zip(PROPERTIES, values, strict=True)),
        "info": {"name": name} if isinstance(name, str) else {},
    }
