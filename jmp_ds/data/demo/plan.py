"""Which demonstration sets there are: what each is for, how its structures are made, and how many there are by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase import Atoms

from jmp_ds.data.demo import organics, oxides, paths, slabs
from jmp_ds.data.demo.dynamics import trajectory
from jmp_ds.data.demo.labelling import MOLECULAR, PERIODIC, Level
from jmp_ds.data.demo.organics import Draft, molecule_info
from jmp_ds.data.demo.reference_molecules import dipeptide, malonaldehyde
from jmp_ds.errors import UserError

#: Dynamics sets: temperature (K), steps of 1 fs before the first frame and between frames, frames per trajectory.
TEMPERATURE, FIRST, EVERY, FRAMES = 500.0, 500, 50, 10


@dataclass(frozen=True)
class DemoSet:
    """One set.

    Attributes:
        name: also the name of its store's folder.
        use: whether it is one of the pre-training domains or a fine-tuning set.
        title: one line for people.
        level: level of theory of its labels.
        labels: labels that are kept.
        make: structures of one job from the job's own random numbers.
        size: structures by default.
        frames: structures that one job gives at most.
    """

    name: str
    use: Literal["pretrain", "finetune"]
    title: str
    level: Level
    labels: tuple[str, ...]
    make: Callable[[np.random.Generator], Iterator[Draft]]
    size: int
    frames: int


def _dynamics(atoms: Atoms, rng: np.random.Generator) -> Iterator[Draft]:
    """Frames of one trajectory of one molecule, 50 fs apart."""
    info = {**molecule_info(atoms), "temperature": TEMPERATURE}
    for pos in trajectory(atoms, MOLECULAR, rng, temperature=TEMPERATURE, first=FIRST, every=EVERY, frames=FRAMES):
        yield Draft(Atoms(atoms.numbers, pos), group="", info=info)


def _malonaldehyde(rng: np.random.Generator) -> Iterator[Draft]:
    return _dynamics(malonaldehyde(), rng)


def _dipeptide(rng: np.random.Generator) -> Iterator[Draft]:
    return _dynamics(dipeptide(), rng)


_FORCE_LABELS = ("energy", "forces")

SETS: Mapping[str, DemoSet] = {
    entry.name: entry
    for entry in (
        DemoSet(
            "slabs", "pretrain", "Slabs of seven metals with small adsorbates, distorted", PERIODIC, _FORCE_LABELS,
            slabs.adsorbate_on_slab, 200, slabs.FRAMES,
        ),
        DemoSet(
            "oxides", "pretrain", "Bulk oxides of nine structure types, strained and rattled", PERIODIC,
            (*_FORCE_LABELS, "stress"), oxides.distorted_oxide, 200, oxides.FRAMES,
        ),
        DemoSet(
            "molecules", "pretrain", "Small organic molecules at 300 to 1200 K", MOLECULAR, _FORCE_LABELS,
            organics.off_equilibrium, 480, organics.FRAMES,
        ),
        DemoSet(
            "paths", "pretrain", "Reaction-like paths of small molecules: bonds pulled and turned, hydrogens moved",
            MOLECULAR, _FORCE_LABELS, paths.reaction_path, 400, paths.FRAMES,
        ),
        DemoSet(
            "malonaldehyde", "finetune", "Molecular dynamics of malonaldehyde at 500 K", MOLECULAR, _FORCE_LABELS,
            _malonaldehyde, 400, FRAMES,
        ),
        DemoSet(
            "dipeptide", "finetune", "Molecular dynamics of alanine dipeptide at 500 K", MOLECULAR, _FORCE_LABELS,
            _dipeptide, 300, FRAMES,
        ),
        DemoSet(
            "gaps", "finetune", "HOMO-LUMO gaps (eV) and dipole moments (e·Å) of relaxed molecules with F, S or Cl",
            MOLECULAR, ("gap", "dipole"), organics.property_molecule, 500, 1,
        ),
    )
}  # fmt: skip


def default_sizes(scale: float = 1.0) -> dict[str, int]:
    """Structures per set, `scale` times the defaults (those of the set that comes with the package), at least one.

    Raises:
        UserError: the scale is not positive.
    """
    if not 0.0 < scale < float("inf"):
        raise UserError(f"demonstration data: scale must be a positive number, got {scale}")
    return {name: max(1, round(entry.size * scale)) for name, entry in SETS.items()}


def check_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes in the order of `SETS`, without those that are zero.

    Raises:
        UserError: an unknown set, a negative number, or nothing to make.
    """
    unknown = [name for name in sizes if name not in SETS]
    if unknown:
        raise UserError(f"demonstration data: there is no set {unknown[0]!r}; the sets are {', '.join(SETS)}")
    for name, size in sizes.items():
        if size < 0:
            raise UserError(f"demonstration data: the size of {name} is {size}; it must be 0 or more")
    wanted = {name: int(sizes[name]) for name in SETS if sizes.get(name, 0)}
    if not wanted:
        raise UserError(f"demonstration data: nothing to make; give a size to at least one of {', '.join(SETS)}")
    return wanted
