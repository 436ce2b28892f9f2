"""What processes that were killed have left behind: locks of half-built operators, files in shared memory."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from jmp_ds.cli.checkup.finding import Finding

#: Files that training leaves in /dev/shm when its processes are killed: DeepSpeed's buffers, torch's tensors on their
#: way from a worker (the number is a process), semaphores and blocks of Python's multiprocessing, NCCL's and Open MPI's.
_OURS = re.compile(
    r"(deepspeed_allreduce_buffer_|torch_(?P<pid>\d+)_|sem\.(mp|loky)-|psm_|nccl-|vader_segment\.|sm_segment\.)"
)
GIB = 2**30


def extensions(environ: dict[str, str], home: Path) -> Path:
    """Where torch builds what is compiled on first use."""
    if environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(environ["TORCH_EXTENSIONS_DIR"])
    return Path(environ.get("XDG_CACHE_HOME", home / ".cache")) / "torch_extensions"


def locks(folder: Path, processes: Path = Path("/proc")) -> Iterator[Finding]:
    """Locks of operators that are being built, or were when their process was killed.

    Every later run waits for such a lock without a word and without end.

    Args:
        folder: where operators are built, one folder for each (below one for each Python and CUDA).
        processes: where the kernel tells about processes.
    """
    found = sorted([*folder.glob("*/lock"), *folder.glob("*/*/lock")])
    for lock in found:
        builders = _working_in(lock.parent, processes)
        age = f"{lock}, {_age(lock)} old"
        if builders:
            yield Finding("leftovers", "lock", f"{age}; process {builders[0]} is building there")
        else:
            advice = f"nobody builds there: every run that needs it would wait for ever; rm {shlex.quote(str(lock))}"
            yield Finding("leftovers", "lock", age, "problem", advice)
    if not found:
        yield Finding("leftovers", "locks of operators", f"none in {folder}")


def shared_memory(folder: Path = Path("/dev/shm"), processes: Path = Path("/proc")) -> Iterator[Finding]:
    """Room in shared memory, and files there of this user's that no living process has.

    Args:
        folder: the shared memory.
        processes: where the kernel tells about processes.
    """
    if not folder.is_dir():
        yield Finding(
            "leftovers", str(folder), "none", "off", "data-loading workers hand batches over in files elsewhere"
        )
        return
    free = shutil.disk_usage(folder).free / GIB
    advice = "workers hand batches over through it; in containers: --shm-size=8g, or sampling.workers=0"
    yield Finding(
        "leftovers", f"{folder} free", f"{free:.1f} GiB", "ok" if free > 1 else "problem", advice if free <= 1 else ""
    )
    left = orphans(folder, processes)
    if left:
        size = sum(file.stat().st_size for file in left) / GIB
        names = " ".join(shlex.quote(str(file)) for file in left[:3]) + (" …" if len(left) > 3 else "")
        value = f"{len(left)} files without a living owner, {size:.2f} GiB: {names}"
        yield Finding("leftovers", "shared memory", value, "problem", "they hold memory until removed with rm")
    else:
        yield Finding("leftovers", "shared memory", "nothing left behind")


def orphans(folder: Path, processes: Path = Path("/proc")) -> list[Path]:
    """Files of this user's in shared memory that no living process has; as for `shared_memory`."""
    return [file for file in sorted(folder.iterdir()) if _left_behind(file, processes)]


def _left_behind(file: Path, processes: Path) -> bool:
    """Whether a file is of a kind that training makes, of this user's, and no process has it open or mapped."""
    match = _OURS.match(file.name)
    if match is None or not file.is_file() or file.stat().st_uid != os.getuid():
        return False
    if match["pid"] and (processes / match["pid"]).exists():
        return False
    return not any(_has(process, file) for process in processes.glob("[0-9]*"))


def _has(process: Path, file: Path) -> bool:
    """Whether a process has a file mapped or open. Semaphores are mapped by name, too."""
    try:
        if any(line.endswith(f" {file}") for line in (process / "maps").read_text().splitlines()):
            return True
        return any(_target(handle) == str(file) for handle in (process / "fd").iterdir())
    except OSError:
        return False  # it has ended, or is another user's, who has no business with this user's files


def _target(link: Path) -> str:
    """Where a link leads; nothing where it is gone, as a file that was closed meanwhile."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _working_in(folder: Path, processes: Path) -> list[str]:
    """Processes whose working folder is this one, or whose command line names it."""
    found = []
    for process in sorted(processes.glob("[0-9]*")):
        try:
            inside = os.readlink(process / "cwd") == str(folder)
            named = str(folder) in (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if (inside or named) and process.name != str(os.getpid()):
            found.append(process.name)
    return found


def _age(path: Path) -> str:
    """How long ago a file was written, for people."""
    seconds = max(0.0, time.time() - path.stat().st_mtime)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
