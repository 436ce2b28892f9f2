"""Transition1x release: HDF5, split / formula / reaction, frames of nudged elastic bands; eV and Å (specification 10.4).

Each reaction also holds groups `reactant`, `product` and `transition_state`; their frames are among the reaction's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py

from jmp_ds.data.readers.arrays import GROUPS_PER_PORTION, need, open_hdf5
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions, chosen_units
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
        names = _reactions(path, file, split)
        chosen = chosen_units(options, len(names))
        for at, name in zip(chosen, names[chosen.start : chosen.stop], strict=True):
            arrays = need(file[split][name], _KEYS, path, name)
            for i, energy in enumerate(arrays["energy"].reshape(-1)):
                where = f"{name}#{i}"
                labels = {"energy": energy, "forces": arrays["forces"][i]}
                numbers, pos = arrays["z"], arrays["pos"][i]
                collector.add(where, pos=pos, atomic_numbers=numbers, id=where, group=name, labels=labels)
                if collector.full:
                    yield collector.take((at - chosen.start + 0.5) / len(chosen))
    yield collector.take(1.0)


def units(path: Path, options: ReaderOptions) -> tuple[int, int]:
    """Reactions of the split.

    Raises:
        UserError: not such a file, or no such split.
    """
    with open_hdf5(path) as file:
        return len(_reactions(path, file, options.level or "data")), GROUPS_PER_PORTION


def _reactions(path: Path, file: h5py.File, split: str) -> list[str]:
    """`formula/reaction` of all reactions of a split, in the file's order."""
    if split not in file:
        raise UserError(f"{path} has no split {split!r}; there are {sorted(file)}")
    return [f"{formula}/{reaction}" for formula, group in file[split].items() for reaction in group]
