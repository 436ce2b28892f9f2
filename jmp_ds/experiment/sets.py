"""The structures of a run: stores, splits, and tasks with their normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jmp_ds.config.checks import Checked
from jmp_ds.config.loading import Resolved
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.config.tasks import TaskConfig
from jmp_ds.data.references import Statistics, fit_statistics, normalization
from jmp_ds.data.splits import split, split_from_files
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.files import write_json
from jmp_ds.tasks.specs import Normalization, Task

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TaskData:
    """The structures of one task.

    Attributes:
        store: where they are.
        splits: indices by name: `train` always, `val` and `test` where there are any; sorted.
    """

    store: Store
    splits: Mapping[str, Ints]


def draw_splits(resolved: Resolved[TrainingConfig], checked: Checked) -> dict[str, TaskData]:
    """Splits of every task's store.

    Raises:
        UserError: a split that cannot be made, with the place of its key.
    """
    data = {}
    for name, config in resolved.config.tasks.items():
        store = checked.stores[name]
        try:
            data[name] = TaskData(store, _splits(store, config))
        except UserError as error:
            raise resolved.complaint(f"tasks.{name}.split", str(error)) from None
    return data


def _splits(store: Store, config: TaskConfig) -> dict[str, Ints]:
    wanted = config.split
    if wanted.files is not None:
        files = {k: v for k, v in wanted.files.model_dump().items() if v is not None}
        return split_from_files(files, len(store))
    return split(store.groups, wanted.shares(len(store)), seed=wanted.seed, by=wanted.by)


def normalised_tasks(
    configs: Mapping[str, TaskConfig],
    checked: Checked,
    data: Mapping[str, TaskData],
    base: Mapping[str, Task],
    *,
    keep_in: Path | None = None,
    progress: bool = False,
) -> tuple[Task, ...]:
    """The tasks with references, means and scales of their training structures.

    Args:
        configs: by task name.
        checked: holds the tasks without normalisation.
        data: splits by task.
        base: by task name, the pre-trained task whose references the new ones stay closest to; may lack tasks.
        keep_in: folder for one `TASK.json` each with the statistics, for people and reports.
        progress: show bars.
    """
    tasks = []
    for task in checked.tasks:
        config = configs[task.name]
        donor = base.get(task.name)
        statistics = _statistics(task, config, data[task.name], donor, progress)
        if keep_in is not None:
            keep_in.mkdir(parents=True, exist_ok=True)
            write_json(keep_in / f"{task.name}.json", statistics.to_dict())
        level = str(data[task.name].store.metadata.get("level_of_theory", ""))
        norms = _normalization(task, config, statistics, donor) if config.normalize else {}
        tasks.append(replace(task, normalization=norms, level_of_theory=level))
    return tuple(tasks)


def _statistics(task: Task, config: TaskConfig, data: TaskData, donor: Task | None, progress: bool) -> Statistics:
    """Statistics of the training split, with references where they are wanted."""
    fit = "energy" in task.labels and config.references in ("auto", "fit")
    start = donor.normalize_by("energy").references if donor is not None else ()
    return fit_statistics(
        data.store,
        data.splits["train"],
        referenced=("energy",) if fit else (),
        base_references={"energy": start} if fit and start else None,
        progress=progress,
    )


def _normalization(
    task: Task, config: TaskConfig, statistics: Statistics, donor: Task | None
) -> dict[str, Normalization]:
    """By label. A task with gradient forces whose structures carry no energy takes the scale of the forces for it."""
    if config.references == "keep" and donor is not None:
        return {k: n for k, n in donor.normalization.items() if k in task.labels}
    labels = [label for label in task.labels if label in statistics.labels]
    missing = sorted(set(task.labels) - set(labels) - ({"energy"} if task.gradient_forces else set()))
    if missing:
        raise UserError(
            f"task {task.name}: no training structure has the label {missing[0]!r}; change tasks.{task.name}.split"
        )
    norms = {
        label: Normalization(**values)
        for label, values in normalization(statistics, labels, gradient_forces=task.gradient_forces).items()
    }
    if task.gradient_forces and "energy" not in norms:
        norms["energy"] = Normalization(std=norms["forces"].std)
    return norms
