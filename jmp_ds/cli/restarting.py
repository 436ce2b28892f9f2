"""Starting a run again by itself when it failed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import typer

from jmp_ds.cli.base import MISTAKE
from jmp_ds.cli.launching import outcome_marks
from jmp_ds.training.outcome import Outcome, read_outcome

_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0


@dataclass
class Attempts:
    """Runs a command until its run folders say that it is over.

    A failure is followed by another start, after a pause that doubles each time; a start that got further than the one
    before it (a newer checkpoint, another run of the series) makes both counts begin anew. A mistake in what was asked,
    a divergence (both exit with 2) and a stop on request are not failures.

    Attributes:
        start: runs the command and waits; its exit code.
        folders: the run folders.
        restarts: how many in a row may follow without progress.
        pause: seconds before the first restart.
    """

    start: Callable[[], int]
    folders: Sequence[Path]
    restarts: int
    pause: float = _FIRST_PAUSE
    asked_to_stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        """The last start's exit code."""
        fruitless = 0
        while True:
            reached, before = self._progress(), outcome_marks(self.folders)
            code = self.start()
            if not self._failed(code, before):
                return code
            fruitless = 1 if self._progress() != reached else fruitless + 1
            if fruitless > self.restarts or self.asked_to_stop.is_set():
                return code
            pause = min(self.pause * 2 ** (fruitless - 1), _LONGEST_PAUSE)
            typer.echo(
                f"jmp-ds: the run failed ({_reason(self.folders, before, code)}); "
                f"starting again in {pause:.0f} s, restart {fruitless} of {self.restarts} without progress",
                err=True,
            )
            if self.asked_to_stop.wait(pause):
                return code

    def _failed(self, code: int, before: Sequence[int | None]) -> bool:
        if code == MISTAKE:
            return False
        outcomes = [fresh_outcome(folder, stamp) for folder, stamp in zip(self.folders, before, strict=True)]
        if any(o is not None and o.status == "stopped" for o in outcomes):
            return False
        return not all(o is not None and o.status == "finished" for o in outcomes)

    def _progress(self) -> list[str]:
        """What changes when a run gets further."""
        return [(f / "latest").read_text() if (f / "latest").is_file() else "" for f in self.folders]

    @contextmanager
    def told_of_signals(self) -> Iterator[None]:
        """A request to stop that comes between two starts, or during one, is also for us."""

        def note(number: int, frame: FrameType | None) -> None:
            self.asked_to_stop.set()

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def fresh_outcome(folder: Path, before: int | None) -> Outcome | None:
    """The outcome, unless it is as old as `before` (`outcome_marks`): then it tells of an earlier start."""
    return read_outcome(folder) if outcome_marks([folder])[0] != before else None


def _reason(folders: Sequence[Path], before: Sequence[int | None], code: int) -> str:
    """Why a start failed, as far as it is known."""
    for folder, stamp in zip(folders, before, strict=True):
        outcome = fresh_outcome(folder, stamp)
        if outcome is not None and outcome.status == "failed":
            return " ".join(outcome.reason.split())
    return f"exit code {code}"


def remaining_wall_time(wall_time: float | None, began: float) -> list[str]:
    """An override with what is left of the wall time (hours), so that a restart keeps to the job's own limit."""
    if wall_time is None:
        return []
    left = wall_time - (time.monotonic() - began) / 3600.0
    return [f"run.wall_time={max(left, 1e-3):.6f}"]
