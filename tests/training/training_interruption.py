"""Runs that hang, lose a process, run out of time or of disk; what they leave is judged by test_interruption.py.

`python training_interruption.py FOLDER` plays all of them and writes FOLDER/played.json.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from training_fork import fork, wait, warm_up  # noqa: E402

LIMIT = 3.0


def run(folder: Path, prepare: Callable[[Any], None] = lambda loop: None, **options: Any) -> None:
    """One run of the toy, leaving its group of processes as the trainers do."""
    import torch
    from training_loops import everything, make_loop

    from jmp_ds.training.engine import start_processes, stop_processes

    processes = start_processes("cpu", 1)
    try:
        loop = make_loop(processes, folder, 1, keep=100, **options)
        prepare(loop)
        outcome = loop.run()
        if outcome.status == "finished":
            torch.save(everything(loop), folder / f"everything_{processes.rank}.pt")
    finally:
        if processes.place.launched:
            stop_processes()


def at_step(loop: Any, number: int, act: Callable[[], None], rank: int) -> None:
    """Do something in the middle of a step of one process."""
    losses, calls = loop._loss_sums, 0

    def wrapped(outputs: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 * number and loop._processes.rank == rank:
            act()
        return losses(outputs, batch)

    loop._loss_sums = wrapped


def asleep() -> None:
    """What the stacks must name."""
    time.sleep(120)


def asleep_with_the_lock() -> None:
    """As a defective library would: nothing of Python runs meanwhile."""
    ctypes.PyDLL(None).sleep(120)


def slow_but_alive(loop: Any) -> None:
    """A validation longer than the limit, and a checkpoint longer than that."""
    evaluate, write = loop.engine.evaluate, loop.checkpoints._write
    batches = loop._validation.batches
    object.__setattr__(loop._validation, "batches", lambda: batches() * 4)

    def slowly(batch: Any) -> Any:
        time.sleep(0.5 * LIMIT)
        return evaluate(batch)

    def write_slowly(*arguments: Any) -> Any:
        time.sleep(1.5 * LIMIT)
        return write(*arguments)

    loop.engine.evaluate, loop.checkpoints._write = slowly, write_slowly
    loop.options.__dict__["validate_every"] = loop.options.__dict__["checkpoint_every"] = 1e9
    loop.options.__dict__["length"] = 12


def slow_steps(loop: Any) -> None:
    window, write = loop._window, loop.checkpoints._write

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.3)
        return window(*arguments)

    def write_slowly(*arguments: Any) -> Any:
        time.sleep(0.7)
        return write(*arguments)

    loop._window, loop.checkpoints._write = slowly, write_slowly


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def scenes() -> dict[str, tuple[int, Callable[[Path], None]]]:
    """Name → number of processes and what each of them does."""
    return {
        "hung": (2, lambda f: run(f, lambda loop: at_step(loop, 3, asleep, 1), hung_after=LIMIT)),
        "locked": (1, lambda f: run(f, lambda loop: at_step(loop, 3, asleep_with_the_lock, 0), hung_after=LIMIT)),
        "slow": (1, lambda f: run(f, slow_but_alive, hung_after=LIMIT)),
        "dead": (2, lambda f: run(f, lambda loop: at_step(loop, 3, die, 1))),
        "late": (2, lambda f: run(f, slow_steps, wall_time=8.0)),
        "straight": (1, run),
    }


def play(name: str, world: int, body: Callable[[Path], None], folder: Path) -> dict[str, Any]:
    """Play one; how it ended."""
    run_dir = folder / name
    run_dir.mkdir(exist_ok=True)
    began = time.monotonic()
    codes, times = wait(fork(world, lambda: body(run_dir), folder / name), 100.0)
    said = [(folder / f"{name}_{rank}.txt").read_text()[-3000:] for rank in range(world)]
    return {"codes": codes, "seconds": max(times) - began, "spread": max(times) - min(times), "said": said}


def full_disk(folder: Path) -> dict[str, Any]:
    """A run on a file system that is too small, continued after it has grown."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "jmp-test", str(disk)], capture_output=True)
    if mounted.returncode:
        return {"skipped": f"no small file system could be mounted: {mounted.stderr.decode().strip()}"}
    try:
        first = play("disk", 1, run, folder)
        left = sorted(p.name for p in (disk / "checkpoints").iterdir())
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        second = play("disk", 1, run, folder)
        (folder / "disk_everything.pt").write_bytes((disk / "everything_0.pt").read_bytes())
        return {"first": first, "left": left, "second": second}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main(folder: Path) -> None:
    warm_up()
    played = {name: play(name, world, body, folder) for name, (world, body) in scenes().items()}
    played["disk"] = full_disk(folder)
    (folder / "played.json").write_text(json.dumps(played))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
