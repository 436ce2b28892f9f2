"""Bonds, molecular graphs and the joining of fragments: what is needed to make and to tell molecules apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray

from jmp_ds.data.demo.labelling import DemoFailure, FloatArray

#: Two atoms nearer than this times the sum of their covalent radii are bonded; apart from bonds, fragments keep
#: `CLEARANCE` times that sum.
BONDED = 1.25
CLEARANCE = 1.35


def bonds(atoms: Atoms) -> NDArray[np.bool_]:
    """Which atoms are bonded, bool [n, n], symmetric, without periodic images."""
    radii = covalent_radii[atoms.numbers]
    distance = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None, :], axis=-1)
    table = distance < BONDED * (radii[:, None] + radii[None, :])
    np.fill_diagonal(table, False)
    return np.asarray(table)


def graph_key(numbers: Sequence[int] | NDArray[np.int64], table: NDArray[np.bool_]) -> str:
    """A molecule's name that depends on elements and bonds alone: hash of Weisfeiler–Lehman labels, 16 hex digits.

    Conformers and mirror images share it; so do the few molecules which that refinement cannot tell apart.
    """
    neighbours = [np.flatnonzero(row) for row in table]
    labels = [str(int(z)) for z in numbers]
    for _ in range(len(labels)):
        labels = [_digest([labels[i], *sorted(labels[j] for j in near)]) for i, near in enumerate(neighbours)]
    return _digest(sorted(labels))


def molecule_key(atoms: Atoms) -> str:
    """`graph_key` of a molecule by the bonds of its geometry."""
    return graph_key(atoms.numbers, bonds(atoms))


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(",".join(parts).encode()).hexdigest()[:16]


def side_of(table: NDArray[np.bool_], a: int, b: int) -> NDArray[np.bool_] | None:
    """Atoms on b's side of the bond a–b, bool [n]; None where the bond is part of a ring."""
    cut = table.copy()
    cut[a, b] = cut[b, a] = False
    reached = np.zeros(len(table), dtype=bool)
    reached[b] = True
    while True:
        grown = reached | cut[reached].any(axis=0)
        if grown[a]:
            return None
        if (grown == reached).all():
            return reached
        reached = grown


def rotation(axis: FloatArray, angle: float) -> FloatArray:
    """Matrix R [3, 3] with R @ v turned by `angle` (radians) about `axis`."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turned: FloatArray = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross
    return turned


def _turn_onto(source: FloatArray, target: FloatArray) -> FloatArray:
    """Rotation that takes the unit vector `source` to the unit vector `target`."""
    axis = np.cross(source, target)
    if np.linalg.norm(axis) < 1e-8:
        axis = np.cross(source, np.eye(3)[np.argmin(np.abs(source))])
    return rotation(axis, float(np.arccos(np.clip(source @ target, -1.0, 1.0))))


def join(base: Atoms, hydrogen: int, group: Atoms, spare: int, rng: np.random.Generator) -> Atoms:
    """Replace a hydrogen of `base` by `group` without its hydrogen `spare`: one new single bond, a random torsion.

    Args:
        base: a molecule.
        hydrogen: index of the hydrogen of `base` that goes.
        group: a molecule.
        spare: index of the hydrogen of `group` that goes.
        rng: of the torsion.

    Raises:
        DemoFailure: `no_room` where the group touches the base at all of a dozen torsions.
    """
    a = int(np.flatnonzero(bonds(base)[hydrogen])[0])
    b = int(np.flatnonzero(bonds(group)[spare])[0])
    out = base.positions[hydrogen] - base.positions[a]
    out /= np.linalg.norm(out)
    back = group.positions[spare] - group.positions[b]
    back /= np.linalg.norm(back)
    length = covalent_radii[base.numbers[a]] + covalent_radii[group.numbers[b]]
    turned = (group.positions - group.positions[b]) @ _turn_onto(back, -out).T
    kept_base = np.delete(np.arange(len(base)), hydrogen)
    kept_group = np.delete(np.arange(len(group)), spare)
    radii = covalent_radii[base.numbers[kept_base]][:, None] + covalent_radii[group.numbers[kept_group]][None, :]
    new_bond = np.outer(kept_base == a, kept_group == b)
    for angle in rng.uniform(0.0, 2.0 * np.pi, 12):
        placed = (turned @ rotation(out, angle).T + base.positions[a] + length * out)[kept_group]
        distance = np.linalg.norm(base.positions[kept_base][:, None] - placed[None, :], axis=-1)
        if ((distance > CLEARANCE * radii) | new_bond).all():
            numbers = [*base.numbers[kept_base], *group.numbers[kept_group]]
            return Atoms(numbers, np.concatenate([base.positions[kept_base], placed]))
    raise DemoFailure("no_room")
