"""A model on a split: errors in physical units, and the pairs for parity plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from jmp_ds.data.loading import EvalLoader
from jmp_ds.experiment.breakdown import Sums, add_errors, joined
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.unbuilt import Unbuilt
from jmp_ds.report import MAX_POINTS, Parity
from jmp_ds.tasks.metrics import Metrics
from jmp_ds.tasks.model import Outputs
from jmp_ds.tasks.normalise import denormalize, offset, present
from jmp_ds.tasks.specs import ClassTarget, Task
from jmp_ds.training.processes import Processes

Array = NDArray[np.float64]
#: (task, label) → reference and predicted values, one array per batch.
_Pairs = dict[tuple[str, str], list[tuple[Array, Array]]]


class Network(Protocol):
    """What can be evaluated: tasks, and normalised outputs for a batch."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted."""

    def __call__(self, batch: Batch, /) -> Outputs:
        """As `MultiTaskModel.forward`."""


@dataclass(frozen=True)
class Evaluation:
    """A model on one split.

    Attributes:
        metrics: by name (see `metric_units`).
        parity: one panel per task and label, thinned to a number that can be drawn; energies per atom, without what
            the element references explain.
        breakdown: metric → kind (element, atoms, config_type) → value → mean absolute error; empty if not wanted.
    """

    metrics: dict[str, float]
    parity: list[Parity]
    breakdown: dict[str, dict[str, dict[str, float]]]


def evaluate(
    model: Network,
    loader: EvalLoader,
    processes: Processes,
    *,
    config_types: Mapping[str, str] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Run over every structure of the loader once, all processes together.

    Args:
        model: in evaluation mode, on the processes' device.
        loader: made for this process's rank.
        processes: those that share the work.
        config_types: the source's own kind of a structure, by id (may be empty); None: no breakdown is wanted.
        progress: show a bar (by the first process).
    """
    metrics = Metrics(model.tasks, processes.device)
    pairs: _Pairs = {(task.name, label): [] for task in model.tasks for label in _drawn(task)}
    sums: Sums = {}
    for batch in _tracked(loader, progress and processes.first):
        moved = batch.to(processes.device)
        with torch.no_grad():
            outputs = model(moved)
        metrics.update(outputs, moved)
        for task in model.tasks:
            _collect(pairs, task, outputs[task.name], moved)
            if config_types is not None:
                add_errors(sums, task, outputs[task.name], moved, config_types)
    state = processes.sum(metrics.state.flatten().tolist())
    metrics.state = torch.tensor(state, dtype=torch.float64).reshape(2, -1)
    parts = processes.gather({key: _joined(values) for key, values in pairs.items()})
    panels = [_panel(task, label, parts) for task in model.tasks for label in _drawn(task)]
    return Evaluation(metrics.compute(), panels, joined(processes.gather(sums)))


def _drawn(task: Task) -> list[str]:
    """Labels that a parity plot can show: all but classes."""
    return [label for label in task.labels if not isinstance(task.target(label), ClassTarget)]


def _tracked(loader: EvalLoader, show: bool) -> Iterator[Batch | Unbuilt]:
    yield from track(loader, "evaluating", len(loader), console=Console(stderr=True), disable=not show)


def _collect(pairs: _Pairs, task: Task, outputs: Mapping[str, Tensor], batch: Batch) -> None:
    """Add one batch's labelled rows."""
    rows = batch.rows[task.name]
    predicted = denormalize(task, outputs, batch)
    for label in _drawn(task):
        if label not in batch.labels:
            continue
        there = present(task, label, batch)
        if label == "forces":
            values = batch.labels[label].values.index_select(0, rows.atoms)
            there = there.index_select(0, rows.atom_structure)
            found = values, predicted[label]
        else:
            values = batch.labels[label].values.index_select(0, rows.structures).double()
            found = values, predicted[label]
            if label == "energy":
                natoms = batch.natoms.index_select(0, rows.structures).clamp(min=1)
                known = offset(task.normalize_by(label), batch, rows)
                found = (values - known) / natoms, (predicted[label] - known) / natoms
        pair = tuple(x.double()[there].reshape(-1).cpu().numpy() for x in found)
        pairs[task.name, label].append((pair[0], pair[1]))


def _joined(values: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """One array each, thinned evenly to what can be drawn."""
    if not values:
        return np.zeros(0), np.zeros(0)
    reference, predicted = (np.concatenate([pair[i] for pair in values]) for i in (0, 1))
    every = max(1, -(-len(reference) // MAX_POINTS))
    return reference[::every], predicted[::every]


def _panel(task: Task, label: str, parts: Sequence[Mapping[tuple[str, str], tuple[Array, Array]]]) -> Parity:
    reference, predicted = _joined([part[task.name, label] for part in parts])
    units = {**task.units, "energy": "eV/atom"}
    what = "energy per atom, less references" if label == "energy" else label
    return Parity(f"{task.name}: {what}", units[label], reference, predicted)
