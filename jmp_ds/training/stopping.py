"""Stopping on request: a signal sets a flag, the loop acts on it at the next step boundary, with all processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


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

    @property
    def requested(self) -> bool:
        """Whether to stop at the next boundary."""
        return self.reason is not None

    def reached_boundary(self) -> None:
        """The loop has seen the request: from now on it may take its time to save."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside (only possible in the main thread; elsewhere nothing is handled)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._signalled) for number in SIGNALS}
        try:
            yield
        finally:
            self.reached_boundary()
            for number, handler in before.items():
                signal.signal(number, handler)

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
        reason = f"{name}, and no step boundary within {self._grace:g} s"
        self._timer = threading.Timer(self._grace, self._abort, (number, reason))
        self._timer.daemon = True
        self._timer.start()

    def _abort(self, number: int, reason: str) -> None:
        """End the process without unwinding: it may be stuck in a collective."""
        if self._on_abort is not None:
            self._on_abort(reason)
        os._exit(128 + number)
