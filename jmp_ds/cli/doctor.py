"""`jmp-ds doctor`: what is installed, what will run, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import typer

#: Package → what is lost without it; None: needed by everything.
PACKAGES: dict[str, str | None] = {
    "numpy": None,
    "ase": None,
    "vesin": None,
    "lmdb": None,
    "h5py": None,
    "pydantic": None,
    "safetensors": None,
    "matplotlib": None,
    "deepspeed": "training (extra `train`)",
    "tensorboard": "TensorBoard logs (extra `train`)",
    "triton": "Triton kernels on GPUs (extra `kernels`)",
    "tblite": "making demonstration data anew (extra `demo`)",
}


def doctor() -> None:
    """Report versions, devices, threads and optional packages; exit 1 if something needed is missing."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="jmp-ds doctor", show_header=False)
    for key, value in [("jmp-ds", _version("jmp-ds") or "not installed as a package"), *_machine()]:
        table.add_row(key, value)
    missing = []
    for package, loss in PACKAGES.items():
        version = _version(package)
        if version is None and loss is None:
            missing.append(package)
        table.add_row(package, version or (f"absent: no {loss}" if loss else "[red]MISSING[/red]"))
    console.print(table)
    if missing:
        typer.echo(f"missing: {', '.join(missing)}; install with pip install jmp-ds", err=True)
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernels(gpu: bool) -> str:
    """What `kernels: auto` takes here."""
    if not gpu:
        return "PyTorch: the Triton kernels need a GPU"
    return "Triton" if _version("triton") else "PyTorch: triton is not installed (extra `kernels`)"


def _machine() -> list[tuple[str, str]]:
    """Python, torch, devices, cores, memory for shared tensors."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("cores", str(cores)),
        ("GPUs", ", ".join(gpus) or "none: everything runs on the CPU"),
        ("kernels", _kernels(bool(gpus))),
    ]
    shared = Path("/dev/shm")
    if shared.is_dir():
        rows.append(("/dev/shm free", f"{shutil.disk_usage(shared).free / 2**30:.1f} GiB"))
    return rows
