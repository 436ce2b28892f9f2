"""What pydantic finds wrong, as one sentence for people: where, what, and the nearest known name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from jmp_ds.config.yaml_files import KeyPath


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` or the list of names, to end a message about an unknown one."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(names)}" if names else "none are known"


def first_message(error: ValidationError, model: type[BaseModel], origins: Mapping[KeyPath, str], name: str) -> str:
    """The first mistake, with its place; how many more there are."""
    mistakes = error.errors(include_url=False)
    unknown = [m for m in mistakes if m["type"] == "extra_forbidden"]
    first = (unknown or mistakes)[0]
    path = tuple(str(part) for part in first["loc"])
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{place(path, origins, name)}: {_sentence(dict(first), path, model)}{more}"


def place(path: KeyPath, origins: Mapping[KeyPath, str], name: str) -> str:
    """`file:line: key.sub`: the line of the key, or of the nearest key around it."""
    for end in range(len(path), 0, -1):
        if path[:end] in origins:
            return f"{origins[path[:end]]}: {'.'.join(path)}"
    return f"{name}: {'.'.join(path)}" if path else name


def _sentence(mistake: dict[str, Any], path: KeyPath, model: type[BaseModel]) -> str:
    kind, given = mistake["type"], mistake.get("input")
    if kind == "extra_forbidden":
        section = _section_at(model, path[:-1])
        known = [f.alias or n for n, f in section.model_fields.items()] if section is not None else []
        return f"unknown key; {nearest(path[-1], known)}"
    if kind == "missing":
        return "is required, but missing"
    if kind == "value_error":
        return str(mistake["msg"]).removeprefix("Value error, ")
    wanted = str(mistake["msg"]).replace("Input should be", "must be")
    wanted = wanted.replace("a valid dictionary", "a mapping").replace("an object", "a mapping")
    return f"{wanted[0].lower()}{wanted[1:]}, got {_short(given)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _section_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The section class that a key path leads to."""
    current: Any = model
    for part in path:
        section = _section_in(current)
        if section is not None:
            by_alias = {f.alias or n: f for n, f in section.model_fields.items()}
            found = by_alias.get(part)
            current = found.annotation if found is not None else None
        else:
            current = _item_type(current)
        if current is None:
            return None
    return _section_in(current)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        found = [_section_in(a) for a in typing.get_args(annotation)]
        return next((f for f in found if f is not None), None)
    return None


def _item_type(annotation: Any) -> Any:
    """Type of the values of a mapping or list."""
    arguments = typing.get_args(annotation)
    return arguments[-1] if typing.get_origin(annotation) in (dict, list, tuple) and arguments else None
