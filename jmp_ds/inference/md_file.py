"""Molecular dynamics of every structure of a file, many at a time, to be gone on with after a kill.

Velocity Verlet, or Langevin dynamics in the splitting BAOAB (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34).
Random numbers are a function of seed, structure and step, so a run that was interrupted draws the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units
from numpy.typing import NDArray

from jmp_ds.errors import UserError
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.extxyz import frame
from jmp_ds.inference.predict_file import job_of
from jmp_ds.inference.predictor import Prediction, Predictor, Tags, edge_bound
from jmp_ds.inference.progress import counter
from jmp_ds.inference.resumable import INTERVAL, Resumable
from jmp_ds.inference.sources import Source

if TYPE_CHECKING:
    from ase import Atoms

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """How atoms move.

    Attributes:
        steps: of every structure.
        timestep: fs.
        temperature: K; of the thermostat, and of the velocities that structures without momenta begin with.
        friction: 1/ps, of the Langevin thermostat; None conserves the energy.
        every: steps between two frames of the output; the first and the last geometry are always written.
        seed: of velocities and noise.
    """

    steps: int
    timestep: float = 0.5
    temperature: float = 300.0
    friction: float | None = None
    every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        positive = {"steps": self.steps, "timestep": self.timestep, "every": self.every}
        if self.friction is not None:
            positive["friction"] = self.friction
        for name, value in positive.items():
            if not value > 0:
                raise UserError(f"md: {name} must be positive, got {value}")
        if self.temperature < 0:
            raise UserError(f"md: temperature must not be negative, got {self.temperature}")


@dataclass
class _Moving:
    """One structure on its way. Velocities in ASE's unit (Å per its unit of time)."""

    number: int
    atoms: Atoms
    velocities: Array
    masses: Array
    free: NDArray[np.bool_]
    prediction: Prediction

    @property
    def acceleration(self) -> Array:
        if self.prediction.forces is None:
            raise UserError("no forces to move by")
        return np.where(self.free[:, None], self.prediction.forces / self.masses[:, None], 0.0)

    @property
    def kinetic(self) -> float:
        """eV."""
        return float(0.5 * (self.masses[:, None] * np.square(self.velocities)).sum())


def md_file(
    predictor: Predictor,
    source: str | Path,
    output: str | Path,
    how: Dynamics,
    *,
    tags: Tags = "none",
    edge_budget: int = 20_000,
    show_progress: bool = True,
    interval: float = INTERVAL,
) -> int:
    """Move every structure and write extended xyz; after a kill the same call goes on where it was.

    Consecutive structures that fit the budget move together, and their frames stand in the output step by step; each says
    in `info` its `structure` (number in the input), `step`, `time` (fs), `kinetic_energy` (eV), `total_energy` (eV) and
    `temperature` (K), and holds momenta. Atoms held by FixAtoms stay; other constraints are refused.

    Args:
        predictor: should refuse far atoms and unseen elements.
        source: a store, or a file that ASE reads.
        output: extended xyz.
        how: steps, ensemble and output.
        tags: as the predictor's.
        edge_budget: main edges of the structures that move together.
        show_progress: draw a counter on standard error.
        interval: seconds between two points from which it can go on.

    Returns:
        The number of structures.

    Raises:
        UserError: a task without forces; what cannot be read, written or computed, with structure and step.
    """
    if predictor.task.energy is None or predictor.task.forces is None:
        raise UserError(f"task {predictor.task.name} has no energy with forces to move by")
    given = Source(source)
    job = job_of("md", given, predictor, tags, edge_budget=edge_budget, **vars(how))
    with Resumable(Path(output), job, interval=interval) as file, counter(show_progress) as bar:
        line = bar.add_task("steps of structures", total=given.total and given.total * how.steps)
        done, state = file.done, file.state
        for group in _groups(given, done, predictor.task.graph, edge_budget):
            resumed = bool(state)
            group, first = _begun(predictor, group, how, state)
            state = {}
            if not resumed:
                _write(file, group, first, how, done)
            for step in range(first + 1, how.steps + 1):
                _step(predictor, group, how, step)
                if step % how.every == 0 or step == how.steps:
                    _write(file, group, step, how, done)
                bar.update(line, completed=done * how.steps + len(group) * step)
            done += len(group)
            file.commit(done)
        file.finish()
    return done


def _groups(source: Source, start: int, graph: GraphSettings, budget: int) -> Iterator[list[_Moving]]:
    """Consecutive structures whose edges fit the budget."""
    held: list[_Moving] = []
    cost = 0
    for number, given in enumerate(source.read(start), start):
        own = edge_bound(given.atoms, graph)
        if held and cost + own > budget:
            yield held
            held, cost = [], 0
        held.append(_moving(number, given.atoms))
        cost += own
    if held:
        yield held


def _moving(number: int, atoms: Atoms) -> _Moving:
    from ase.constraints import FixAtoms

    free = np.ones(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise UserError(f"structure {number}: md holds atoms by FixAtoms alone, not by {type(constraint).__name__}")
        free[constraint.index] = False
    velocities = np.zeros((len(atoms), 3))
    return _Moving(number, atoms, velocities, np.asarray(atoms.get_masses()), free, Prediction())


def _begun(
    predictor: Predictor, group: list[_Moving], how: Dynamics, state: dict[str, Any]
) -> tuple[list[_Moving], int]:
    """The structures with velocities and forces, and the step they are at."""
    first = int(state.get("step", 0))
    if state:
        for one, positions, velocities in zip(group, state["positions"], state["velocities"], strict=True):
            one.atoms.positions = np.asarray(positions).reshape(-1, 3)
            one.velocities = np.asarray(velocities).reshape(-1, 3)
    else:
        for one in group:
            one.velocities = _initial(one, how)
    _predict(predictor, group, first)
    return group, first


def _initial(one: _Moving, how: Dynamics) -> Array:
    """The input's own velocities, or ones of the temperature; the whole then stays at rest unless atoms are held."""
    if one.atoms.has("momenta"):
        return np.where(one.free[:, None], np.asarray(one.atoms.get_velocities()), 0.0)
    noise = _noise(one, how, 0)
    velocities = np.where(one.free[:, None], noise * np.sqrt(units.kB * how.temperature / one.masses)[:, None], 0.0)
    if one.free.all() and len(one.masses) > 1:
        velocities -= (one.masses[:, None] * velocities).sum(axis=0) / one.masses.sum()
    return velocities


def _noise(one: _Moving, how: Dynamics, step: int) -> Array:
    """Normal numbers [n, 3] of one structure at one step."""
    key = np.random.SeedSequence([how.seed, one.number, step])
    return np.random.Generator(np.random.Philox(key)).standard_normal((len(one.masses), 3))


def _step(predictor: Predictor, group: Sequence[_Moving], how: Dynamics, step: int) -> None:
    """One step of all: half a kick, a drift (with the thermostat in its middle), new forces, half a kick."""
    dt = how.timestep * units.fs
    for one in group:
        one.velocities = one.velocities + 0.5 * dt * one.acceleration
        if how.friction is None:
            one.atoms.positions += dt * one.velocities
            continue
        one.atoms.positions += 0.5 * dt * one.velocities
        kept = np.exp(-how.friction / (1000.0 * units.fs) * dt)
        spread = np.sqrt((1.0 - kept**2) * units.kB * how.temperature / one.masses)[:, None]
        one.velocities = np.where(one.free[:, None], kept * one.velocities + spread * _noise(one, how, step), 0.0)
        one.atoms.positions += 0.5 * dt * one.velocities
    _predict(predictor, group, step)
    for one in group:
        one.velocities = one.velocities + 0.5 * dt * one.acceleration


def _predict(predictor: Predictor, group: Sequence[_Moving], step: int) -> None:
    try:
        found = [prediction for _, prediction in predictor.iterate([one.atoms for one in group], first=group[0].number)]
    except UserError as error:
        raise UserError(f"step {step}: {error}") from error
    for one, prediction in zip(group, found, strict=True):
        one.prediction = prediction


def _write(file: Resumable, group: Sequence[_Moving], step: int, how: Dynamics, done: int) -> None:
    """The frames of one step, and a point from which the run can go on."""
    file.write("".join(_text(one, step, how) for one in group).encode())
    file.commit(done, _state(group, step))


def _text(one: _Moving, step: int, how: Dynamics) -> str:
    """A frame of the output."""
    plain = one.atoms.copy()
    degrees = 3 * int(one.free.sum())
    plain.info.update(
        structure=one.number,
        step=step,
        time=step * how.timestep,
        kinetic_energy=one.kinetic,
        total_energy=one.kinetic + (one.prediction.energy or 0.0),
        temperature=2.0 * one.kinetic / (max(degrees, 1) * units.kB),
    )
    return frame(plain, replace(one.prediction, scalars={}), one.velocities * one.masses[:, None])


def _state(group: Sequence[_Moving], step: int) -> dict[str, Any]:
    """What it takes to go on; numbers in JSON come back to the last bit."""
    return {
        "step": step,
        "positions": [one.atoms.positions.ravel().tolist() for one in group],
        "velocities": [one.velocities.ravel().tolist() for one in group],
    }


def read_trajectory(path: str | Path, structure: int = 0) -> list[Atoms]:
    """The frames of one structure of an output."""
    import ase.io

    frames = ase.io.iread(str(path), index=":", format="extxyz")
    return [atoms for atoms in frames if int(atoms.info["structure"]) == structure]
