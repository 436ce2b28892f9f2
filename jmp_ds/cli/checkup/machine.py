"""Processors, memory, and what connects them with those of other machines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from jmp_ds.cli.checkup.finding import Finding
from jmp_ds.cli.checkup.programs import told_by

GIB = 2**30


def devices(dev: Path = Path("/dev")) -> Iterator[Finding]:
    """Cores, and GPUs with their memory and what they can compute in.

    Args:
        dev: where the driver shows devices, those that torch cannot use among them.
    """
    cores, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    bound = f", bound to {cores} of {all_cores}" if cores < all_cores else ""
    yield Finding("devices", "cores", f"{cores}{bound}, {torch.get_num_threads()} threads by default")
    count = torch.cuda.device_count()
    if not count:
        yield _no_gpu(len(list(dev.glob("nvidia[0-9]*"))))
    for number in range(count):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        value = f"{about.name}, sm_{about.major}{about.minor}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        taken = free < 0.9 * total
        advice = "somebody else uses it (nvidia-smi shows who)" if taken else ""
        yield Finding("devices", f"GPU {number}", value, "problem" if taken else "ok", advice)


def _no_gpu(there: int) -> Finding:
    """Why torch has no GPU; harmless only if the driver shows none either."""
    cpu_build = torch.version.cuda is None
    why = "torch is a CPU build" if cpu_build else "torch finds none (nvidia-smi shows more)"
    if not there:
        return Finding("devices", "GPUs", "none", "off", f"{why}; everything runs on the CPU")
    mend = "install PyTorch's general build: launch/setup_env.sh --gpu" if cpu_build else "the driver may be too old"
    return Finding("devices", "GPUs", f"{there}, none of them usable", "problem", f"{why}; {mend}")


def interconnect(sys: Path = Path("/sys/class")) -> Iterator[Finding]:
    """NCCL, links between GPUs, InfiniBand, network interfaces.

    Args:
        sys: where the kernel tells about devices.
    """
    if torch.cuda.is_available():
        yield Finding("interconnect", "NCCL", ".".join(map(str, torch.cuda.nccl.version())))
        yield _links()
    else:
        yield Finding("interconnect", "NCCL", "not used", "off", "no GPU; processes on CPUs talk over gloo")
    adapters = sorted((sys / "infiniband").glob("*/ports/*"))
    for port in adapters:
        state, rate = (_word(port / name) for name in ("state", "rate"))
        up = "ACTIVE" in state
        advice = "" if up else "the link is down: NCCL will take the network interfaces, which are slower"
        name = f"{port.parts[-3]} port {port.name}"
        yield Finding("interconnect", name, f"{state}, {rate}", "ok" if up else "problem", advice)
    if not adapters:
        yield Finding("interconnect", "InfiniBand", "none", "off", "machines talk over the network interfaces")
    yield from _interfaces(sys / "net")


def _interfaces(folder: Path) -> Iterator[Finding]:
    """Network interfaces that are up, and their speed."""
    for path in sorted(folder.glob("*")):
        if path.name == "lo" or _word(path / "operstate") not in ("up", "unknown"):
            continue
        speed = _word(path / "speed")
        known = speed.isdigit() and int(speed) > 0
        value = f"up, {int(speed) / 1000:g} Gbit/s" if known else "up"
        yield Finding("interconnect", path.name, value)


def _links() -> Finding:
    """NVLink, as nvidia-smi tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("interconnect", "NVLink", "unknown", "off", "nvidia-smi is not in PATH")
    told = told_by([program, "nvlink", "--status"], seconds=60.0)
    if told is None:
        return Finding("interconnect", "NVLink", "unknown", "problem", "nvidia-smi does not answer: look at the driver")
    count = told.count("GB/s")
    if count:
        return Finding("interconnect", "NVLink", f"{count} links up")
    return Finding("interconnect", "NVLink", "none", "off", "GPUs of this machine talk over PCIe")


def _word(path: Path) -> str:
    """Content of one of the kernel's small files; empty where it cannot be read (the speed of a virtual interface)."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
