"""Stopping on request, or before the time is up: a flag on which the loop acts at the next step boundary, with all
processes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Requests to stop.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def requests_to(handler: Callable[[int, FrameType | None], None], *, passed_on: bool = False) -> Iterator[None]:
    """Requests to stop go to a handler inside (only possible in the main thread), then again to whoever had them.

    Args:
        handler: as for `signal.signal`.
        passed_on: whoever had them before is told inside, too; not Python's own handler of SIGINT, which raises.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def act(number: int, frame: FrameType | None) -> None:
        handler(number, frame)
        earlier = before[signal.Signals(number)]
        if passed_on and callable(earlier) and earlier is not signal.default_int_handler:
            earlier(number, frame)

    for number in SIGNALS:
        signal.signal(number, act)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopRequest:
    """Whether somebody asked this process to stop.

    A second signal, or `grace` seconds without reaching a boundary, ends the process at once: a hung step must not
    hold a job that was told to leave. Signals that come within `burst` seconds count as one: Ctrl-C reaches the
    processes from the terminal, and once more from the deepspeed launcher.

    Args:
        grace: seconds.
        on_abort: called with the reason before the process is ended.
        burst: seconds.
    """

    def __init__(self, grace: float = 10.0, on_abort: Callable[[str], None] | None = None, burst: float = 2.0) -> None:
        self.reason: str | None = None
        self._grace = grace
        self._burst = burst
        self._first = 0.0
        self._on_abort = on_abort
        self._timer: threading.Timer | None = None
        self._process = os.getpid()
        self._saving = False

    @property
    def requested(self) -> bool:
        """Whether to stop at the next boundary."""
        return self.reason is not None

    def reached_boundary(self) -> None:
        """The loop has seen the request: from now on it may take its time to save."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ask(self, reason: str) -> None:
        """Ask from inside: stop at the next boundary, however long it takes to get there."""
        self.reason = self.reason or reason

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint is being written: it may be finished however long that takes; a second signal still counts."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside (only possible in the main thread; elsewhere nothing is handled)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        try:
            with requests_to(self._signalled):
                yield
        finally:
            self.reached_boundary()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        """The handler: only sets the flag, so that it may interrupt anything."""
        if os.getpid() != self._process:
            return  # a data-loading child that inherited the handler: its parent decides
        name = signal.Signals(number).name
        if self.requested:
            if time.monotonic() - self._first > self._burst:
                self._abort(number, f"{name} after {self.reason}")
            return
        self.reason, self._first = name, time.monotonic()
        self._give_grace(number, name)

    def _give_grace(self, number: int, name: str) -> None:
        """End the process after the grace, or look again then if it is writing a checkpoint."""

        def over() -> None:
            if self._saving:
                self._give_grace(number, name)
            else:
                self._abort(number, f"{name}, and no step boundary within {self._grace:g} s")

        self._timer = threading.Timer(self._grace, over)
        self._timer.daemon = True
        self._timer.start()

    def _abort(self, number: int, reason: str) -> None:
        """End the process without unwinding: it may be stuck in a collective."""
        if self._on_abort is not None:
            self._on_abort(reason)
        os._exit(128 + number)


class Deadline:
    """When to stop so that a checkpoint is on disk before the time is up.

    Args:
        seconds: until the run is ended from outside; None: never.
        save: seconds that a checkpoint takes, as long as none was written.
    """

    def __init__(self, seconds: float | None, save: float = 0.0) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._save = save
        self._steps: deque[float] = deque([0.0], maxlen=50)

    def note_step(self, seconds: float) -> None:
        """A step, or a batch of a validation, took so long."""
        self._steps.append(seconds)

    def note_save(self, seconds: float) -> None:
        """A checkpoint took so long, from its boundary to the next one."""
        self._save = max(self._save, seconds)

    @property
    def needed(self) -> float:
        """Seconds to keep: for one step more than the longest of late, and a save half as long again as any."""
        return 2.0 * max(self._steps) + 1.5 * self._save

    @property
    def reached(self) -> bool:
        """Whether to stop at this boundary."""
        return self._end is not None and time.monotonic() + self.needed >= self._end
