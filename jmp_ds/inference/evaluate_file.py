"""Errors of a bundle on labelled structures of a file or store: one row per structure, and means over them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jmp_ds.errors import UserError
from jmp_ds.inference.predict_file import job_of
from jmp_ds.inference.predictor import Predictor, Tags
from jmp_ds.inference.progress import counter
from jmp_ds.inference.resumable import INTERVAL, Resumable
from jmp_ds.inference.row_errors import errors_of, means
from jmp_ds.inference.sources import Given, Source
from jmp_ds.tasks.metrics import metric_units
from jmp_ds.tasks.specs import Task

if TYPE_CHECKING:
    from ase import Atoms


def evaluate_file(
    predictor: Predictor,
    source: str | Path,
    rows: str | Path,
    *,
    tags: Tags = "none",
    show_progress: bool = True,
    interval: float = INTERVAL,
) -> dict[str, float]:
    """Compare predictions with labels; after a kill the same call goes on where it was.

    Labels of a file are results that ASE reads with it (without the effect of constraints), `REF_energy`, `REF_forces`,
    `REF_stress`, and entries of `info` under the names of the task's scalars; units are ASE's. The label of a class is its
    number, counted from 0, or true and false for 1 and 0.

    Args:
        predictor: of the task.
        source: a store, or a file that ASE reads.
        rows: JSON lines to write, one per structure: number, formula, natoms, `energy_error` (eV), `forces_error` (sum over
            components, eV/Å) with `forces_count`, the same two for free atoms, sums over these of cosines
            (`forces_free_cosine`) and of errors of magnitudes (`forces_free_magnitude`, eV/Å), `within_threshold` (whether
            energy and forces are right), `stress_error` (mean, eV/Å³), `LABEL_error` of scalars, and of classes the true
            `LABEL_class` with `LABEL_probabilities`; what has no label is left out.
        tags: as the predictor's.
        show_progress: draw a counter on standard error.
        interval: seconds between two points from which it can go on.

    Returns:
        Metrics by name, in the units and order of `units_of`; what has no label at all is left out.

    Raises:
        UserError: what cannot be read, predicted or written, a label that is no number of a class, or structures without
            any label of the task.
    """
    given, rows = Source(source), Path(rows)
    job = job_of("evaluate", given, predictor, tags)
    with Resumable(rows, job, interval=interval) as file, counter(show_progress) as bar:
        count = file.done
        line = bar.add_task("evaluating", total=given.total, completed=count)
        held: deque[Given] = deque()
        for _, prediction in predictor.iterate(_remembered(given.read(count), held), first=count):
            where = f"{source}: structure {count}"
            row = {"number": count, **errors_of(held.popleft(), prediction, predictor.task, where)}
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            count += 1
            file.commit(count)
            bar.update(line, completed=count)
        file.finish()
    told = {f"{predictor.task.name}/{name}": value for name, value in means(read_rows(rows)).items()}
    found = {name: told[name] for name in units_of(predictor.task) if name in told}
    if not found:
        wanted = ", ".join(_labels(predictor))
        raise UserError(f"{source}: no structure has a label of task {predictor.task.name} ({wanted})")
    return found


def units_of(task: Task) -> dict[str, str]:
    """Every metric that `evaluate_file` may return, with its unit."""
    # stress is told wherever forces are gradients, learned or not
    return metric_units([task]) | {f"{task.name}/stress_mae": "meV/Å³"}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `evaluate_file` wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _labels(predictor: Predictor) -> list[str]:
    return [*predictor.task.labels, *(["stress"] if predictor.potential.conservative else [])]


def _remembered(read: Iterable[Given], held: deque[Given]) -> Iterator[Atoms]:
    for given in read:
        held.append(given)
        yield given.atoms
