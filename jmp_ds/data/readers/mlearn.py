"""The mlearn sets of elemental metals and semiconductors: JSON, a list of pymatgen structures with energy and forces.

`virial_stress` is left out. It is VASP's stress in kbar (minus ASE's sign, checked against energies of strained cells), but
the order of its shear components differs between the published files (xy, xz, yz for Mo; xy, yz, zx for Si) and no file
says which.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from jmp_ds.data.readers.archive import open_binary
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions, refuse_charged
from jmp_ds.data.readers.structures import structure_fields
from jmp_ds.data.record import BadRecord
from jmp_ds.errors import UserError

ABOUT = About(
    title="mlearn JSON (elemental metals and semiconductors)",
    units="eV, Å, eV/Å",
    energy="total energy",
    level_of_theory="PBE, VASP",
    licence="BSD-3-Clause",
    citation="Zuo et al., J. Phys. Chem. A 124, 731 (2020)",
    patterns=("*.json",),
    labels={"energy": "eV", "forces": "eV/Å"},
)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every structure; no groups (the descriptions name kinds of calculations, not single runs).

    Raises:
        UserError: not such a file.
    """
    with open_binary(path) as raw:
        try:
            entries = json.load(raw)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no JSON file: {error}") from error
    if not isinstance(entries, list) or not entries or not {"structure", "outputs"} <= set(entries[0]):
        raise UserError(f"{path}: expected a list of entries with `structure` and `outputs`")
    collector = Collector()
    for at, entry in enumerate(entries):
        where = f"{path.parent.name}/{path.name}#{at}"
        try:
            outputs = entry["outputs"]
            refuse_charged({"charge": entry["structure"].get("charge") or 0}, options)
            collector.add(
                where,
                **structure_fields(entry["structure"]),
                labels={"energy": outputs["energy"], "forces": outputs["forces"]},
                id=where,
                info={key: str(entry[key]) for key in ("group", "description", "tag") if key in entry},
            )
        except KeyError as error:
            collector.skip(BadRecord("missing_label", f"no key {error}"), where)
        except BadRecord as bad:
            collector.skip(bad, where)
        if collector.full:
            yield collector.take((at + 1) / len(entries))
    yield collector.take(1.0)
