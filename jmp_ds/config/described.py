"""Recipes told to people: a row of values per target, and a whole configuration with the place of every value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from jmp_ds.config.finetune import FinetuneConfig
from jmp_ds.config.loading import Resolved, recipe_alone
from jmp_ds.config.targets import Target, published_numbers, remark
from jmp_ds.config.tasks import ClassificationConfig, ScalarConfig, SpatialExtentConfig, TaskConfig
from jmp_ds.config.yaml_files import KeyPath

#: What a user has to say beside a recipe.
GIVEN = {"run": {"dir": "RUN_FOLDER"}, "from": "BUNDLE"}
_TO_GIVE = (("run", "dir"), ("from", "bundle"))


def alone(target: Target, fold: int | None) -> Resolved[FinetuneConfig]:
    """The configuration that a recipe makes, with stand-ins for what it leaves to the user."""
    return recipe_alone(target, target.check_fold(fold), GIVEN)


def metric_of(task: TaskConfig, name: str) -> tuple[str, str]:
    """Name and unit of the metric that tells how good a run is (see `metric_units`)."""
    if task.forces is not None:
        return f"{name}/forces_mae", "meV/Å"
    if task.energy is not None and not task.of_structures:
        return f"{name}/energy_mae", "eV"
    target = task.of_structures[0]
    if isinstance(target, ClassificationConfig):
        return f"{name}/{target.label}_balanced_accuracy", ""
    return f"{name}/{target.label}_mae", target.unit


def values_of(target: Target) -> dict[str, Any]:
    """The values by which targets differ, and those that people ask for."""
    config = alone(target, None).config
    task = config.tasks[target.task]
    metric, unit = metric_of(task, target.task)
    return {
        "recipe": target.name,
        "store": target.store,
        "split": target.split,
        "folds": target.folds,
        **_head(task),
        "cutoff": task.graph.cutoff,
        "max_neighbors": task.graph.max_neighbors,
        "fewer_neighbors": [step.model_dump() for step in task.graph.fewer_neighbors or ()],
        "batch": config.sampling.batch.structures,
        "lr": config.train.optimizer.lr,
        "normalize": task.normalize,
        "published_precision": target.precision,
        "deepspeed": config.engine.deepspeed,
        "plateau_patience": config.train.schedule.plateau_patience,
        "stop_after": config.train.early_stopping.patience if config.train.early_stopping is not None else None,
        "metric": metric.partition("/")[2],
        "unit": unit,
        "published_normalisation": published_numbers(target, 0 if target.folds else None),
    }


def _head(task: TaskConfig) -> dict[str, Any]:
    """What is predicted and how."""
    if task.forces is not None:
        kind = f"{task.forces.kind} forces"
        return {"label": "forces", "head": kind, "reduction": "", "references": False, "weight": task.forces.weight}
    target = task.of_structures[0]
    own: dict[str, Any] = {"label": target.label, "reduction": "sum", "references": False, "weight": target.weight}
    if isinstance(target, ScalarConfig):
        return own | {"head": "scalar", "reduction": target.reduction, "references": target.references}
    if isinstance(target, ClassificationConfig):
        return own | {"head": f"{target.classes} classes", "reduction": target.reduction}
    return own | {"head": "spatial extent" if isinstance(target, SpatialExtentConfig) else "dipole"}


def annotated(resolved: Resolved[FinetuneConfig]) -> str:
    """The whole configuration as YAML; behind every value where it comes from, and the remark that stands there."""
    values = resolved.config.model_dump(mode="json", by_alias=True)
    lines = list(_lines(values, (), resolved.origins))
    width = min(64, max(len(text) for text, _ in lines))
    return "".join(f"{text:<{width}}  # {note}\n" if note else f"{text}\n" for text, note in lines)


def _lines(values: Mapping[str, Any], path: KeyPath, origins: Mapping[KeyPath, str]) -> Iterator[tuple[str, str]]:
    """Text and note of every line."""
    for key, value in values.items():
        here, start = (*path, key), "  " * len(path) + yaml.safe_dump(key).splitlines()[0] + ":"
        if isinstance(value, dict) and value:
            yield start, ""
            yield from _lines(value, here, origins)
        else:
            # JSON is YAML, and has no `...` or line breaks of its own
            yield f"{start} {json.dumps(value, ensure_ascii=False)}", _note(here, origins)


def _note(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    if path in _TO_GIVE:
        return "to be given"
    if path not in origins:
        return "default of the program"
    told = remark(origins[path])
    return origins[path] + (f": {told}" if told else "")
