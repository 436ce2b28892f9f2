"""Former versions of the description of a bundle, brought up to the present one, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: The version that is written. 2: `elements`, by task the atomic numbers that its training data had.
VERSION = 2


def migrate(spec: dict[str, Any]) -> dict[str, Any]:
    """The description in the present version; the one given is left as it is.

    Args:
        spec: of a version from 1 to `VERSION`.

    Raises:
        KeyError: a version that is not known, or a description that lacks what its version has.
    """
    while spec["version"] != VERSION:
        spec = _STEPS[spec["version"]](spec)
    return spec


def _elements_of_references(spec: dict[str, Any]) -> dict[str, Any]:
    """1 → 2: elements that have an energy reference were in the data; tasks without references do not tell."""
    elements = {}
    for task in spec["tasks"]:
        references = task.get("normalization", {}).get("energy", {}).get("references", ())
        if known := [z for z, reference in enumerate(references) if reference]:
            elements[task["name"]] = known
    return {**spec, "version": 2, "elements": elements}


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _elements_of_references}
#: Versions that can be read.
READABLE = (*_STEPS, VERSION)
