"""Errors of one prediction as a row of plain JSON values, and means over rows: what `tasks.metrics` tells of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jmp_ds.errors import UserError
from jmp_ds.inference.predictor import Prediction
from jmp_ds.inference.sources import Given
from jmp_ds.tasks import classes, force_metrics
from jmp_ds.tasks.specs import ClassTarget, Task

Array = NDArray[np.float64]


def errors_of(given: Given, prediction: Prediction, task: Task, where: str) -> dict[str, Any]:
    """Errors of one structure, prediction minus label; see `evaluate_file` for the names.

    Args:
        given: the structure with its labels.
        prediction: of it.
        task: that predicted.
        where: begins messages.

    Raises:
        UserError: a label of a class is no number of a class.
    """
    atoms, labels = given.atoms, given.labels
    row: dict[str, Any] = {"formula": atoms.get_chemical_formula(), "natoms": len(atoms)}
    predicted: dict[str, Any] = {
        t.label: _predicted(prediction, t.label) for t in task.of_structures if not isinstance(t, ClassTarget)
    }
    if prediction.energy is not None:
        predicted["energy"] = prediction.energy
    for label, value in predicted.items():
        if value is not None and label in labels and np.isfinite(labels[label]).all():
            errors = np.atleast_1d(value) - np.atleast_1d(labels[label])
            row[f"{label}_error"] = float(errors[0] if errors.size == 1 else np.abs(errors).mean())
    if prediction.forces is not None and "forces" in labels:
        free = np.ones(len(atoms), dtype=bool) if given.fixed is None else ~given.fixed
        row |= _force_errors(prediction.forces, labels["forces"], free, row.get("energy_error"))
    if prediction.stress is not None and "stress" in labels:
        row["stress_error"] = float(np.abs(prediction.stress - _voigt(labels["stress"])).mean())
    if task.classification is not None:
        row |= _class_errors(given, prediction, task.classification, where)
    return row


def means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics from rows of one task, in the units of `tasks.metrics.metric_units`, without the name of the task."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    classified: dict[str, list[tuple[int, Sequence[float]]]] = {}

    def add(name: str, error: float, weight: float = 1.0) -> None:
        sums[name] = sums.get(name, 0.0) + error
        counts[name] = counts.get(name, 0.0) + weight

    for row in rows:
        for key, value in row.items():
            label, _, kind = key.rpartition("_")
            if kind == "class":
                classified.setdefault(label, []).append((value, row[f"{label}_probabilities"]))
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
        if "forces_free_cosine" in row:
            add("forces_magnitude_mae_free", 1000.0 * row["forces_free_magnitude"], row["forces_free_count"] / 3)
            add("forces_cosine_free", row["forces_free_cosine"], row["forces_free_count"] / 3)
        if "within_threshold" in row:
            add("energy_forces_within_threshold", float(row["within_threshold"]))
    found = {name: total / counts[name] for name, total in sums.items() if counts[name]}
    for label, told in classified.items():
        found |= _class_metrics(label, told)
    return found


def _predicted(prediction: Prediction, label: str) -> Array | None:
    """A scalar, or the three components of a dipole."""
    names = (label,) if label in prediction.scalars else tuple(f"{label}_{axis}" for axis in "xyz")
    found = [prediction.scalars[name] for name in names if name in prediction.scalars]
    return np.array(found) if found else None


def _voigt(stress: Array) -> Array:
    """[6] from [6] or [3, 3]."""
    if stress.size == 6:
        return stress.reshape(6)
    full = stress.reshape(3, 3)
    return np.array([full[0, 0], full[1, 1], full[2, 2], full[1, 2], full[0, 2], full[0, 1]])


def _force_errors(
    predicted: Array, labelled: Array, free: NDArray[np.bool_], energy_error: float | None
) -> dict[str, Any]:
    """Sums over components and over free atoms; and whether energy and forces are right, if the energy's error is known."""
    errors = np.abs(predicted - labelled)
    both = torch.from_numpy(predicted[free]), torch.from_numpy(labelled[free])
    row: dict[str, Any] = {
        "forces_error": float(errors.sum()),
        "forces_count": errors.size,
        "forces_free_error": float(errors[free].sum()),
        "forces_free_count": errors[free].size,
        "forces_free_magnitude": float(force_metrics.magnitude_errors(*both).sum()),
        "forces_free_cosine": float(force_metrics.cosines(*both).sum()),
    }
    if energy_error is not None:
        energy, one = torch.tensor([abs(energy_error)], dtype=torch.float64), torch.zeros(len(free), dtype=torch.int64)
        right = force_metrics.within_thresholds(energy, torch.from_numpy(errors), torch.from_numpy(free), one)
        row["within_threshold"] = bool(right)
    return row


def _class_errors(given: Given, prediction: Prediction, target: ClassTarget, where: str) -> dict[str, Any]:
    """The class that the label tells, and the probabilities of all; empty without a label."""
    raw = given.labels.get(target.label, given.unread.get(target.label))
    number = _number(raw)
    if raw is None or np.isnan(number):
        return {}
    if number not in range(target.classes):
        told = repr(raw) if isinstance(raw, str) else str(raw)
        raise UserError(
            f"{where}: label {target.label!r} is {told[:60]}, not the number of a class; "
            f"{target.classes} classes are numbered 0 to {target.classes - 1}"
        )
    probabilities = [prediction.scalars[f"{target.label}_p{k}"] for k in range(target.classes)]
    return {f"{target.label}_class": int(number), f"{target.label}_probabilities": probabilities}


def _number(raw: Any) -> float:
    """The one number that a label is; -1 if it is none."""
    try:
        array = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError):
        return -1.0
    return float(array.item()) if array.size == 1 else -1.0


def _class_metrics(label: str, told: Sequence[tuple[int, Sequence[float]]]) -> dict[str, float]:
    """From true classes and probabilities, by the formulas of batches: their logarithms are logits."""
    numbers = torch.tensor([number for number, _ in told])
    probabilities = torch.tensor([each for _, each in told], dtype=torch.float64)
    logits = probabilities.clamp(min=torch.finfo(torch.float64).tiny).log()
    target, there = ClassTarget(label=label, classes=logits.shape[1], kind="multi"), torch.ones_like(numbers).bool()
    hits = classes.hits_by_class(logits, numbers, there, target)
    found = {
        "accuracy": float(hits[0].sum() / hits[1].sum()),
        "balanced_accuracy": classes.balanced_accuracy(hits),
        "cross_entropy": float(classes.cross_entropy(logits, numbers, target).mean()),
    }
    if target.classes == 2:
        found["roc_auc"] = classes.roc_auc(classes.scores_by_class(logits, numbers, there, target))
    return {f"{label}_{name}": value for name, value in found.items() if value is not None}
