"""Relaxation of every structure of a file, many at a time.

Every structure has its own optimiser of ASE; only the evaluations are shared: before each step the forces of all
structures in the pool are computed in batches. A structure that is done makes room for the next; results are written in
the order of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from jmp_ds.errors import UserError
from jmp_ds.inference.extxyz import frame
from jmp_ds.inference.predict_file import job_of
from jmp_ds.inference.predictor import Prediction, Predictor, Tags, edge_bound, has_volume
from jmp_ds.inference.progress import counter
from jmp_ds.inference.resumable import INTERVAL, Resumable
from jmp_ds.inference.sources import Source

if TYPE_CHECKING:
    from ase import Atoms

OptimizerName = Literal["fire", "bfgs", "lbfgs"]
_OPTIMIZERS = {"fire": FIRE, "bfgs": BFGS, "lbfgs": LBFGS}


class Prepared(Calculator):
    """Results that were computed beforehand, for exactly the geometry they were computed for."""

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def prepare(self, atoms: Atoms, prediction: Prediction) -> None:
        """Take a prediction for the atoms as they are."""
        self.atoms = atoms.copy()
        found: dict[str, Any] = {"energy": prediction.energy, "free_energy": prediction.energy}
        found |= {"forces": prediction.forces, "stress": prediction.stress}
        self.results = {name: x for name, x in found.items() if x is not None}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Never: what is not prepared is a defect of the caller, and no old number is given out."""
        raise RuntimeError("nothing was computed for this geometry")


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """How to relax.

    Attributes:
        fmax: largest force on an atom, eV/Å, at which a structure is relaxed (with `cell`, as ASE's filter counts it).
        steps: after which it is given up.
        optimizer: of ASE.
        cell: relax the cell too, by stress.
    """

    fmax: float = 0.05
    steps: int = 500
    optimizer: OptimizerName = "fire"
    cell: bool = False


class Told(NamedTuple):
    """How it ended: number of structures, of those relaxed, given up and failed."""

    structures: int
    converged: int
    unfinished: int
    failed: int


class _Running:
    """One structure on its way."""

    def __init__(self, number: int, atoms: Atoms, how: Relaxation) -> None:
        self.number, self.atoms, self.error = number, atoms, ""
        self.steps, self.converged, self.prediction = 0, False, Prediction()
        atoms.calc = Prepared()
        target = FrechetCellFilter(atoms) if how.cell and has_volume(atoms) else atoms
        self._optimizer = _OPTIMIZERS[how.optimizer](target, logfile=None)
        self._target, self._how = target, how

    def take(self, prediction: Prediction) -> bool:
        """Take the forces of the present geometry, and make a step unless it is done. Returns: whether it is."""
        self.prediction = prediction
        self.atoms.calc.prepare(self.atoms, prediction)
        forces = np.asarray(self._target.get_forces())
        self.largest = float(np.sqrt(np.square(forces).sum(axis=-1).max(initial=0.0)))
        self.converged = self.largest < self._how.fmax
        if self.converged or self.steps >= self._how.steps:
            return True
        self._optimizer.step()
        self._optimizer.nsteps += 1
        self.steps += 1
        return False

    def text(self) -> str:
        """The frame to write; of a failure the last geometry without results."""
        about: dict[str, Any] = {"relax_steps": self.steps, "relax_converged": self.converged}
        if self.error:
            about["relax_error"] = self.error
        else:
            about["relax_fmax"] = self.largest
        plain = self.atoms.copy()
        plain.info.update(about)
        return frame(plain, Prediction() if self.error else self.prediction)


def relax_file(
    predictor: Predictor,
    source: str | Path,
    output: str | Path,
    how: Relaxation | None = None,
    *,
    tags: Tags = "none",
    edge_budget: int = 20_000,
    show_progress: bool = True,
    interval: float = INTERVAL,
) -> Told:
    """Relax every structure and write extended xyz, in order; after a kill the same call goes on where it was.

    Constraints of the input hold. In `info` stand `relax_converged`, `relax_steps`, `relax_fmax`, and `relax_error` for a
    structure that the model could not go on with, which is written as it was then, without energy and forces.

    Args:
        predictor: should refuse far atoms and unseen elements.
        source: a store, or a file that ASE reads.
        output: extended xyz.
        how: when it is done, and by which optimiser.
        tags: as the predictor's.
        edge_budget: main edges of all structures in the pool.
        show_progress: draw a counter on standard error.
        interval: seconds between two points from which it can go on; structures in the pool begin anew.

    Returns:
        How it ended.

    Raises:
        UserError: a task without forces, or without stress for a cell; what cannot be read or written.
    """
    how = how or Relaxation()
    _check(predictor, how)
    given = Source(source)
    job = job_of("relax", given, predictor, tags, **vars(how))
    with Resumable(Path(output), job, interval=interval) as file, counter(show_progress) as bar:
        told = {"converged": 0, "unfinished": 0, "failed": 0, **file.state}
        count = file.done
        line = bar.add_task("relaxing", total=given.total, completed=count)
        for done in _in_order(_relaxed(predictor, given, count, how, edge_budget), count):
            file.write(done.text().encode())
            told["failed" if done.error else "converged" if done.converged else "unfinished"] += 1
            count += 1
            file.commit(count, told)
            bar.update(line, completed=count)
        file.finish()
    return Told(count, **told)


def _check(predictor: Predictor, how: Relaxation) -> None:
    task = predictor.task
    if task.energy is None or task.forces is None:
        raise UserError(f"task {task.name} has no energy with forces to relax by")
    if how.cell and not predictor.potential.conservative:
        raise UserError(
            f"task {task.name}: a cell is relaxed by stress, which only a task with gradient forces has; "
            "leave the cell as it is"
        )
    if how.optimizer not in _OPTIMIZERS:
        raise UserError(f"no optimiser {how.optimizer!r}; choose one of {', '.join(_OPTIMIZERS)}")


def _in_order(relaxed: Iterator[_Running], start: int) -> Iterator[_Running]:
    """Those that are done, in the order of the input."""
    waiting: dict[int, _Running] = {}
    for done in relaxed:
        waiting[done.number] = done
        while start in waiting:
            yield waiting.pop(start)
            start += 1


def _relaxed(predictor: Predictor, source: Source, start: int, how: Relaxation, budget: int) -> Iterator[_Running]:
    """Structures as they are done, from a pool that is filled up to the budget."""
    entering = enumerate((given.atoms for given in source.read(start)), start)
    pool: list[_Running] = []
    following = next(entering, None)
    while pool or following is not None:
        used = sum(edge_bound(one.atoms, predictor.task.graph) for one in pool)
        while following is not None:
            used += edge_bound(following[1], predictor.task.graph)
            if pool and used > budget:
                break
            pool.append(_Running(*following, how))
            following = next(entering, None)
        still = []
        for one, prediction in zip(pool, _predicted(predictor, pool), strict=True):
            if isinstance(prediction, UserError):
                one.error = " ".join(str(prediction).split())
                yield one
            elif one.take(prediction):
                yield one
            else:
                still.append(one)
        pool = still


def _predicted(predictor: Predictor, pool: Sequence[_Running]) -> list[Prediction | UserError]:
    """Predictions of all; where one of them cannot be had, each for itself."""
    try:
        found = predictor.iterate([one.atoms for one in pool], first=pool[0].number)
        return [prediction for _, prediction in found]
    except UserError as error:
        if len(pool) == 1:
            return [error]
    return [found for one in pool for found in _predicted(predictor, [one])]
