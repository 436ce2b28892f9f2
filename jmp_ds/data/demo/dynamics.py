"""Relaxation and Langevin dynamics on a grid.

Rounding positions and velocities after every step keeps last-bit differences between machines from growing: without it a
trajectory is chaotic and a second machine would make other structures from the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.optimize import LBFGS

from jmp_ds.data.demo.labelling import DemoFailure, FloatArray, Level, calculator, on_grid

#: Grid of positions (Å) and velocities (Å per ASE time unit) in dynamics, and of relaxed positions (Å).
STEP_GRID, RELAXED_GRID = 1e-7, 1e-5
#: Masses of hydrogen are raised to this (amu), which leaves the sampled structures' distribution as it is and admits a
#: time step of 1 fs.
HYDROGEN_MASS = 3.0
TIME_STEP, FRICTION = 1.0, 0.02  # fs, 1/fs


def relax(atoms: Atoms, level: Level, *, fmax: float = 0.05, steps: int = 150) -> Atoms:
    """The molecule at a nearby minimum (largest force below `fmax`, eV/Å), without calculator.

    Raises:
        DemoFailure: no minimum within `steps`, or the SCF does not converge on the way.
    """
    moving = atoms.copy()
    moving.calc = calculator(level)
    done = _guarded(lambda: LBFGS(moving, logfile=None, maxstep=0.1).run(fmax=fmax, steps=steps))
    if not done:
        raise DemoFailure("not_relaxed")
    return Atoms(atoms.numbers, on_grid(moving.positions, RELAXED_GRID))


def trajectory(
    atoms: Atoms, level: Level, rng: np.random.Generator, *, temperature: float, first: int, every: int, frames: int
) -> Iterator[FloatArray]:
    """Positions [n, 3] of Langevin dynamics (BAOAB) after `first` steps of 1 fs and then after each further `every`.

    Args:
        atoms: the start; velocities are drawn at `temperature`.
        level: of the forces.
        rng: of velocities and noise.
        temperature: K.
        first: steps before the first frame.
        every: steps between frames.
        frames: how many.

    Raises:
        DemoFailure: the SCF does not converge, or the molecule flies apart.
    """
    moving = atoms.copy()
    moving.calc = calculator(level)
    masses = np.where(atoms.numbers == 1, HYDROGEN_MASS, atoms.get_masses())[:, None]
    step = TIME_STEP * units.fs
    keep = np.exp(-FRICTION * TIME_STEP)
    thermal = np.sqrt(units.kB * temperature / masses)
    pos = atoms.positions.copy()
    velocity = thermal * rng.standard_normal(pos.shape)
    forces = _guarded(moving.get_forces)
    for done in range(1, first + every * (frames - 1) + 1):
        velocity += 0.5 * step * forces / masses
        pos = pos + 0.5 * step * velocity
        velocity = keep * velocity + np.sqrt(1.0 - keep**2) * thermal * rng.standard_normal(velocity.shape)
        pos = on_grid(pos + 0.5 * step * velocity, STEP_GRID)
        moving.positions = pos
        forces = _guarded(moving.get_forces)
        velocity = on_grid(velocity + 0.5 * step * forces / masses, STEP_GRID)
        if not np.abs(forces).max() < 100.0:
            raise DemoFailure("dynamics_unstable")
        if done >= first and (done - first) % every == 0:
            yield pos - pos.mean(axis=0)


def _guarded(compute: Any) -> Any:
    """The result of `compute`, with failures of the SCF turned into `DemoFailure`."""
    from ase.calculators.calculator import CalculatorError

    try:
        return compute()
    except CalculatorError as error:
        raise DemoFailure("scf_not_converged") from error
