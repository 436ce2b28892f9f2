"""Starting a run again by itself when it failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from jmp_ds.cli.base import MISTAKE
from jmp_ds.training.outcome import NewOutcomes, Outcome
from jmp_ds.training.stopping import requests_to

_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0


@dataclass
class Attempts:
    """Runs a command until its run folders say that it is over.

    A failure is followed by another start, after a pause that doubles each time; a start that got further than the one
    before it (a newer checkpoint, another run of the series) makes both counts begin anew. A mistake in what was asked,
    a divergence (both exit with 2) and a stop on request are not failures.

    Attributes:
        start: given whether it is a restart, runs the command and waits; its exit code.
        folders: the run folders.
        restarts: how many in a row may follow without progress.
        judge: whether this machine judges by the run folders. Those of a run on several machines are written by the
            first; on the others, which may end before they are, what counts is the exit code.
        only_here: whether requests to stop come through here alone, and not past us from Slurm. Then a run that was cut
            off without one was ended by its launcher, because one of its processes had died.
        pause: seconds before the first restart.
    """

    start: Callable[[bool], int]
    folders: Sequence[Path]
    restarts: int
    judge: bool = True
    only_here: bool = True
    pause: float = _FIRST_PAUSE
    asked_to_stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        """The last start's exit code. A request to stop, also one that comes between two starts, makes it the last."""
        with requests_to(lambda number, frame: self.asked_to_stop.set()):
            return self._run()

    def _run(self) -> int:
        fruitless, again = 0, False
        while True:
            reached, outcomes = self._progress(), NewOutcomes(self.folders)
            code, again = self.start(again), True
            if not self._failed(code, outcomes):
                return code
            fruitless = 1 if self._progress() != reached else fruitless + 1
            if fruitless > self.restarts or self.asked_to_stop.is_set():
                return code
            pause = min(self.pause * 2 ** (fruitless - 1), _LONGEST_PAUSE)
            typer.echo(
                f"jmp-ds: the run failed ({_reason(outcomes, code)}); "
                f"starting again in {pause:.0f} s, restart {fruitless} of {self.restarts} without progress",
                err=True,
            )
            if self.asked_to_stop.wait(pause):
                return code

    def _failed(self, code: int, outcomes: NewOutcomes) -> bool:
        if code == MISTAKE:
            return False
        if not self.judge:
            return code != 0
        found = [self._status(outcome) for _, outcome in outcomes]
        return "stopped" not in found and not all(status == "finished" for status in found)

    def _status(self, outcome: Outcome | None) -> str:
        """How a run has ended, as far as it is known."""
        if outcome is None or (outcome.cut_off and self.only_here and not self.asked_to_stop.is_set()):
            return "failed"
        return outcome.status

    def _progress(self) -> list[str]:
        """What changes when a run gets further."""
        return [(f / "latest").read_text() if (f / "latest").is_file() else "" for f in self.folders]


def _reason(outcomes: NewOutcomes, code: int) -> str:
    """Why a start failed, as far as it is known."""
    failed = (o.reason for _, o in outcomes if o is not None and (o.status == "failed" or o.cut_off))
    return next((" ".join(reason.split()) for reason in failed), f"exit code {code}")


def remaining_wall_time(wall_time: float | None, began: float) -> list[str]:
    """An override with what is left of the wall time (hours), so that a restart keeps to the job's own limit."""
    if wall_time is None:
        return []
    left = wall_time - (time.monotonic() - began) / 3600.0
    return [f"run.wall_time={max(left, 1e-3):.6f}"]
