"""Whether energies, forces and lengths can be in eV and Å: a wrong unit must not become a wrong model.

What is compared is the work of the forces with the difference of the energies between two nearby frames of the same
atoms in the same cell, W = ½ (F₁ + F₂)·(x₂ - x₁) against E₁ - E₂: frames that follow each other, and nearest
neighbours among the frames of one molecule (after rotation onto each other). Their ratio is 1 in consistent units
whatever the energy's zero; it is 23.06 or 1/23.06 if one of the two is in kcal/mol, 27.2 for Hartree, and their
correlation is negative if a gradient was taken for a force.

What that cannot see: energies and forces both in the same wrong unit (the ratio stays 1), factors below five (kJ
against kcal), sets without pairs of nearby frames (relaxed structures, one frame per composition, cells that differ
from frame to frame), and sets without forces. For those there are bounds that hold for any matter: no total energy
lies below that of the Thomas-Fermi atoms, -20.9 Z^(7/3) eV each (all-electron energies in kcal/mol or kJ/mol break
it; Hartree taken for eV, and energies relative to atoms or with pseudopotentials, do not), and half of all structures
have a typical force below 15 eV/Å (kcal/mol/Å of hot molecules break it; Hartree taken for eV do not).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.record import FloatArray, Record

#: Frames of one set of atoms, and frames altogether, that are kept for comparison.
FRAMES_PER_KEY = 1000
FRAMES = 4000
#: Records looked at; what comes later in a file changes no judgement.
LOOKED = 200_000
#: Pairs needed for a judgement; correlation of work and energy from which units are called consistent, and from which wrong
#: ones are called wrong; ratios of energy to work that are believed. Right units gave 0.49 to 1.3 on all real sets tried,
#: so that a factor of 23 is outside either way.
ENOUGH_PAIRS = 8
CLEAR = 0.6
VISIBLE = 0.3
RATIOS = (0.2, 5.0)
#: Largest root-mean-square displacement (Å) between two frames that are compared.
NEAR = 0.5
#: Energy of a Thomas-Fermi atom is -THOMAS_FERMI * Z^(7/3) eV; the exact one is higher for every element.
THOMAS_FERMI = 20.9
#: Half of all structures having a root-mean-square force (eV/Å) above this is not matter at any temperature.
LARGEST_TYPICAL_FORCE = 15.0


@dataclass(frozen=True)
class UnitVerdict:
    """What the check found.

    Attributes:
        status: `consistent`, `inconclusive` (nothing to compare, or no clear relation) or `refused`.
        message: the finding in words, for people.
        pairs: pairs of frames compared.
        ratio: energy difference per work (root mean squares); 1 in consistent units; NaN without pairs.
        correlation: between the two.
    """

    status: str
    message: str
    pairs: int = 0
    ratio: float = float("nan")
    correlation: float = float("nan")


@dataclass
class _Frames:
    """Frames of the same atoms in the same cell."""

    cell: FloatArray
    pbc: NDArray[np.bool_]
    frames: list[tuple[FloatArray, float, FloatArray]] = field(default_factory=list)


class UnitCheck:
    """Collects some frames while records pass by, then judges; memory is bounded by `FRAMES`."""

    def __init__(self) -> None:
        self._kept: dict[bytes, _Frames] = {}
        self._count = 0
        self._looked = 0
        self._bound: list[float] = []
        self._force: list[float] = []

    def add(self, records: Iterable[Record]) -> None:
        """Look at some records; they should come in the order of the file."""
        for record in records:
            if self.full:
                return
            self._looked += 1
            energy, forces = record.labels.get("energy"), record.labels.get("forces")
            if energy is not None and len(self._bound) < 10 * FRAMES:
                atoms = THOMAS_FERMI * float((record.atomic_numbers.astype(float) ** (7 / 3)).sum())
                self._bound.append(-float(energy) / atoms)
            if forces is not None and len(self._force) < 10 * FRAMES:
                self._force.append(float(np.sqrt(np.mean(np.square(forces)))))
            if energy is not None and forces is not None and self._count < FRAMES:
                self._keep(record, float(energy), forces)

    @property
    def full(self) -> bool:
        """Whether further records would change nothing."""
        enough = len(self._bound) >= 10 * FRAMES and len(self._force) >= 10 * FRAMES and self._count >= FRAMES
        return enough or self._looked >= LOOKED

    def _keep(self, record: Record, energy: float, forces: FloatArray) -> None:
        """Remember one frame."""
        key = record.atomic_numbers.tobytes() + b"|" + record.pbc.tobytes()
        if record.pbc.any():
            key += np.round(record.cell, 4).tobytes()
        group = self._kept.setdefault(key, _Frames(record.cell, record.pbc))
        if len(group.frames) < FRAMES_PER_KEY:
            group.frames.append((record.pos, energy, forces))
            self._count += 1

    def verdict(self) -> UnitVerdict:
        """The judgement over all records added."""
        problem = self._bounds()
        if problem:
            return UnitVerdict("refused", problem)
        found = [_pairs(group) for group in self._kept.values() if len(group.frames) > 1]
        work = np.concatenate([np.zeros(0), *(w for w, _ in found)])
        drop = np.concatenate([np.zeros(0), *(d for _, d in found)])
        return _judge(work, drop)

    def _bounds(self) -> str:
        """What is impossible for any matter, in words; empty if nothing is."""
        if self._bound and float(np.median(self._bound)) > 1.0:
            return (
                f"energies are {np.median(self._bound):.1f} times the Thomas-Fermi energy of the atoms, below which no "
                "matter can be: they are not in eV (kcal/mol or kJ/mol?)"
            )
        if self._force and float(np.median(self._force)) > LARGEST_TYPICAL_FORCE:
            return f"the median root-mean-square force is {np.median(self._force):.1f} eV/Å: are forces in kcal/mol/Å?"
        return ""


def _judge(work: FloatArray, drop: FloatArray) -> UnitVerdict:
    """From work and drop in energy per pair, both in what is said to be eV.

    The ratio is that of the two root mean squares: unlike a slope, it does not shrink when the frames lie so far apart that
    the work over a straight line is only roughly the difference in energy. To refuse, the medians (the signs, for a
    gradient) must agree: one jump to another electronic state must not condemn a trajectory.
    """
    moved = np.abs(work) > 1e-9
    work, drop = work[moved], drop[moved]
    count = len(work)
    if count < ENOUGH_PAIRS:
        return UnitVerdict(
            "inconclusive", f"{count} pairs of nearby frames are too few to compare work and energy", count
        )
    ratio = float(np.sqrt(np.mean(drop**2) / np.mean(work**2)))
    correlation = float(np.mean(work * drop) / np.sqrt(np.mean(work**2) * np.mean(drop**2) + 1e-300))
    finding = (
        f"over {count} pairs of nearby frames the energy changes {ratio:.3g} times as much as the forces do work "
        f"(correlation {correlation:.2f}, both 1 in consistent units)"
    )
    typical = float(np.median(np.abs(drop)) / np.median(np.abs(work)))
    downhill = float(np.mean(work * drop > 0))
    status = "inconclusive"
    if correlation < -VISIBLE and downhill < 0.4:
        status, finding = "refused", f"{finding}: forces point uphill; is a gradient taken for a force?"
    elif correlation > VISIBLE and (max(ratio, typical) < RATIOS[0] or min(ratio, typical) > RATIOS[1]):
        status, finding = "refused", f"{finding}: energies and forces are in different units"
    elif correlation > CLEAR:
        status = "consistent"
    return UnitVerdict(status, finding, count, ratio, correlation)


def _pairs(group: _Frames) -> tuple[FloatArray, FloatArray]:
    """Work and drop in energy (eV) between consecutive frames and between nearest neighbours."""
    pos = np.array([frame[0] for frame in group.frames])
    chosen = set(zip(range(len(pos) - 1), range(1, len(pos)), strict=True)) | _neighbours(pos)
    work, drop = [], []
    for i, j in sorted(chosen):
        (x1, e1, f1), (x2, e2, f2) = group.frames[i], group.frames[j]
        if group.pbc.any():
            step = x2 - x1
            images = np.round(step @ np.linalg.inv(group.cell))
            step -= np.where(group.pbc, images, 0.0) @ group.cell
        else:
            rotation = _onto(x2, x1)
            x1, x2 = x1 - x1.mean(0), (x2 - x2.mean(0)) @ rotation
            f2 = f2 @ rotation
            step = x2 - x1
        if np.sqrt(np.mean(np.sum(step**2, axis=1))) <= NEAR:
            work.append(0.5 * float(((f1 + f2) * step).sum()))
            drop.append(e1 - e2)
    return np.array(work), np.array(drop)


def _neighbours(pos: FloatArray) -> set[tuple[int, int]]:
    """Each frame with the one whose distances between atoms are most alike; independent of rotation."""
    n = pos.shape[1]
    atoms = np.unique(np.linspace(0, n - 1, min(n, 40)).astype(int))
    i, j = np.triu_indices(len(atoms), 1)
    if len(i) == 0:
        return set()
    shape = np.linalg.norm(pos[:, atoms[i]] - pos[:, atoms[j]], axis=-1)
    square = (shape**2).sum(1)
    apart = square[:, None] + square[None, :] - 2.0 * shape @ shape.T
    np.fill_diagonal(apart, np.inf)
    return {(min(a, int(b)), max(a, int(b))) for a, b in enumerate(apart.argmin(1))}


def _onto(x: FloatArray, y: FloatArray) -> FloatArray:
    """Rotation r [3, 3] that brings x - mean closest to y - mean as (x - mean) @ r (Kabsch)."""
    u, _, v = np.linalg.svd((x - x.mean(0)).T @ (y - y.mean(0)))
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v)) or 1.0])
    return np.asarray(u @ sign @ v)
