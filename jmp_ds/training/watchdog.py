"""A run that hangs is ended: without a sign of life for too long, all stacks are written and the process leaves.

A process that waits for another one in a collective, or for a file system, waits forever; no time limit of DeepSpeed's
ends that (deepspeed.md, addenda). Two timers watch: a thread of Python, which can say more, and behind it one of
faulthandler, which also works where something holds the interpreter's lock.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: Exit code of a process that was ended because it hung.
HUNG = 124
#: For what may take longer than a step: the first one with its compilations, writing and reading checkpoints, exports.
PATIENT = 4.0


class Watchdog:
    """Ends this process when `beat` is not called in time.

    Args:
        file: where the stacks go; removed again if it stays empty.
        limit: seconds that may pass between two signs of life; None: nothing is watched.
        on_hang: called with what is known before the process is ended.
    """

    def __init__(self, file: Path, limit: float | None, on_hang: Callable[[str], None] | None = None) -> None:
        self._file, self._limit, self._on_hang = file, limit, on_hang
        self._patience = 1.0
        self._beats = 0

    def beat(self, patience: float = 1.0) -> None:
        """A sign of life; the next one comes within `patience` times the limit. Any thread may give it."""
        self._patience = patience
        self._beats += 1

    def still(self) -> None:
        """A sign of life in the midst of something that began with a `beat`; its patience holds on."""
        self._beats += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside; one at a time in a process."""
        if self._limit is None:
            yield
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self.beat(PATIENT)
        over = threading.Event()
        with self._file.open("w") as stacks:
            faulthandler.dump_traceback_later(self._limit * PATIENT, file=stacks, exit=True)
            thread = threading.Thread(target=self._watch, args=(self._limit, stacks, over), daemon=True)
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
                faulthandler.cancel_dump_traceback_later()
                if not stacks.tell():
                    self._file.unlink(missing_ok=True)

    def _watch(self, limit: float, stacks: IO[str], over: threading.Event) -> None:
        """The thread: looks at the clock, and winds up the other timer as long as it is able to."""
        silent, beats, before = 0.0, self._beats, time.monotonic()
        while not over.wait(interval := min(1.0, limit / 10)):
            now = time.monotonic()
            # Time in which the whole process was stopped (Slurm suspends jobs like that) is not the run's fault.
            silent, before = silent + min(now - before, 2 * interval), now
            if beats != self._beats:
                silent, beats = 0.0, self._beats
            if silent > limit * self._patience:
                self._end(stacks, f"no sign of life for {silent:.0f} s; where all threads were is in {self._file}")
            faulthandler.dump_traceback_later(limit, file=stacks, exit=True)

    def _end(self, stacks: IO[str], reason: str) -> None:
        """Say where it hangs, and leave without unwinding."""
        faulthandler.dump_traceback(file=stacks, all_threads=True)
        stacks.flush()
        if self._on_hang is not None:
            self._on_hang(reason)
        os._exit(HUNG)
