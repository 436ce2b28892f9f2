"""The processes of a run, from start to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from jmp_ds.config.sections import RunConfig
from jmp_ds.training.engine import start_processes, stop_processes
from jmp_ds.training.processes import Processes


@contextmanager
def started(config: RunConfig) -> Iterator[Processes]:
    """This process together with those that a launcher started beside it.

    A process that was not launched stays in its group of one afterwards: DeepSpeed remembers groups for as long as the
    process lives, so a second run in it could not use another.
    """
    processes = start_processes(config.device, config.threads)
    if processes.first and processes.place.launched:
        place = f"{processes.world} processes on {processes.machines} machines, started by {processes.place.launcher}"
        Console(stderr=True).print(place, highlight=False, soft_wrap=True)
    try:
        yield processes
    finally:
        if processes.place.launched:
            stop_processes()
