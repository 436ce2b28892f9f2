"""Where the energy of a model jumps along a path, and by how much: what caps on neighbours do to conserved energies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Jump:
    """One place at which the energy is not continuous.

    Attributes:
        at: position along the path, 0 … 1.
        energy: eV, the energy after it minus the energy before it.
        force: eV/Å, the largest change of a component of a force.
    """

    at: float
    energy: float
    force: float


def jumps_along(
    atoms: Atoms, end: Array, *, steps: int = 100, threshold: float = 1e-5, width: float = 1e-7
) -> list[Jump]:
    """Jumps of the energy on the straight way from the atoms' positions to others.

    A step whose change of energy differs from what the forces at its ends say (trapezoid) by more than the threshold is
    halved until it is narrower than `width` of the way; what then is left of the change is a jump. One jump is found per
    step, the largest.

    Args:
        atoms: with a calculator that has forces; is not changed.
        end: float64 [n, 3] in Å, where the path ends.
        steps: into which the way is cut at first.
        threshold: eV below which nothing is a jump; smooth energies need it above the error of the trapezoid.
        width: share of the way to which a jump is narrowed down.

    Returns:
        The jumps in the order of the path; none for a continuous energy.
    """
    start, way = atoms.get_positions(), np.asarray(end, dtype=np.float64) - atoms.get_positions()
    mover = atoms.copy()
    mover.calc = atoms.calc

    def at(x: float) -> tuple[float, Array]:
        mover.set_positions(start + x * way, apply_constraint=False)
        return float(mover.get_potential_energy()), np.asarray(mover.get_forces(apply_constraint=False))

    grid = np.linspace(0.0, 1.0, steps + 1).tolist()
    known = [at(x) for x in grid]
    found = []
    for k in range(steps):
        left, right = (grid[k], *known[k]), (grid[k + 1], *known[k + 1])
        if abs(_unexplained(left, right, way)) > threshold:
            left, right = _narrowed(left, right, way, at, width)
            energy = _unexplained(left, right, way)
            if abs(energy) > threshold:
                force = float(np.abs(right[2] - left[2]).max())
                found.append(Jump(at=0.5 * (left[0] + right[0]), energy=energy, force=force))
    return found


_Point = tuple[float, float, Array]


def _unexplained(left: _Point, right: _Point, way: Array) -> float:
    """Change of energy beyond the work of the mean force."""
    work = 0.5 * (right[0] - left[0]) * float((way * (left[2] + right[2])).sum())
    return right[1] - left[1] + work


def _narrowed(
    left: _Point, right: _Point, way: Array, at: Callable[[float], tuple[float, Array]], width: float
) -> tuple[_Point, _Point]:
    """The half with more unexplained change, again and again."""
    while right[0] - left[0] > width:
        x = 0.5 * (left[0] + right[0])
        middle = (x, *at(x))
        if abs(_unexplained(left, middle, way)) >= abs(_unexplained(middle, right, way)):
            right = middle
        else:
            left = middle
    return left, right
