"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "off", "problem", "missing"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        topic: the part of the report it belongs to.
        name: what was looked at.
        value: what it is, for people.
        level: `ok`; `off`: something cannot be used here, which harms nothing else; `problem`: somebody should act;
            `missing`: nothing works without it.
        advice: what is lost, and what to do.
    """

    topic: str
    name: str
    value: str
    level: Level = "ok"
    advice: str = ""
