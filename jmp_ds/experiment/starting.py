"""What a fine-tuning run knows before its first step: errors to compare with, rates, references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jmp_ds.bundle import Bundle
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.data.order import permute
from jmp_ds.data.selection import Selection
from jmp_ds.data.sources import Source
from jmp_ds.experiment.evaluate import evaluate
from jmp_ds.experiment.loaders import eval_loader
from jmp_ds.experiment.transfer import rescale_heads, transfer_weights
from jmp_ds.graphs.batch import Batch
from jmp_ds.tasks.model import MultiTaskModel, Outputs
from jmp_ds.tasks.specs import Task
from jmp_ds.training.processes import Processes

#: Validation structures per task that errors before the first step are taken from, at most.
STRUCTURES = 1000
#: Names of the predictors that are always compared: a constant, and the run's network as it starts.
CONSTANT, THIS_RUN = "constant", "before step 1"


@dataclass(frozen=True)
class Start:
    """Before the first step.

    Attributes:
        errors: by predictor (`CONSTANT`, `THIS_RUN`, `head of TASK`), its validation metrics.
        references: by task and element, in eV: before (of the bundle's task) and now.
    """

    errors: dict[str, dict[str, float]]
    references: dict[str, dict[int, tuple[float, float]]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def look_before(
    config: TrainingConfig,
    model: MultiTaskModel,
    val: Sequence[Source],
    bundle: Bundle | None,
    donors: Mapping[str, Task],
    processes: Processes,
) -> Start:
    """Errors on validation structures before anything is learned; collective.

    Compared are a constant (element references and the mean; no forces), the run's model as it starts, and each head of the
    bundle that could have been taken for all tasks and was not.

    Args:
        config: of the run.
        model: as the run will start with.
        val: validation structures.
        bundle: what it starts from.
        donors: by task, the bundle's task whose heads it takes.
        processes: share the evaluation.
    """
    known = references_before_and_now(model.tasks, bundle, donors)
    if not val:
        return Start({}, known)
    loader = eval_loader(config, model.tasks, [_part(source) for source in val], processes)
    contenders: dict[str, MultiTaskModel | Constant] = {CONSTANT: Constant(model.tasks), THIS_RUN: model}
    for task in bundle.tasks if bundle is not None else ():
        taken = {donor.name for donor in donors.values()} == {task.name}
        if not taken and all(_covers(task, own) for own in model.tasks):
            contenders[f"head of {task.name}"] = _with_heads_of(task, model, bundle)
    errors = {}
    for name, contender in contenders.items():
        contender.to(processes.device).eval()
        errors[name] = evaluate(contender, loader, processes).metrics
    return Start(errors, known)


def references_before_and_now(
    tasks: Sequence[Task], bundle: Bundle | None, donors: Mapping[str, Task]
) -> dict[str, dict[int, tuple[float, float]]]:
    """By task that took references over, element → (before, now) in eV, where they differ or are not zero."""
    found = {}
    for task in tasks:
        if bundle is None or task.name not in donors:
            continue
        before = donors[task.name].normalize_by("energy").references
        now = task.normalize_by("energy").references
        pairs = {z: (_at(before, z), _at(now, z)) for z in range(max(len(before), len(now)))}
        found[task.name] = {z: pair for z, pair in pairs.items() if pair != (0.0, 0.0)}
    return found


class Constant(nn.Module):
    """Predicts the mean and the element references, and no forces: zero in normalised units."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Args: tasks: normalised."""
        super().__init__()
        self.tasks = tuple(tasks)

    def forward(self, batch: Batch) -> Outputs:
        """As `MultiTaskModel.forward`."""
        return {task.name: {label: self._zeros(batch, task, label) for label in task.labels} for task in self.tasks}

    @staticmethod
    def _zeros(batch: Batch, task: Task, label: str) -> Tensor:
        rows = batch.rows[task.name]
        count = rows.atoms.shape[0] if label == "forces" else rows.structures.shape[0]
        return torch.zeros(count, *task.shape(label), device=batch.pos.device)


def _part(source: Source) -> Source:
    """So many structures of a split, drawn at random."""
    if len(source) <= STRUCTURES:
        return source
    places = np.sort(permute(np.arange(STRUCTURES, dtype=np.int64), len(source), "start"))
    return replace(source, indices=Selection.of(source.indices[places]))


def _covers(donor: Task, task: Task) -> bool:
    """Whether the donor has every head that the task needs."""
    needed = {label for label in task.labels if not (task.gradient_forces and label in ("forces", "stress"))}
    have = {label for label in donor.labels if not (donor.gradient_forces and label in ("forces", "stress"))}
    return needed <= have and not task.other_heads(donor)


def _with_heads_of(donor: Task, model: MultiTaskModel, bundle: Bundle | None) -> MultiTaskModel:
    """The model with the heads of one of the bundle's tasks, in the units of its own tasks."""
    assert bundle is not None
    bias = donor.energy is None or donor.energy.bias
    tasks = [t if t.energy is None else replace(t, energy=replace(t.energy, bias=bias)) for t in model.tasks]
    other = MultiTaskModel(model.config, tasks, model.operators.messages)
    transfer_weights(other, bundle.state, {task.name: donor.name for task in tasks})
    rescale_heads(other, dict.fromkeys((task.name for task in tasks), donor))
    return other


def _at(references: Sequence[float], z: int) -> float:
    return references[z] if z < len(references) else 0.0
