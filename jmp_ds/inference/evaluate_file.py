"""Errors of a bundle on labelled structures of a file or store: one row per structure, and means over them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError
from jmp_ds.inference.predict_file import job_of
from jmp_ds.inference.predictor import Prediction, Predictor, Tags
from jmp_ds.inference.progress import counter
from jmp_ds.inference.resumable import INTERVAL, Resumable
from jmp_ds.inference.sources import Given, Source
from jmp_ds.tasks.specs import ClassTarget, Task

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
    `REF_stress`, and entries of `info` under the names of the task's scalars; units are ASE's.

    Args:
        predictor: of the task.
        source: a store, or a file that ASE reads.
        rows: JSON lines to write, one per structure: number, formula, natoms, `energy_error` (eV), `forces_error` (sum over
            components, eV/Å) with `forces_count`, the same two for free atoms, `stress_error` (mean, eV/Å³), and
            `LABEL_error` of scalars; what has no label is left out.
        tags: as the predictor's.
        show_progress: draw a counter on standard error.
        interval: seconds between two points from which it can go on.

    Returns:
        Mean absolute errors by name, in the units of `units_of`; what has no label at all is left out.

    Raises:
        UserError: what cannot be read, predicted or written, or structures without any label of the task.
    """
    given, rows = Source(source), Path(rows)
    job = job_of("evaluate", given, predictor, tags)
    with Resumable(rows, job, interval=interval) as file, counter(show_progress) as bar:
        count = file.done
        line = bar.add_task("evaluating", total=given.total, completed=count)
        held: deque[Given] = deque()
        for _, prediction in predictor.iterate(_remembered(given.read(count), held), first=count):
            row = {"number": count, **_row(held.popleft(), prediction, predictor.task)}
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            count += 1
            file.commit(count)
            bar.update(line, completed=count)
        file.finish()
    found = {f"{predictor.task.name}/{name}": value for name, value in means(read_rows(rows)).items()}
    if not found:
        wanted = ", ".join(_labels(predictor))
        raise UserError(f"{source}: no structure has a label of task {predictor.task.name} ({wanted})")
    return found


def units_of(task: Task) -> dict[str, str]:
    """Every metric that `evaluate_file` may return, with its unit."""
    units = {"energy_mae": "eV", "energy_mae_per_atom": "meV/atom"}
    units |= {"forces_mae": "meV/Å", "forces_mae_free": "meV/Å", "stress_mae": "meV/Å³"}
    units |= {f"{t.label}_mae": t.unit for t in task.of_structures if not isinstance(t, ClassTarget)}
    return {f"{task.name}/{name}": unit for name, unit in units.items()}


def means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean absolute errors from rows, in the units of `units_of`, without the name of the task."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}

    def add(name: str, error: float, weight: float = 1.0) -> None:
        sums[name] = sums.get(name, 0.0) + error
        counts[name] = counts.get(name, 0.0) + weight

    for row in rows:
        for key, value in row.items():
            label, _, kind = key.rpartition("_")
            if kind != "error":
                continue
            if label in ("forces", "forces_free"):
                add(label.replace("forces", "forces_mae"), 1000.0 * value, row[f"{label}_count"])
            elif label == "stress":
                add("stress_mae", 1000.0 * value)
            else:
                add(f"{label}_mae", abs(value))
        if "energy_error" in row:
            add("energy_mae_per_atom", 1000.0 * abs(row["energy_error"]) / max(row["natoms"], 1))
    return {name: total / counts[name] for name, total in sums.items() if counts[name]}


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


def _row(given: Given, prediction: Prediction, task: Task) -> dict[str, Any]:
    """Errors of one structure, prediction minus label."""
    atoms, labels = given.atoms, given.labels
    row: dict[str, Any] = {"formula": atoms.get_chemical_formula(), "natoms": len(atoms)}
    # classes have errors of another kind, which `evaluate` tells on stores
    predicted: dict[str, Any] = {t.label: _predicted(prediction, t.label) for t in task.of_structures}
    predicted = {label: value for label, value in predicted.items() if value is not None}
    if task.classification is not None:
        predicted.pop(task.classification.label)
    if prediction.energy is not None:
        predicted["energy"] = prediction.energy
    for label, value in predicted.items():
        if label in labels and np.isfinite(labels[label]).all():
            errors = np.atleast_1d(value) - np.atleast_1d(labels[label])
            row[f"{label}_error"] = float(errors[0] if errors.size == 1 else np.abs(errors).mean())
    if prediction.forces is not None and "forces" in labels:
        errors = np.abs(prediction.forces - labels["forces"])
        free = np.ones(len(atoms), dtype=bool) if given.fixed is None else ~given.fixed
        row |= {"forces_error": float(errors.sum()), "forces_count": errors.size}
        row |= {"forces_free_error": float(errors[free].sum()), "forces_free_count": errors[free].size}
    if prediction.stress is not None and "stress" in labels:
        row["stress_error"] = float(np.abs(prediction.stress - _voigt(labels["stress"])).mean())
    return row


def _predicted(prediction: Prediction, label: str) -> NDArray[np.float64] | None:
    """A scalar, or the three components of a dipole."""
    names = (label,) if label in prediction.scalars else tuple(f"{label}_{axis}" for axis in "xyz")
    found = [prediction.scalars[name] for name in names if name in prediction.scalars]
    return np.array(found) if found else None


def _voigt(stress: NDArray[np.float64]) -> NDArray[np.float64]:
    """[6] from [6] or [3, 3]."""
    if stress.size == 6:
        return stress.reshape(6)
    full = stress.reshape(3, 3)
    return np.array([full[0, 0], full[1, 1], full[2, 2], full[1, 2], full[0, 2], full[0, 1]])
