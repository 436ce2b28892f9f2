"""Errors per task in physical units, kept as sums and counts so that ranks can be added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from jmp_ds.graphs.batch import Structures
from jmp_ds.tasks import classes, force_metrics
from jmp_ds.tasks.normalise import class_numbers, denormalize, present
from jmp_ds.tasks.specs import ClassTarget, Task


def metric_units(tasks: Sequence[Task]) -> dict[str, str]:
    """Every metric's name → unit, in a fixed order.

    `TASK/energy_mae` eV; `TASK/energy_mae_per_atom` meV/atom; `TASK/forces_mae` meV/Å over the components of all atoms;
    `TASK/forces_mae_free` meV/Å over atoms not held fixed (OCP's convention); over the same atoms
    `TASK/forces_magnitude_mae_free` meV/Å, the error of the lengths of forces, and `TASK/forces_cosine_free`, the cosine
    between predicted and labelled forces; `TASK/energy_forces_within_threshold`, the share of structures whose energy and
    forces are right (see `force_metrics`), unless the energy is not trained; `TASK/stress_mae` meV/Å³ over its six
    components; `TASK/LABEL_mae` in the label's unit, for a dipole that is a vector over its components. Of classes:
    `TASK/LABEL_accuracy`, `_balanced_accuracy` (the mean over classes of their accuracies), `_cross_entropy` (nats, classes
    unweighted), and of two classes `_roc_auc`.
    """
    units = {}
    for task in tasks:
        if task.energy is not None:
            units[f"{task.name}/energy_mae"] = "eV"
            units[f"{task.name}/energy_mae_per_atom"] = "meV/atom"
        if task.forces is not None:
            units[f"{task.name}/forces_mae"] = "meV/Å"
            units[f"{task.name}/forces_mae_free"] = "meV/Å"
            units[f"{task.name}/forces_magnitude_mae_free"] = "meV/Å"
            units[f"{task.name}/forces_cosine_free"] = ""
        if _judges_both(task):
            units[f"{task.name}/energy_forces_within_threshold"] = ""
        if task.gradient_stress:
            units[f"{task.name}/stress_mae"] = "meV/Å³"
        for target in task.of_structures:
            name = f"{task.name}/{target.label}"
            if not isinstance(target, ClassTarget):
                units[f"{name}_mae"] = target.unit
                continue
            units |= {f"{name}_{kind}": "" for kind in ("accuracy", "balanced_accuracy")}
            units[f"{name}_cross_entropy"] = "nat"
            if target.classes == 2:
                units[f"{name}_roc_auc"] = ""
    return units


def _judges_both(task: Task) -> bool:
    """Whether energy and forces are judged together: an energy of weight 0 is known but for a constant at best."""
    return task.forces is not None and task.energy is not None and task.energy.weight > 0.0


#: How the names of metrics end that are no errors: the larger, the better.
_LARGER = ("_cosine_free", "_within_threshold", "_accuracy", "_roc_auc")


def larger_is_better(name: str) -> bool:
    """Whether a metric is a share, a cosine or an area rather than an error."""
    return name.endswith(_LARGER)


def note_on_direction(names: Iterable[str]) -> str:
    """A sentence that names those metrics of a table of which the larger is the better; empty without any."""
    found = sorted({name.rpartition("/")[2] for name in names if larger_is_better(name)})
    return f"The larger, the better: {', '.join(found)}." if found else ""


def error_of(metrics: Mapping[str, float], task: Task, label: str) -> float | None:
    """The number that tells how wrong one label is: its mean absolute error, or 1 - balanced accuracy of classes.

    None where the metrics say nothing of the label. Errors of forces and stress are in meV/Å and meV/Å³, others in the
    label's unit.
    """
    if isinstance(task.target(label), ClassTarget):
        right = metrics.get(f"{task.name}/{label}_balanced_accuracy")
        return None if right is None else 1.0 - right
    return metrics.get(f"{task.name}/{label}_mae")


class Metrics:
    """Accumulator over batches.

    Use: `update` per batch; over ranks, add up `state` (for example by all-reduce with sum) in place; then `compute`.
    Nothing is read on the host before `compute`.
    """

    def __init__(self, tasks: Sequence[Task], device: torch.device | str = "cpu") -> None:
        self.tasks = tuple(tasks)
        self.names = tuple(metric_units(tasks))
        self._columns = _columns(tasks)
        width = max((place.stop for place in self._columns.values()), default=0)
        #: Sums and counts, float64 [2, ...]: a column per mean, several for what is counted by class or by score.
        self.state = torch.zeros(2, width, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Mapping[str, Tensor]], batch: Structures) -> None:
        """Add a batch: `outputs` are the model's, normalised. Rows without the label do not count."""
        for task in self.tasks:
            for name, (errors, there) in _errors(task, outputs[task.name], batch).items():
                counted = there.expand_as(errors)
                self._add(name, torch.stack((torch.where(counted, errors, 0.0).sum(), counted.sum().double()))[:, None])
            for name, counts in _class_counts(task, outputs[task.name], batch).items():
                self._add(name, counts)

    def _add(self, name: str, columns: Tensor) -> None:
        self.state[:, self._columns[name]] += columns.to(self.state.device)

    def compute(self) -> dict[str, float]:
        """Values by name, in the order of `metric_units`; what has no label at all is left out."""
        state = self.state.cpu()
        found: dict[str, float | None] = {}
        for name, place in self._columns.items():
            if name.endswith(_HITS):
                found[name.removesuffix(_HITS) + "_balanced_accuracy"] = classes.balanced_accuracy(state[:, place])
            elif name.endswith(_SCORES):
                found[name.removesuffix(_SCORES) + "_roc_auc"] = classes.roc_auc(state[:, place])
            else:
                total, count = state[:, place].flatten().tolist()
                found[name] = total / count if count > 0 else None
        return {name: value for name in self.names if (value := found.get(name)) is not None}


#: End the names of columns that several metrics come from.
_HITS, _SCORES = ":hits", ":scores"


def _columns(tasks: Sequence[Task]) -> dict[str, slice]:
    """Where everything stands in the state."""
    widths = {name: 1 for name in metric_units(tasks) if not name.endswith(("_balanced_accuracy", "_roc_auc"))}
    for task in tasks:
        if (target := task.classification) is not None:
            widths[f"{task.name}/{target.label}{_HITS}"] = target.classes
            if target.classes == 2:
                widths[f"{task.name}/{target.label}{_SCORES}"] = classes.BINS
    places, start = {}, 0
    for name, width in widths.items():
        places[name] = slice(start, start + width)
        start += width
    return places


def _class_counts(task: Task, outputs: Mapping[str, Tensor], batch: Structures) -> dict[str, Tensor]:
    """Column name → [2, width], for the task's classification."""
    target = task.classification
    if target is None or target.label not in batch.labels:
        return {}
    logits, numbers = outputs[target.label], class_numbers(task, target.label, batch)
    there, name = present(task, target.label, batch), f"{task.name}/{target.label}"
    counts = {name + _HITS: classes.hits_by_class(logits, numbers, there, target)}
    if target.classes == 2:
        counts[name + _SCORES] = classes.scores_by_class(logits, numbers, there, target)
    return counts


def _errors(task: Task, outputs: Mapping[str, Tensor], batch: Structures) -> dict[str, tuple[Tensor, Tensor]]:
    """Metric name → numbers whose mean it is, and which of them count (same leading dimension)."""
    rows = batch.rows[task.name]
    predicted = denormalize(task, outputs, batch)
    result: dict[str, tuple[Tensor, Tensor]] = {}
    for label in task.labels:
        if label not in batch.labels:
            continue
        there = present(task, label, batch)
        target = task.target(label)
        if isinstance(target, ClassTarget):
            numbers = class_numbers(task, label, batch)
            right = (classes.chosen(predicted[label], target) == numbers).double()
            lost = classes.cross_entropy(predicted[label], numbers, target, weighted=False)
            result[f"{task.name}/{label}_accuracy"] = right, there
            result[f"{task.name}/{label}_cross_entropy"] = lost, there
            continue
        if label == "forces":
            result |= _force_errors(task, predicted, batch)
            continue
        values = batch.labels[label].values.double()
        errors = (predicted[label] - values.index_select(0, rows.structures)).abs()
        errors = 1000.0 * errors if label == "stress" else errors
        result[f"{task.name}/{label}_mae"] = errors, there.unsqueeze(-1) if errors.dim() > 1 else there
        if label == "energy":
            natoms = batch.natoms.index_select(0, rows.structures).clamp(min=1)
            result[f"{task.name}/energy_mae_per_atom"] = 1000.0 * errors / natoms, there
    return result


def _force_errors(task: Task, predicted: Mapping[str, Tensor], batch: Structures) -> dict[str, tuple[Tensor, Tensor]]:
    """As `_errors`, of forces, and of energy and forces together."""
    rows, has_forces = batch.rows[task.name], present(task, "forces", batch)
    labelled = batch.labels["forces"].values.double().index_select(0, rows.atoms)
    errors = (predicted["forces"] - labelled).abs()
    there = has_forces.index_select(0, rows.atom_structure)
    free = there & ~batch.fixed.index_select(0, rows.atoms)
    magnitudes = force_metrics.magnitude_errors(predicted["forces"], labelled)
    result = {
        "forces_mae": (1000.0 * errors, there.unsqueeze(-1)),
        "forces_mae_free": (1000.0 * errors, free.unsqueeze(-1)),
        "forces_magnitude_mae_free": (1000.0 * magnitudes, free),
        "forces_cosine_free": (force_metrics.cosines(predicted["forces"], labelled), free),
    }
    if _judges_both(task) and "energy" in batch.labels:
        energies = batch.labels["energy"].values.double().index_select(0, rows.structures)
        energy_errors = (predicted["energy"] - energies).abs()
        right = force_metrics.within_thresholds(energy_errors, errors, free, rows.atom_structure)
        result["energy_forces_within_threshold"] = right.double(), has_forces & present(task, "energy", batch)
    return {f"{task.name}/{name}": value for name, value in result.items()}
