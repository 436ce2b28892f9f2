"""QM9 as published: one xyz file per molecule (dsgdb9nsd_*.xyz), in a folder, a tar or a zip; 15 properties in line 2.

Also the 15 properties as keys of extended xyz (A B C mu alpha epsHOMO ...). Original units: GHz, Debye, a0^3, Hartree,
a0^2, cal/(mol K); the energies among them become eV.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.io.extxyz import read_xyz

from jmp_ds.data.readers.archive import texts
from jmp_ds.data.readers.arrays import numbers_of
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.record import BadRecord
from jmp_ds.data.units import ENERGY

#: In the order of the published files: label -> (key in extended xyz, unit in the file, unit here, factor).
PROPERTIES = {
    "A": ("A", "GHz", "GHz", 1.0),
    "B": ("B", "GHz", "GHz", 1.0),
    "C": ("C", "GHz", "GHz", 1.0),
    "mu": ("mu", "D", "D", 1.0),
    "alpha": ("alpha", "a0^3", "a0^3", 1.0),
    "eps_HOMO": ("epsHOMO", "Ha", "eV", ENERGY["Ha"]),
    "eps_LUMO": ("epsLUMO", "Ha", "eV", ENERGY["Ha"]),
    "delta_eps": ("epsgap", "Ha", "eV", ENERGY["Ha"]),
    "R_2_Abs": ("<R2>", "a0^2", "a0^2", 1.0),
    "ZPVE": ("zpve", "Ha", "eV", ENERGY["Ha"]),
    "U_0": ("U0", "Ha", "eV", ENERGY["Ha"]),
    "U": ("U", "Ha", "eV", ENERGY["Ha"]),
    "H": ("H", "Ha", "eV", ENERGY["Ha"]),
    "G": ("G", "Ha", "eV", ENERGY["Ha"]),
    "c_v": ("Cv", "cal/(mol K)", "cal/(mol K)", 1.0),
}
_FACTORS = np.array([factor for *_, factor in PROPERTIES.values()])

ABOUT = About(
    title="QM9 as published (dsgdb9nsd_*.xyz in a folder, tar or zip), or as extended xyz with its 15 keys",
    units="Å; GHz, D, a0^3, Hartree, a0^2, cal/(mol K)",
    level_of_theory="B3LYP/6-31G(2df,p)",
    licence="CC0",
    citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014)",
    patterns=("*.xyz", "*.extxyz"),
    folder=True,
    labels={label: unit for label, (_, _, unit, _) in PROPERTIES.items()},
)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every molecule with 15 labels, named as in the specification, section 10.5; there is no label `energy`.

    Molecules the publishers list as uncharacterised are not left out: the files do not name them, a list beside them does.

    Raises:
        UserError: no such file, or nothing of that kind in it.
    """
    collector = Collector()
    for name, text in texts(path, (".xyz", ".extxyz")):
        if _is_published(text):
            try:
                collector.add(name, **published(text, Path(name).stem))
            except BadRecord as bad:
                collector.skip(bad, name)
        else:
            _extended(collector, name, text)
        if collector.full:
            yield collector.take()
    yield collector.take()


def published(text: str, name: str) -> dict[str, object]:
    """What `make_record` needs, of one file in the publishers' format.

    Raises:
        BadRecord: `unreadable`.
    """
    # Small numbers are written as 1.5*^-6 by the program that made the files.
    lines = text.replace("*^", "e").splitlines()
    try:
        n = int(lines[0])
        title = lines[1].split()
        index = int(title[1])
        values = np.array([float(x) for x in title[2:]])
        atoms = [line.split() for line in lines[2 : 2 + n]]
        pos = [[float(x) for x in atom[1:4]] for atom in atoms]
        numbers = numbers_of([atom[0] for atom in atoms])
    except (IndexError, ValueError, KeyError) as error:
        raise BadRecord("unreadable", f"not in the publishers' format: {error!r}") from error
    if len(atoms) != n or len(values) != len(PROPERTIES):
        raise BadRecord("unreadable", f"{len(values)} properties and {len(atoms)} atoms; expected 15 and {n}")
    labels = dict(zip(PROPERTIES, values * _FACTORS, strict=True))
    # The publishers number molecules from 1; archives need not have them in that order.
    info = {"index": index, "position": index - 1}
    return {"pos": pos, "atomic_numbers": numbers, "labels": labels, "id": name, "info": info}


def _is_published(text: str) -> bool:
    lines = text.split("\n", 2)
    return len(lines) > 1 and lines[1].startswith("gdb")


def _extended(collector: Collector, name: str, text: str) -> None:
    """All frames of one extended xyz text."""
    for i, atoms in enumerate(read_xyz(io.StringIO(text), index=slice(None))):
        where = f"{name}#{i}"
        absent = [key for key, *_ in PROPERTIES.values() if key not in atoms.info]
        if absent:
            collector.skip(BadRecord("missing_label", f"no {absent}; there are {sorted(atoms.info)}"), where)
            continue
        labels = {label: float(atoms.info[key]) * factor for label, (key, *_, factor) in PROPERTIES.items()}
        collector.add(where, pos=atoms.positions, atomic_numbers=atoms.numbers, labels=labels, id=where)
