"""How a run ended, as a file that launch scripts read: the deepspeed launcher loses exit codes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
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
        cut_off: whether a stopped run was ended in the middle of something, because no step boundary came in time. A
            launcher that ends the others after one has died causes that, too.
    """

    status: Status
    reason: str = ""
    step: int = 0
    consumed: int = 0
    cut_off: bool = False

    def write(self, run_dir: Path) -> None:
        """Put it into the run folder, replacing what was there."""
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / NAME, {**asdict(self), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def read_outcome(run_dir: Path) -> Outcome | None:
    """The outcome in a run folder; None if there is none, or none that can be read."""
    try:
        values = json.loads((run_dir / NAME).read_text())
        return Outcome(
            values["status"], values["reason"], values["step"], values["consumed"], values.get("cut_off", False)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


class NewOutcomes:
    """Outcomes of some run folders, as far as they were written after this was made: others tell of earlier starts.

    Args:
        folders: of the runs.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._times = {folder: _time(folder / NAME) for folder in folders}

    def __iter__(self) -> Iterator[tuple[Path, Outcome | None]]:
        """Each folder, in order, with its outcome as it is now."""
        for folder, before in self._times.items():
            yield folder, read_outcome(folder) if _time(folder / NAME) != before else None


def _time(path: Path) -> int | None:
    """When a file was written; None if it is not there. Opened, since network file systems may remember old answers."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
