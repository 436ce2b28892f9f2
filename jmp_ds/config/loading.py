"""From files to one validated configuration: defaults < recipe < file < overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from jmp_ds.config.finetune import FinetuneConfig
from jmp_ds.config.messages import first_message, nearest, place
from jmp_ds.config.pretrain import PretrainConfig, TrainingConfig
from jmp_ds.config.targets import Target, find_target, target_layer, targets
from jmp_ds.config.yaml_files import KeyPath, Layer, merge, parse_override, parse_yaml, read_yaml
from jmp_ds.errors import UserError

ConfigT = TypeVar("ConfigT", bound=TrainingConfig, covariant=True)

#: Name of the recipe that lies under every other one.
DEFAULT_RECIPE = "default"

#: Pairs of keys of which one excludes the other; a higher layer that sets one takes the other back.
_PAIRS = (("epochs", "steps"), ("clip_norm", "clip_value"), ("edges", "structures"), ("bundle", "scratch"))
EXCLUSIVE = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
#: Counts or fractions of a split take the files of a recipe back.
EXCLUSIVE |= dict.fromkeys(("train", "val", "test"), "files")


@dataclass(frozen=True)
class Resolved(Generic[ConfigT]):
    """A validated configuration and where its keys were written.

    Attributes:
        config: the values.
        origins: key path → `file:line`.
        name: the file, for messages about what it lacks.
    """

    config: ConfigT
    origins: dict[KeyPath, str]
    name: str

    def complaint(self, key: str, message: str) -> UserError:
        """An error about one dotted key, with its place."""
        return UserError(f"{place(tuple(key.split('.')), self.origins, self.name)}: {message}")

    def to_yaml(self) -> str:
        """Every setting, defaults included, as YAML that reads back to the same configuration."""
        values = self.config.model_dump(mode="json", by_alias=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def load_pretrain(path: Path, overrides: Sequence[str] = (), recipe: str | None = None) -> Resolved[PretrainConfig]:
    """`pretrain.yaml`, over an optional recipe, under overrides.

    Raises:
        UserError: any mistake, with its place.
    """
    return _load(PretrainConfig, "pretrain", path, overrides, recipe)


def load_finetune(
    path: Path | None, overrides: Sequence[str] = (), recipe: str | None = None
) -> Resolved[FinetuneConfig]:
    """`finetune.yaml`, over an optional recipe, under overrides; a recipe of a target needs no file.

    Raises:
        UserError: see `load_pretrain`.
    """
    return _load(FinetuneConfig, "finetune", path, overrides, recipe)


def _load(
    model: type[ConfigT], kind: str, path: Path | None, overrides: Sequence[str], recipe: str | None
) -> Resolved[ConfigT]:
    layers = [read_recipe(kind, DEFAULT_RECIPE)]
    if recipe is not None:
        layers.append(read_recipe(kind, recipe))
    if path is not None:
        layers.append(read_yaml(path))
    layers.extend(parse_override(text) for text in overrides)
    name = str(path) if path is not None else f"recipe {recipe}"
    return validate(model, _stacked(layers, name))


def recipe_alone(target: Target, fold: int | None, placeholders: Mapping[str, Any]) -> Resolved[FinetuneConfig]:
    """What a recipe of a target makes of a run, without a file.

    Args:
        target: of the table.
        fold: which one, where there are folds.
        placeholders: what a user has to say: run folder, weights.
    """
    layers = [Layer(dict(placeholders), {}, "to be given"), read_recipe("finetune", DEFAULT_RECIPE)]
    layers.append(target_layer(target, fold, EXCLUSIVE))
    return validate(FinetuneConfig, _stacked(layers, f"recipe {target.name}"))


def load_target(
    target: Target, fold: int | None, data: str, own: Mapping[str, Any], overrides: Sequence[str] = ()
) -> Resolved[FinetuneConfig]:
    """A recipe of a target as one run of many: defaults < recipe < `own` < overrides.

    Args:
        target: of the table.
        fold: which one, where there are folds.
        data: folder of stores and splits.
        own: settings of this run: run folder, seed, weights.
        overrides: `key.sub=value`.

    Raises:
        UserError: see `load_pretrain`.
    """
    layers = [read_recipe("finetune", DEFAULT_RECIPE), target_layer(target, fold, EXCLUSIVE, data), Layer(dict(own))]
    layers.extend(parse_override(text) for text in overrides)
    return validate(FinetuneConfig, _stacked(layers, f"recipe {target.name}"))


def _stacked(layers: Sequence[Layer], name: str) -> Layer:
    """Later layers over earlier ones."""
    merged = _spell_out(layers[0])
    for layer in layers[1:]:
        merged = merge(merged, _spell_out(layer), EXCLUSIVE)
    return Layer(merged.values, merged.origins, name)


def validate(model: type[ConfigT], layer: Layer) -> Resolved[ConfigT]:
    """Merged settings as a configuration.

    Raises:
        UserError: the first mistake.
    """
    try:
        # Through JSON, because strict validation of Python values would refuse lists for tuples and texts for paths.
        config = model.model_validate_json(json.dumps(layer.values))
    except ValidationError as error:
        raise UserError(first_message(error, model, layer.origins, layer.name)) from None
    return Resolved(config, dict(layer.origins), layer.name)


def _spell_out(layer: Layer) -> Layer:
    """`from: scratch` as the mapping it stands for."""
    values: dict[str, Any] = dict(layer.values)
    if isinstance(values.get("from"), str):
        text = values["from"]
        values["from"] = {"scratch": True} if text == "scratch" else {"bundle": text}
    return Layer(values, layer.origins, layer.name)


def recipe_names(kind: str) -> list[str]:
    """Recipes that come with the package; `kind` is `pretrain` or `finetune`."""
    folder = resources.files("jmp_ds") / "recipes" / kind
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def read_recipe(kind: str, name: str) -> Layer:
    """One recipe that comes with the package, a target of the table (`FAMILY/TARGET`), or a YAML file.

    Raises:
        UserError: there is none of that name.
    """
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    if kind == "finetune" and "/" in name:
        return target_layer(*find_target(name), EXCLUSIVE)
    if name not in recipe_names(kind):
        known = [*recipe_names(kind), *(targets() if kind == "finetune" else ())]
        raise UserError(f"recipe {name!r}: there is none for {kind}; {nearest(name, known)}")
    text = (resources.files("jmp_ds") / "recipes" / kind / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"recipe {name}")
