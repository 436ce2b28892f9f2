"""ANI-1x release: HDF5, one group per formula with many conformers; Hartree and Å; NaN marks what was not computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jmp_ds.data.readers.arrays import hdf5_names, hdf5_units, open_hdf5
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions, chosen_units
from jmp_ds.data.record import BadRecord
from jmp_ds.data.units import ENERGY
from jmp_ds.errors import UserError

ABOUT = About(
    title="ANI-1x release, HDF5",
    units="Hartree, Å, Hartree/Å",
    energy="total electronic energy",
    level_of_theory="wB97X/6-31G(d) (the file's wb97x_dz)",
    licence="CC0",
    citation="Smith et al., Sci. Data 7, 134 (2020)",
    patterns=("*.h5", "*.hdf5"),
    labels={"energy": "eV", "forces": "eV/Å"},
)
LEVEL = "wb97x_dz"
_KEYS = ("atomic_numbers", "coordinates")


def units(path: Path, options: ReaderOptions) -> tuple[int, int]:
    """Groups (formulas) of the file.

    Raises:
        UserError: not such a file.
    """
    return hdf5_units(path, *_KEYS)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every conformer that has an energy or forces at the level (option level, default wb97x_dz).

    Where only one of the two is missing (NaN), the other is kept. The group is the formula.

    Raises:
        UserError: not such a file, or it has nothing at that level.
    """
    level = options.level or LEVEL
    facts = {"level_of_theory": ABOUT.level_of_theory if level == LEVEL else f"the file's {level}"}
    collector = Collector(facts)
    with open_hdf5(path) as file:
        found = False
        names = hdf5_names(file, *_KEYS)
        chosen = chosen_units(options, len(names))
        for at, name in zip(chosen, names[chosen.start : chosen.stop], strict=True):
            group = file[name]
            if f"{level}.energy" not in group:
                continue
            found = True
            numbers, pos = group["atomic_numbers"][()], group["coordinates"][()]
            energy = group[f"{level}.energy"][()] * ENERGY["Ha"]
            forces = (
                group[f"{level}.forces"][()].astype(np.float64) * ENERGY["Ha"] if f"{level}.forces" in group else None
            )
            for i in range(len(energy)):
                where = f"{name}#{i}"
                labels = {}
                if not np.isnan(energy[i]):
                    labels["energy"] = energy[i]
                if forces is not None and not np.isnan(forces[i]).any():
                    labels["forces"] = forces[i]
                if labels:
                    collector.add(where, pos=pos[i], atomic_numbers=numbers, id=where, group=name, labels=labels)
                else:
                    collector.skip(BadRecord("missing_label", f"neither energy nor forces at {level} (NaN)"), where)
                if collector.full:
                    yield collector.take((at - chosen.start + (i + 1) / len(energy)) / len(chosen))
        if not found and not any(f"{level}.energy" in file[name] for name in names):
            levels = sorted({key.split(".")[0] for key in file[names[0]] if key.endswith(".energy")})
            raise UserError(f"{path} has no energies at level {level!r}; there are {levels}")
    yield collector.take(1.0)
