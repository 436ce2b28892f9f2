"""Transition1x release: HDF5, split / formula / reaction, frames of nudged elastic bands; eV and Å (specification 10.4).

Each reaction also holds groups `reactant`, `product` and `transition_state`; their frames are among the reaction's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jmp_ds.data.readers.arrays import need, open_hdf5
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.errors import UserError

ABOUT = About(
    title="Transition1x release, HDF5",
    units="eV, Å, eV/Å",
    energy="total electronic energy",
    level_of_theory="wB97X/6-31G(d)",
    licence="CC BY 4.0",
    citation="Schreiner et al., Sci. Data 9, 779 (2022)",
    patterns=("*.h5", "*.hdf5"),
    labels={"energy": "eV", "forces": "eV/Å"},
)
_KEYS = {
    "z": "atomic_numbers",
    "pos": "positions",
    "energy": "wB97x_6-31G(d).energy",
    "forces": "wB97x_6-31G(d).forces",
}


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every frame of one split (option level: `train`, `val`, `test`, or `data` for all, the default).

    The group is formula and reaction: frames of one band are alike.

    Raises:
        UserError: not such a file, or no such split.
    """
    split = options.level or "data"
    collector = Collector({"split": split})
    with open_hdf5(path) as file:
        if split not in file:
            raise UserError(f"{path} has no split {split!r}; there are {sorted(file)}")
        formulas = list(file[split])
        for at, formula in enumerate(formulas):
            for reaction, group in file[split][formula].items():
                name = f"{formula}/{reaction}"
                arrays = need(group, _KEYS, path, name)
                for i, energy in enumerate(arrays["energy"].reshape(-1)):
                    where = f"{name}#{i}"
                    labels = {"energy": energy, "forces": arrays["forces"][i]}
                    numbers, pos = arrays["z"], arrays["pos"][i]
                    collector.add(where, pos=pos, atomic_numbers=numbers, id=where, group=name, labels=labels)
                    if collector.full:
                        yield collector.take((at + 0.5) / len(formulas))
    yield collector.take(1.0)
