"""Starting a verb again in several processes, through the deepspeed launcher."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from rich.console import Console

from jmp_ds.errors import UserError


def launched() -> bool:
    """Whether this process was started by a launcher (deepspeed, torchrun)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def deepspeed_command(arguments: Sequence[str], processes: int, port: int) -> list[str]:
    """The command line that runs `jmp-ds ARGUMENTS` in so many local processes.

    On a machine without GPUs the launcher's `--num_accelerators` simply counts processes.
    """
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(processes)]
    quiet = ["--no_local_rank", "--master_port", str(port), "--log_level", "error"]
    return [*launcher, *quiet, "--module", "jmp_ds.cli", *arguments]


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def relaunch(arguments: Sequence[str], processes: int, *, on_cpu: bool) -> int:
    """Run `jmp-ds ARGUMENTS` in several processes and wait for them.

    An interrupt is passed on once, to the launcher, which tells every process; they stop at the next step's end.

    Returns:
        The launcher's exit code, which says little: the outcome is in the run folder.

    Raises:
        UserError: deepspeed is not installed.
    """
    try:
        import deepspeed.launcher.runner  # noqa: F401 - only to know whether it is there
        import psutil  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f"several processes need the extra `train` (pip install 'jmp-ds[train]'): {error}") from None
    command = deepspeed_command(arguments, processes, free_port())
    Console(stderr=True, highlight=False).print(f"[dim]$ {shlex.join(command)}[/dim]", soft_wrap=True)
    environment = dict(os.environ)
    if on_cpu:
        environment["DS_ACCELERATOR"] = "cpu"
    # A session of its own: a Ctrl-C in the terminal must reach every process once, not through two ways.
    child = subprocess.Popen(command, env=environment, start_new_session=True)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in psutil.Process(child.pid).children():
            process.send_signal(signal.SIGTERM)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
