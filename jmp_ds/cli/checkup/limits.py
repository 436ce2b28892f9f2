"""What this package switches off here, and why."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping

import torch

from jmp_ds.cli.checkup.finding import Finding
from jmp_ds.errors import UserError
from jmp_ds.training.place import recognise


def switched_off() -> Iterator[Finding]:
    """Operators, precisions and ways to train that are not used on this machine."""
    gpu = torch.cuda.is_available()
    triton = importlib.util.find_spec("triton") is not None
    if gpu and triton:
        yield Finding("switched off", "kernels", "Triton")
    else:
        why = "the Triton kernels need a GPU" if not gpu else "triton is not installed (extra `kernels`)"
        yield Finding("switched off", "Triton kernels", "PyTorch's operators instead", "off", why)
    if not gpu:
        why = "building it takes a compiler and a minute, and it leaves files in /dev/shm; gloo does the same work"
        yield Finding("switched off", "DeepSpeed's shared-memory operator", "off on CPUs", "off", why)
        yield Finding("switched off", "fp16", "off on CPUs", "off", "use float32 or bf16 (engine.deepspeed)")
    elif not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("switched off", "bf16", "not in this GPU", "off", "use float32 (engine.deepspeed)")
    if shutil.which("c++") is None or shutil.which("ninja") is None:
        why = "DeepSpeed builds its optimizer for the CPU on first use, with c++ and ninja"
        yield Finding("switched off", "offload of the optimizer", "cannot be built", "off", why)


def launch_environment(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """What a training verb would take this process for."""
    try:
        place = recognise(environ)
    except UserError as error:
        yield Finding("launchers", "this process", "cannot be told", "problem", str(error))
        return
    if place.launched:
        value = (
            f"process {place.rank} of {place.world}, started by {place.launcher}; first: {place.master}:{place.port}"
        )
    else:
        value = "a single process, started by no launcher"
    yield Finding("launchers", "this process", value)
