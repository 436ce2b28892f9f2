"""Revised MD17: one molecule in an .npz with keys nuclear_charges, coords, energies, forces; kcal/mol and Å."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jmp_ds.data.readers.base import About, Block, ReaderOptions
from jmp_ds.data.readers.md17 import frames_of, trajectory

ABOUT = About(
    title="revised MD17 .npz (nuclear_charges, coords, energies, forces), one molecule",
    units="kcal/mol, Å, kcal/mol/Å",
    energy="as the file has it (formation or total energy, differing between releases)",
    level_of_theory="PBE/def2-SVP",
    licence="CC0",
    citation="Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020)",
    patterns=("*.npz",),
    labels={"energy": "eV", "forces": "eV/Å"},
)


KEYS = {"z": "nuclear_charges", "R": "coords", "E": "energies", "F": "forces"}


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
