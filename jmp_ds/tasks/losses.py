"""Losses as sums, and the counts that belong to them.

Nothing here divides: only who knows all ranks and the whole window can. Published weighting (specification section 7):
one mean over all structures that carry an energy, one over all that carry forces, whatever their task. With `per_task`,
every task and label has a mean of its own. Labels of structures (scalars, extents, dipoles, classes) have one mean per
name.

The published classification loss is a sum over the batch, so its learning rate depends on the size of the batch
(specification, 11.35); here it is the mean over structures like every other, and `weight` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from jmp_ds.graphs.batch import Structures
from jmp_ds.tasks.classes import cross_entropy
from jmp_ds.tasks.normalise import class_numbers, normalized_target, present
from jmp_ds.tasks.specs import ClassTarget, DipoleTarget, StressTarget, Task

#: Added to every component of a force error before its length is taken, as published.
FORCE_EPS = 1e-6


def loss_groups(tasks: Sequence[Task], *, per_task: bool = False) -> dict[str, list[tuple[Task, str]]]:
    """Which (task, label) terms share one count.

    Group names are `energy`, `forces`, `forces_per_atom` (tasks whose force loss is a mean over atoms) and the other
    labels; with `per_task`, `task/name`. The order follows the tasks, so it is the same on every rank.
    """
    groups: dict[str, list[tuple[Task, str]]] = {}
    for task in tasks:
        for label in task.labels:
            per_atom = label == "forces" and task.forces is not None and task.forces.loss == "atom"
            name = "forces_per_atom" if per_atom else label
            groups.setdefault(f"{task.name}/{name}" if per_task else name, []).append((task, label))
    return groups


def count_labels(batch: Structures, tasks: Sequence[Task], *, per_task: bool = False) -> dict[str, int]:
    """How many terms each group has in this batch: structures, or atoms for `forces_per_atom`.

    Needs neither a model nor a graph; best called before the batch goes to a device, because the counts are read on the
    host. Targets of weight 0 are not trained and do not count.
    """
    return {
        group: sum(_count(task, label, batch) for task, label in terms if _weight(task, label) > 0.0)
        for group, terms in loss_groups(tasks, per_task=per_task).items()
    }


def loss_sums(
    outputs: Mapping[str, Mapping[str, Tensor]], batch: Structures, tasks: Sequence[Task], *, per_task: bool = False
) -> dict[str, Tensor]:
    """Weighted sum of the errors of each group; never a mean.

    Args:
        outputs: normalised, from `MultiTaskModel.forward`.
        batch: the batch with its labels; rows without the label contribute exactly zero.
        tasks: of the model.
        per_task: as in `count_labels`.

    Returns:
        One 0-d tensor per group, float32 at least, always every group, connected to the outputs even when it is zero.
    """
    return {
        group: torch.stack([_term(outputs[task.name][label], task, label, batch) for task, label in terms]).sum()
        for group, terms in loss_groups(tasks, per_task=per_task).items()
    }


def _term(output: Tensor, task: Task, label: str, batch: Structures) -> Tensor:
    """The weighted error sum of one label of one task."""
    with torch.autocast(output.device.type, enabled=False):
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        errors = _errors(output, task, label, batch)
        there = present(task, label, batch)
        if label == "forces":
            there = there.index_select(0, batch.rows[task.name].atom_structure)
        total: Tensor = torch.where(there, errors, 0.0).sum()
        return total * _weight(task, label)


def _errors(output: Tensor, task: Task, label: str, batch: Structures) -> Tensor:
    """Error of every row of one label: [B_t], or [N_t] for forces; meaningless where the label is absent."""
    spec = task.target(label)
    if isinstance(spec, ClassTarget):
        zeros = torch.zeros(output.shape[0], dtype=torch.int64, device=output.device)
        return cross_entropy(output, class_numbers(task, label, batch) if label in batch.labels else zeros, spec)
    if label not in batch.labels:
        target = torch.zeros_like(output)
    else:
        target = normalized_target(task, label, batch, output.dtype)
    if label == "forces":
        return _force_errors(output, target, task, batch)
    if isinstance(spec, StressTarget):
        return (output - target).abs().mean(dim=-1)
    if isinstance(spec, DipoleTarget) and not spec.norm:
        length: Tensor = torch.linalg.vector_norm(output - target + FORCE_EPS, dim=-1)
        return length
    return (output - target).abs()


def _force_errors(output: Tensor, target: Tensor, task: Task, batch: Structures) -> Tensor:
    """Length of the error of every force [N_t], divided by the structure's number of atoms in a structure-wise loss."""
    errors: Tensor = torch.linalg.vector_norm(output - target + FORCE_EPS, dim=-1)
    if task.forces is not None and task.forces.loss == "atom":
        return errors
    rows = batch.rows[task.name]
    natoms = batch.natoms.index_select(0, rows.structures).index_select(0, rows.atom_structure)
    return errors / natoms.to(errors.dtype)


def _count(task: Task, label: str, batch: Structures) -> int:
    """Structures (or atoms) of the task that carry the label."""
    there = present(task, label, batch)
    if label == "forces" and task.forces is not None and task.forces.loss == "atom":
        there = there.index_select(0, batch.rows[task.name].atom_structure)
    return int(there.sum())


def _weight(task: Task, label: str) -> float:
    """Factor of one label in the loss."""
    return task.target(label).weight
