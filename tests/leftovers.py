"""What tests have left behind on the machine, told from what others do there at the same time."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from jmp_ds.cli.checkup.leftovers import orphans

#: A variable that all programs started by this process inherit, however far down; its value is this process.
_MARK = "JMP_DS_TESTED_BY"
#: Helpers of Python's multiprocessing, which live as long as the process itself.
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def mark_children() -> None:
    """Make programs started from now on known to `processes_left`."""
    os.environ[_MARK] = str(os.getpid())


def processes_left() -> list[str]:
    """Programs that were started from this process, and are still there; also those whose parents are gone."""
    mine = psutil.Process()
    below = {child.pid for child in mine.children(recursive=True)}
    found = []
    for process in psutil.process_iter():
        try:
            known = process.pid in below or process.environ().get(_MARK) == str(mine.pid)
            words = " ".join(process.cmdline())
            if known and process.pid != mine.pid and not any(helper in words for helper in _HELPERS):
                found.append(f"process {process.pid} ({process.status()}): {words[:200]}")
        except psutil.Error:
            continue  # it has ended meanwhile, or is somebody else's
    return found


def files_left() -> set[str]:
    """Files in shared memory of the kinds that training makes, and that no living process has."""
    folder = Path("/dev/shm")
    return {str(file) for file in orphans(folder)} if folder.is_dir() else set()
