"""The structures of a run: stores, splits, and tasks with their normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jmp_ds.config.checks import Checked
from jmp_ds.config.loading import Resolved
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.config.tasks import SplitConfig, TaskConfig
from jmp_ds.data.order import permute
from jmp_ds.data.references import LabelStatistics, Statistics, fit_statistics, normalization
from jmp_ds.data.selection import Selection, keep_selections, kept_selections
from jmp_ds.data.splits import split, split_from_files
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.files import write_json
from jmp_ds.tasks.specs import ClassTarget, DipoleTarget, ExtentTarget, Normalization, Task

#: References, means and scales come from so many training structures at most.
STATISTICS_FROM = 1_000_000


@dataclass(frozen=True)
class TaskData:
    """The structures of one task.

    Attributes:
        store: where they are.
        splits: by name: `train` always, `val` and `test` where there are any; ascending.
    """

    store: Store
    splits: Mapping[str, Selection]


def draw_splits(resolved: Resolved[TrainingConfig], checked: Checked, keep_in: Path) -> dict[str, TaskData]:
    """Splits of every task's store: drawn once and kept in files, which all processes map into their memory.

    Args:
        resolved, checked: the configuration.
        keep_in: folder for one folder per task; splits found there are taken if they are of the same store and rule.

    Raises:
        UserError: a split that cannot be made, with the place of its key.
    """
    data = {}
    for name, config in resolved.config.tasks.items():
        store = checked.stores[name]
        try:
            data[name] = TaskData(store, _splits(store, config, keep_in / name))
        except UserError as error:
            raise resolved.complaint(f"tasks.{name}.split", str(error)) from None
    return data


def _splits(store: Store, config: TaskConfig, folder: Path) -> dict[str, Selection]:
    wanted = config.split
    shares = {} if wanted.files is not None else wanted.shares(len(store))
    if shares == {"train": 1.0} or shares == {"train": len(store)}:
        return {"train": Selection.every(len(store))}
    origin = {"fingerprint": store.summary.fingerprint, "split": wanted.model_dump(mode="json"), **_contents(wanted)}
    kept = kept_selections(folder, origin)
    if kept is None:
        if shares:
            drawn = split(store.groups, shares, seed=wanted.seed, by=wanted.by)
        else:
            drawn = split_from_files(_files(wanted), len(store))
        keep_selections(folder, drawn, origin)
        # Where processes do not share the folder, another one may be writing the same at this moment.
        kept = kept_selections(folder, origin) or {name: Selection.of(indices) for name, indices in drawn.items()}
    return kept


def _files(wanted: SplitConfig) -> dict[str, str]:
    """The user's files by split."""
    return {k: v for k, v in wanted.files.model_dump().items() if v is not None} if wanted.files is not None else {}


def _contents(wanted: SplitConfig) -> dict[str, Any]:
    """What the user's files were when a split was taken from them: size and time of change."""
    files = {name: Path(file) for name, file in _files(wanted).items()}
    return {"files": {n: [f.stat().st_size, f.stat().st_mtime_ns] for n, f in files.items() if f.is_file()}}


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
    """Statistics of the training split, or of a random part of a very large one, with references where wanted."""
    fit = "energy" in task.labels and config.references in ("auto", "fit")
    referenced = ["energy"] * fit + [s.label for s in config.all_scalars if s.references]
    start = donor.normalize_by("energy").references if donor is not None else ()
    train = data.splits["train"]
    if len(train) > STATISTICS_FROM:
        places = np.sort(permute(np.arange(STATISTICS_FROM, dtype=np.int64), len(train), "statistics"))
    else:
        places = np.arange(len(train), dtype=np.int64)
    return fit_statistics(
        data.store,
        train[places],
        referenced=referenced,
        base_references={"energy": start} if fit and start else None,
        progress=progress,
    )


def _normalization(
    task: Task, config: TaskConfig, statistics: Statistics, donor: Task | None
) -> dict[str, Normalization]:
    """By label. A task with gradient forces whose structures carry no energy takes the scale of the forces for it."""
    if config.references == "keep" and donor is not None:
        kept = {k: n for k, n in donor.normalization.items() if k in task.labels}
        return kept | ({"stress": Normalization(std=donor.scale("energy"))} if task.gradient_stress else {})
    labels = [label for label in task.labels if label in statistics.labels]
    check_labels(task, statistics)
    missing = sorted(set(task.labels) - set(labels) - ({"energy"} if task.gradient_forces else set()))
    if missing:
        raise UserError(
            f"task {task.name}: no training structure has the label {missing[0]!r}; change tasks.{task.name}.split"
        )
    norms = {
        label: Normalization(**values)
        for label, values in normalization(statistics, labels, gradient_forces=task.gradient_forces).items()
        if not isinstance(task.target(label), ClassTarget)
    }
    norms |= {label: _scale_alone(statistics.labels[label]) for label in labels if _centred(task, label)}
    if task.gradient_forces and "energy" not in norms:
        norms["energy"] = Normalization(std=norms["forces"].std)
    if task.gradient_stress:
        norms["stress"] = Normalization(std=norms["energy"].std)
    return norms


def _centred(task: Task, label: str) -> bool:
    """Whether a label is made of charges: a mean would give extent and dipole to an atom alone."""
    return isinstance(task.target(label), ExtentTarget | DipoleTarget)


def _scale_alone(label: LabelStatistics) -> Normalization:
    """Zero stays zero."""
    return Normalization(std=label.rms if label.rms > 0.0 else 1.0)


def check_labels(task: Task, statistics: Statistics) -> None:
    """Labels of classes must be numbers of classes; a dipole must be the vector or the length that is asked for.

    Raises:
        UserError: a number below zero or beyond the classes, or a label of another shape.
    """
    dipole = task.dipole
    if dipole is not None and (moment := statistics.labels.get(dipole.label)) is not None:
        wanted = 1 if dipole.norm else 3
        if moment.values != wanted * moment.count:
            raise UserError(
                f"task {task.name}: label {dipole.label!r} has {moment.values / moment.count:g} numbers per structure, "
                f"not {wanted}; set dipole.norm to {str(not dipole.norm).lower()}"
            )
    target = task.classification
    found = statistics.labels.get(target.label) if target is not None else None
    if target is not None and found is not None and (found.minimum < 0 or found.maximum > target.classes - 1):
        raise UserError(
            f"task {task.name}: label {target.label!r} goes from {found.minimum:g} to {found.maximum:g}, but "
            f"{target.classes} classes are numbered 0 to {target.classes - 1}; set classification.classes"
        )
