"""Versions of packages, and programs beside them."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator

from jmp_ds.cli.checkup.finding import Finding
from jmp_ds.cli.checkup.programs import told_by

#: Package → what is lost without it; None: needed by everything.
PACKAGES: dict[str, str | None] = {
    "torch": None,
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

#: Program → what it is for.
LAUNCHERS = {
    "deepspeed": "jmp-ds launch --with local, hostfile, no-ssh",
    "pdsh": "--with hostfile",
    "ssh": "--with hostfile, and mpirun over machines",
    "torchrun": "--with torchrun",
    "srun": "--with srun",
    "mpirun": "--with mpirun",
}
COMPILERS = {
    "c++": "DeepSpeed's operators that are built on first use (the optimizer on the CPU, for offload)",
    "ninja": "the same",
    "nvcc": "the same for GPUs; Triton's kernels do without",
}


def versions() -> Iterator[Finding]:
    """Python, this package, and those it stands on."""
    yield Finding("versions", "jmp-ds", _version("jmp-ds") or "not installed as a package")
    yield Finding("versions", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package, loss in PACKAGES.items():
        version = _version(package)
        if version is not None:
            yield Finding("versions", package, version)
        elif loss is not None:
            yield Finding("versions", package, "absent", "off", f"no {loss}")
        else:
            yield Finding("versions", package, "MISSING", "missing", "pip install jmp-ds")


def programs() -> Iterator[Finding]:
    """Launchers and compilers in PATH."""
    for topic, names in (("launchers", LAUNCHERS), ("compilers", COMPILERS)):
        for name, use in names.items():
            path = shutil.which(name)
            if path is None:
                yield Finding(topic, name, "not found", "off", f"needed for {use}")
            else:
                yield Finding(topic, name, f"{path}{_mpi(path) if name == 'mpirun' else ''}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _mpi(path: str) -> str:
    """Whose mpirun it is."""
    told = (told_by([path, "--version"]) or "").strip()
    line = told.splitlines()[0] if told else "says no version"
    return f" ({line.rstrip(':')})"
