"""Mean absolute errors per task in physical units, kept as sums and counts so that ranks can be added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from jmp_ds.graphs.batch import Structures
from jmp_ds.tasks.normalise import denormalize, present
from jmp_ds.tasks.specs import Task


def metric_units(tasks: Sequence[Task]) -> dict[str, str]:
    """Every metric's name → unit, in a fixed order.

    `TASK/energy_mae` eV; `TASK/energy_mae_per_atom` meV/atom; `TASK/forces_mae` meV/Å over the components of all atoms;
    `TASK/forces_mae_free` meV/Å over atoms not held fixed (OCP's convention); `TASK/LABEL_mae` in the scalar's unit.
    """
    units = {}
    for task in tasks:
        if task.energy is not None:
            units[f"{task.name}/energy_mae"] = "eV"
            units[f"{task.name}/energy_mae_per_atom"] = "meV/atom"
        if task.forces is not None:
            units[f"{task.name}/forces_mae"] = "meV/Å"
            units[f"{task.name}/forces_mae_free"] = "meV/Å"
        units.update({f"{task.name}/{target.label}_mae": target.unit for target in task.scalars})
    return units


class Metrics:
    """Accumulator over batches.

    Use: `update` per batch; over ranks, add up `state` (for example by all-reduce with sum) in place; then `compute`.
    Nothing is read on the host before `compute`.
    """

    def __init__(self, tasks: Sequence[Task], device: torch.device | str = "cpu") -> None:
        self.tasks = tuple(tasks)
        self.names = tuple(metric_units(tasks))
        #: Sums and counts, float64 [2, number of metrics].
        self.state = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, outputs: Mapping[str, Mapping[str, Tensor]], batch: Structures) -> None:
        """Add a batch: `outputs` are the model's, normalised. Rows without the label do not count."""
        for task in self.tasks:
            for name, (errors, there) in _errors(task, outputs[task.name], batch).items():
                counted = there.expand_as(errors)
                pair = torch.stack((torch.where(counted, errors, 0.0).sum(), counted.sum().double()))
                self.state[:, self.names.index(name)] += pair.to(self.state.device)

    def compute(self) -> dict[str, float]:
        """Means by name; what has no label at all is left out."""
        sums, counts = self.state.cpu().tolist()
        return {name: s / n for name, s, n in zip(self.names, sums, counts, strict=True) if n > 0}


def _errors(task: Task, outputs: Mapping[str, Tensor], batch: Structures) -> dict[str, tuple[Tensor, Tensor]]:
    """Metric name → absolute errors in its unit, and which of them count (same leading dimension)."""
    rows = batch.rows[task.name]
    predicted = denormalize(task, outputs, batch)
    result: dict[str, tuple[Tensor, Tensor]] = {}
    for label in task.labels:
        if label not in batch.labels:
            continue
        there = present(task, label, batch)
        values = batch.labels[label].values.double()
        if label == "forces":
            errors = 1000.0 * (predicted[label] - values.index_select(0, rows.atoms)).abs()
            there = there.index_select(0, rows.atom_structure)
            free = there & ~batch.fixed.index_select(0, rows.atoms)
            result[f"{task.name}/forces_mae"] = errors, there.unsqueeze(-1)
            result[f"{task.name}/forces_mae_free"] = errors, free.unsqueeze(-1)
            continue
        errors = (predicted[label] - values.index_select(0, rows.structures)).abs()
        result[f"{task.name}/{label}_mae"] = errors, there
        if label == "energy":
            natoms = batch.natoms.index_select(0, rows.structures).clamp(min=1)
            result[f"{task.name}/energy_mae_per_atom"] = 1000.0 * errors / natoms, there
    return result
