"""MD22: one large molecule in an .npz with keys z, R, E, F; kcal/mol and Å."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jmp_ds.data.readers.base import About, Block, ReaderOptions
from jmp_ds.data.readers.md17 import frames_of, trajectory

ABOUT = About(
    title="MD22 .npz (z, R, E, F), one molecule",
    units="kcal/mol, Å, kcal/mol/Å",
    energy="total electronic energy",
    level_of_theory="PBE+MBD",
    licence="free with citation",
    citation="Chmiela et al., Sci. Adv. 9, eadf0873 (2023)",
    patterns=("*.npz",),
    labels={"energy": "eV", "forces": "eV/Å"},
)


KEYS = {"z": "z", "R": "R", "E": "E", "F": "F"}


def units(path: Path, options: ReaderOptions) -> tuple[int, int]:
    """Frames of the file.

    Raises:
        UserError: not such a file.
    """
    return frames_of(path, KEYS)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every frame; see `md17.blocks` on groups.

    Raises:
        UserError: keys are missing or shapes do not fit.
    """
    yield from trajectory(path, KEYS, options)
