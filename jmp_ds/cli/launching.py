"""Making and running a launcher's command: its files, its variables, requests to stop."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from jmp_ds.cli import launch_commands
from jmp_ds.cli.launch_commands import Command, Flavour, Launcher, Layout
from jmp_ds.errors import UserError
from jmp_ds.files import write_text
from jmp_ds.training.place import recognise
from jmp_ds.training.stopping import requests_to


def launched() -> bool:
    """Whether this process was started by a launcher."""
    return recognise(os.environ).launched


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_command(launcher: Launcher | None, words: Sequence[str], layout: Layout, run: Path, device: str) -> Command:
    """The launcher's command line.

    Args:
        launcher: what starts the processes; None: it is one process, and nothing else is needed.
        words: after `jmp-ds`.
        layout: where the processes run.
        run: folder of the run; what the launcher reads goes into it.
        device: as configured.
    """
    folder, extra = run.absolute() / "launch", accelerator(device)
    environ = {**os.environ, **extra}
    match launcher:
        case None:
            return launch_commands.alone(words)
        case Launcher.local:
            command = launch_commands.local(words, layout.per_node or 1, layout.port)
        case Launcher.hostfile:
            own = launch_commands.own_environment(environ, Path.home(), Path.cwd())
            command = launch_commands.hostfile(words, layout, folder, environ, own)
        case Launcher.no_ssh:
            command = launch_commands.no_ssh(words, layout, folder)
        case Launcher.torchrun:
            command = launch_commands.torchrun(words, layout)
        case Launcher.srun:
            command = launch_commands.srun(words, layout, os.environ)
        case Launcher.mpirun:
            command = launch_commands.mpirun(words, layout, folder, environ, _flavour())
    return command.with_variables(extra)


def _flavour() -> Flavour:
    """Whose mpirun is in PATH; Open MPI's where there is none."""
    try:
        said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    except FileNotFoundError:
        return Flavour.open_mpi
    return Flavour.hydra if "HYDRA" in said.upper() or "INTEL" in said.upper() else Flavour.open_mpi


def on_new_port(launcher: Launcher | None, layout: Layout) -> Layout:
    """The same for another start, on a port that nothing left from an earlier one can hold.

    Only where this machine alone decides; several machines have agreed on theirs.
    """
    return replace(layout, port=free_port()) if launcher is Launcher.local else layout


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

    with requests_to(pass_on, passed_on=True):  # whoever starts us again must know of it too
        child = _start(command)
        if asked:
            stop(child.pid)  # it came before there was anything to stop
        return child.wait()


def _start(command: Command) -> subprocess.Popen[bytes]:
    """In a session of its own: a Ctrl-C in the terminal must reach every process once, not through two ways."""
    try:
        return subprocess.Popen(command.words, env={**os.environ, **command.variables}, start_new_session=True)
    except FileNotFoundError:
        raise UserError(f"launch: {command.words[0]} is not installed here, or not in PATH") from None


def stopper(launcher: Launcher | None, layout: Layout) -> Callable[[int], None]:
    """How a launcher's processes are asked to stop, given the launcher's process id.

    Each has a signal that reaches the processes and lets them end by themselves, and others that do not.
    """
    if launcher is Launcher.hostfile:
        return lambda pid: _stop_through_pdsh(layout)
    if launcher in (Launcher.local, Launcher.no_ssh):
        return _stop_children
    number = signal.SIGTERM if launcher in (None, Launcher.torchrun) else signal.SIGUSR1
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


def accelerator(device: str) -> dict[str, str]:
    """Variables for DeepSpeed where nothing is computed on GPUs: its launcher must not count them.

    Args:
        device: as configured: `auto`, `cpu` or `cuda`.
    """
    import torch

    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return {"DS_ACCELERATOR": "cpu"} if on_cpu else {}
