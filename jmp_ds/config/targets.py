"""Recipes of published tasks, `FAMILY/TARGET`: a row of the table of targets over its family's file.

A family's file says what all its targets share; its `task` section becomes the one task of the run, which has the
target's name. A row may set any key of the configuration by its dotted name, and says which store and split it needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jmp_ds.config.messages import nearest
from jmp_ds.config.yaml_files import KeyPath, Layer, merge, parse_yaml, read_yaml
from jmp_ds.errors import UserError

TABLE = "recipes/targets.yaml"
FAMILIES = "recipes/finetune/families"
#: What lies under every family, lowest first.
UNDER = ("recipes/finetune/published.yaml", f"{FAMILIES}/common.yaml")
#: Folder of stores and splits unless another is named.
DATA = "data"

#: Networks with published results.
NETWORKS = ("jmp-s", "jmp-l")
#: Columns that are no settings.
_FACTS = {"store": str, "split": str, "folds": int, "precision": str}


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        name: `FAMILY/TARGET`.
        store: folder of its store, within the folder of data.
        split: name of the published split.
        folds: of cross-validation; 0 where there is one split.
        precision: as published, `fp16` or `fp32`; for information.
        settings: dotted key → value; `task.` stands for the task.
        origins: dotted key → where it was written.
    """

    name: str
    store: str
    split: str
    folds: int
    precision: str
    settings: Mapping[str, Any]
    origins: Mapping[str, str]

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def task(self) -> str:
        """Name of its task."""
        return self.name.partition("/")[2]

    def split_folder(self, fold: int | None = None) -> str:
        """Where the files of its split are, within the folder of data."""
        return f"{self.store}.split" if fold is None else f"{self.store}.fold{fold}"

    def split_command(self, data: str, fold: int | None = None) -> str:
        """The command that makes its split."""
        place = f"{data}/{self.store} {data}/{self.split_folder(fold)} --published {self.split}"
        return f"jmp-ds data split {place}" + ("" if fold is None else f" --fold {fold}")

    def check_fold(self, fold: int | None) -> int | None:
        """The fold that is meant: the first where there are folds and none is named.

        Raises:
            UserError: there is no such fold.
        """
        if not self.folds:
            if fold is not None:
                raise UserError(f"recipe {self.name} has no folds; leave `:{fold}` out")
            return None
        if fold is not None and not 0 <= fold < self.folds:
            raise UserError(f"recipe {self.name} has folds 0 to {self.folds - 1}, not {fold}")
        return fold or 0


@cache
def targets() -> dict[str, Target]:
    """All rows by name, in the table's order."""
    table = _resource(TABLE)
    return {
        f"{family}/{name}": _target(family, name, row, table.origins)
        for family, rows in table.values.items()
        for name, row in rows.items()
    }


def find_target(name: str) -> tuple[Target, int | None]:
    """The target of `FAMILY/TARGET` or `FAMILY/TARGET:FOLD`, and its fold.

    Raises:
        UserError: there is none.
    """
    base, colon, text = name.partition(":")
    if base not in targets():
        raise UserError(f"recipe {name!r}: there is no such target; {nearest(base, targets())} (jmp-ds recipes)")
    if colon and not text.isdecimal():
        raise UserError(f"recipe {name!r}: what follows the colon must be the number of a fold")
    target = targets()[base]
    return target, target.check_fold(int(text) if colon else None)


def target_layer(target: Target, fold: int | None, exclusive: Mapping[str, str], data: str = DATA) -> Layer:
    """Settings of a recipe, with the place of every key.

    Args:
        target: the row.
        fold: which fold, where there are folds.
        exclusive: see `merge`.
        data: folder of stores and splits.
    """
    merged = _resource(UNDER[0])
    for file in (*UNDER[1:], f"{FAMILIES}/{target.family}.yaml"):
        merged = merge(merged, _resource(file), exclusive)
    merged = merge(merged, _row(target), exclusive)
    return merge(_named(merged, target.task), _data(target, fold, data), exclusive)


def remark(origin: str) -> str:
    """The remark beside a value of a recipe: what follows `  # ` on the line of its key; empty if there is none.

    Args:
        origin: `recipe FILE:LINE` as the layers here have it; others have no remarks.
    """
    file, _, line = origin.removeprefix("recipe ").rpartition(":")
    if not file.endswith(".yaml"):
        return ""
    return _text(f"recipes/{file}").splitlines()[int(line) - 1].partition("  # ")[2].strip()


def published_numbers(target: Target, fold: int | None = None) -> dict[str, dict[str, float]]:
    """Mean and standard deviation by label that the published runs normalised with; empty where none are known.

    Runs take those of their own training structures; these are for comparison. Units are the published ones.
    """
    name = target.name if fold is None else f"{target.name}:{fold}"
    return dict(json.loads(_text("recipes/published_normalisation.json")).get(name, {}))


def published_results(file: Path | None = None) -> dict[str, dict[str, float]]:
    """Published test results by recipe and network (`jmp-s`, `jmp-l`), in the units of the recipes' metrics.

    `FAMILY/TARGET` is the mean over folds where there are folds, `FAMILY/TARGET:FOLD` a single one.

    Args:
        file: YAML of the form of `recipes/published_results.yaml`; the one of the package by default.

    Raises:
        UserError: no such file, a recipe that there is not, or something that is no number.
    """
    layer = _resource("recipes/published_results.yaml") if file is None else read_yaml(file)
    found: dict[str, dict[str, float]] = {}
    for name, row in layer.values.items():
        find_target(name)
        numbers = {key: value for key, value in row.items() if key != "source"} if isinstance(row, dict) else {}
        wrong = [
            key for key, value in numbers.items() if key not in NETWORKS or isinstance(value, str | bool | list | dict)
        ]
        if wrong or not numbers:
            place = layer.origins.get((name,), layer.name)
            raise UserError(f"{place}: {name}: give numbers under {' and '.join(NETWORKS)}, and their `source`")
        found[name] = {key: float(value) for key, value in numbers.items()}
    return found


def _target(family: str, name: str, row: Mapping[str, Any], origins: Mapping[KeyPath, str]) -> Target:
    """One row, checked: it comes with the package, so a mistake in it is ours."""
    settings = {key: value for key, value in row.items() if "." in key}
    facts = {key: kind(row.get(key, kind())) for key, kind in _FACTS.items()}
    unknown = set(row) - set(settings) - set(facts)
    if unknown:
        raise ValueError(f"{TABLE}: {family}/{name}: unknown columns {sorted(unknown)}")
    places = {key: origins[family, name, key] for key in row}
    return Target(f"{family}/{name}", **facts, settings=settings, origins=places)


def _row(target: Target) -> Layer:
    """Dotted keys as nested ones."""
    values: dict[str, Any] = {}
    origins: dict[KeyPath, str] = {}
    for key, value in target.settings.items():
        path = tuple(key.split("."))
        inner = values
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
        origins |= {path[: i + 1]: target.origins[key] for i in range(len(path))}
    return Layer(values, origins)


def _named(layer: Layer, name: str) -> Layer:
    """The `task` section as the task of that name."""
    values = {key: value for key, value in layer.values.items() if key != "task"}
    values["tasks"] = {name: layer.values["task"]}
    origins = {("tasks", name, *p[1:]) if p[0] == "task" else p: place for p, place in layer.origins.items()}
    return Layer(values, origins)


def _data(target: Target, fold: int | None, data: str) -> Layer:
    """Store and files of the split."""
    folder = Path(data)
    files = {part: str(folder / target.split_folder(fold) / f"{part}.npy") for part in ("train", "val", "test")}
    task = {"store": str(folder / target.store), "split": {"files": files}}
    paths: dict[KeyPath, str] = {("tasks", target.task, "store"): target.origins["store"]}
    for deeper in ((), ("files",), *(("files", part) for part in files)):
        paths["tasks", target.task, "split", *deeper] = target.origins["split"]
    return Layer({"tasks": {target.task: task}}, paths)


def _resource(name: str) -> Layer:
    """A YAML file of the package; messages name it below `recipes`."""
    return parse_yaml(_text(name), f"recipe {name.removeprefix('recipes/')}")


@cache
def _text(name: str) -> str:
    return (resources.files("jmp_ds") / name).read_text(encoding="utf-8")
