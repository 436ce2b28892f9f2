"""`python -m jmp_ds.bench OUT [KEY=VALUE ...]`: `jmp-ds bench step` for machines with torch and numpy alone.

Keys and values are those of `StepRequest`, e.g. `model=jmp-l batch=oc20x8 precision=bf16 device=cuda`. Writes the JSON file
OUT and nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jmp_ds.bench.measure import StepRequest, measure
from jmp_ds.errors import UserError


def request_of(words: list[str]) -> StepRequest:
    """A request from `key=value` words.

    Raises:
        UserError: an unknown key, or a value that is no number where one is needed.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        if key not in StepRequest.__dataclass_fields__:
            raise UserError(f"{word!r}: keys are {', '.join(StepRequest.__dataclass_fields__)}")
        try:
            values[key] = _value(key, text)
        except ValueError:
            raise UserError(f"{word!r}: not a value for {key}") from None
    return StepRequest(**values)


def _value(key: str, text: str) -> Any:
    """Text as what the field holds."""
    if key in ("recompute", "details"):
        return {"on": True, "off": False}[text] if text in ("on", "off") else int(text) != 0
    if key in ("threads", "repeats", "max_neighbors"):
        return int(text)
    return float(text) if key == "cutoff" else text


def main(arguments: list[str]) -> int:
    """Measure and write; 2 for a mistake of the user."""
    try:
        if not arguments:
            raise UserError("usage: python -m jmp_ds.bench OUT [KEY=VALUE ...]")
        found = measure(request_of(arguments[1:]))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    Path(arguments[0]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
