"""YAML that remembers where every key stands, refuses duplicates and reads `3e-4` as a number."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jmp_ds.errors import UserError

#: Place of a value: the keys that lead to it.
KeyPath = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.1 with the number form 3e-4 of YAML 1.2 and without dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in entries if tag not in ("tag:yaml.org,2002:timestamp",)]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Layer:
    """One source of settings.

    Attributes:
        values: nested dictionaries with string keys.
        origins: for every key path, where it was written (`file:line`).
        name: the source itself, for messages about what is missing in it.
    """

    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    name: str = ""


def read_yaml(path: Path) -> Layer:
    """One file.

    Raises:
        UserError: absent, not text, not YAML, a duplicate key, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, a YAML file is needed") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Layer:
    """Text of one file; `name` stands for it in messages. Raises: see `read_yaml`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Layer({}, {}, name)
        origins: dict[KeyPath, str] = {}
        _note_places(node, (), name, origins)
        values = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(_yaml_message(error, name)) from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise UserError(f"{name}: must hold `key: value` pairs at the top, found {type(values).__name__}")
    return Layer(_plain(values, name), origins, name)


def _yaml_message(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}" if mark is not None else name
    return f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"


def _note_places(node: yaml.Node, path: KeyPath, name: str, origins: dict[KeyPath, str]) -> None:
    """Note the line of every key, and refuse the same key twice in one mapping."""
    if isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            origins[(*path, str(i))] = f"{name}:{child.start_mark.line + 1}"
            _note_places(child, (*path, str(i)), name, origins)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, child in node.value:
        here = (*path, str(key.value))
        line = key.start_mark.line + 1
        if here in origins:
            raise UserError(f"{name}:{line}: {'.'.join(here)}: the same key twice (first at {origins[here]})")
        origins[here] = f"{name}:{line}"
        _note_places(child, here, name, origins)


def _plain(value: Any, name: str) -> Any:
    """The same value with string keys; only what JSON can say."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: only texts, numbers, lists and mappings may stand here ({error})") from None
    return _string_keys(value)


def _string_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _string_keys(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_string_keys(v) for v in value]
    return value


def parse_override(text: str) -> Layer:
    """`key.sub=value`, the value in YAML syntax.

    Raises:
        UserError: no `=`, an empty key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise UserError(f"override {text!r}: must look like key.sub=value, e.g. train.optimizer.lr=1e-4")
    name = f"override {text!r}"
    inner = parse_yaml(f"value: {value}" if value.strip() else "value: null", name)
    nested: Any = inner.values["value"]
    for part in reversed(path):
        nested = {part: nested}
    origins = {path[: i + 1]: name for i in range(len(path))}
    origins |= {(*path, *below[1:]): name for below in inner.origins}
    return Layer(nested, origins, name)


def merge(lower: Layer, upper: Layer, exclusive: Mapping[str, str]) -> Layer:
    """`upper` over `lower`: mappings are merged key by key, everything else is replaced.

    Args:
        lower: what gives way.
        upper: what wins.
        exclusive: key → the key it excludes; setting one in `upper` removes the other from `lower`.
    """
    origins = dict(lower.origins)
    values = _merge(lower.values, upper.values, (), origins, exclusive)
    return Layer(values, origins | upper.origins, upper.name or lower.name)


def _merge(
    lower: dict[str, Any],
    upper: dict[str, Any],
    path: KeyPath,
    origins: dict[KeyPath, str],
    exclusive: Mapping[str, str],
) -> dict[str, Any]:
    out = dict(lower)
    for key, value in upper.items():
        here = (*path, key)
        rival = exclusive.get(key)
        if value is not None and rival is not None and rival in out and rival not in upper:
            del out[rival]
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = _merge(out[key], value, here, origins, exclusive)
        else:
            for old in [p for p in origins if p[: len(here)] == here]:
                del origins[old]
            out[key] = value
    return out
