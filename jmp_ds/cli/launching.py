"""Running a launcher's command: its files, its variables, requests to stop, and what became of the runs."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from jmp_ds.cli.launch_commands import Command, Launcher, Layout
from jmp_ds.errors import UserError
from jmp_ds.files import write_text
from jmp_ds.training.place import recognise


def launched() -> bool:
    """Whether this process was started by a launcher."""
    return recognise(os.environ).launched


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def execute(command: Command, stop: Callable[[int], None]) -> int:
    """Write the command's files, run it, and wait for it.

    The first request to stop (SIGINT, SIGTERM, SIGUSR1), like every further one, is passed on by `stop`, which is given
    the launcher's process id; the processes then stop at the end of the step.

    Returns:
        The launcher's exit code, which says little: the outcome is in the run folder.
    """
    for path, text in command.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text() != text:
            write_text(path, text)
    Console(stderr=True, highlight=False).print(f"[dim]$ {shlex.join(command.words)}[/dim]", soft_wrap=True)
    child: subprocess.Popen[bytes] | None = None
    asked = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if child is not None:
            stop(child.pid)
        if callable(earlier := before[number]) and earlier is not signal.default_int_handler:
            earlier(number, frame)  # whoever starts us again must know of it too

    before: dict[int, Any] = {}
    try:
        for request in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            before[request] = signal.getsignal(request)
            signal.signal(request, pass_on)
        child = _start(command)
        if asked:
            stop(child.pid)  # it came before there was anything to stop
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(command: Command) -> subprocess.Popen[bytes]:
    """In a session of its own: a Ctrl-C in the terminal must reach every process once, not through two ways."""
    try:
        return subprocess.Popen(command.words, env={**os.environ, **command.variables}, start_new_session=True)
    except FileNotFoundError:
        raise UserError(f"launch: {command.words[0]} is not installed here, or not in PATH") from None


def stopper(launcher: Launcher, layout: Layout) -> Callable[[int], None]:
    """How a launcher's processes are asked to stop, given the launcher's process id.

    Each has a signal that reaches the processes and lets them end by themselves, and others that do not.
    """
    if launcher is Launcher.hostfile:
        return lambda pid: _stop_through_pdsh(layout)
    if launcher in (Launcher.local, Launcher.no_ssh):
        return _stop_children
    number = signal.SIGTERM if launcher is Launcher.torchrun else signal.SIGUSR1
    return lambda pid: os.kill(pid, number)


def _stop_children(pid: int) -> None:
    """DeepSpeed's runner takes no part in signals; what it has started does."""
    import psutil  # type: ignore[import-untyped]

    for process in psutil.Process(pid).children():
        process.send_signal(signal.SIGTERM)


def _stop_through_pdsh(layout: Layout) -> None:
    """End the launcher of this run, and no other, on every host.

    DeepSpeed's own way, were its runner sent a signal, is to end the processes of every deepspeed job of this user.
    """
    mine = f"[-]-master_addr={layout.master} --master_port={layout.port}( |$)"  # does not match itself
    command = ["pdsh", "-R", "ssh", "-w", ",".join(layout.hosts), f"pkill -TERM -f -- {shlex.quote(mine)}"]
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def outcome_marks(folders: Sequence[Path]) -> list[int | None]:
    """What tells whether a run has written its outcome since: times of the files."""
    from jmp_ds.training.outcome import NAME

    return [_time(folder / NAME) for folder in folders]


def _time(path: Path) -> int | None:
    """When a file was written; None if it is not there. Opened, since network file systems may remember old answers."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def accelerator(device: str) -> dict[str, str]:
    """Variables for DeepSpeed where nothing is computed on GPUs: its launcher must not count them.

    Args:
        device: as configured: `auto`, `cpu` or `cuda`.
    """
    import torch

    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return {"DS_ACCELERATOR": "cpu"} if on_cpu else {}
