"""How a run ended, as a file that launch scripts read: the deepspeed launcher loses exit codes."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jmp_ds.files import write_json

Status = Literal["running", "finished", "stopped", "failed"]
NAME = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """State of a run.

    Attributes:
        status: `running` also stays behind when a process was killed; `stopped` can be resumed.
        reason: for people.
        step: optimizer steps made.
        consumed: structures consumed.
    """

    status: Status
    reason: str = ""
    step: int = 0
    consumed: int = 0

    def write(self, run_dir: Path) -> None:
        """Put it into the run folder, replacing what was there."""
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / NAME, {**asdict(self), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def read_outcome(run_dir: Path) -> Outcome | None:
    """The outcome in a run folder; None if there is none, or none that can be read."""
    try:
        values = json.loads((run_dir / NAME).read_text())
        return Outcome(values["status"], values["reason"], values["step"], values["consumed"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
