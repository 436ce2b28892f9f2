"""What the processes of one machine share: its cores, and, by mistake, a GPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from jmp_ds.errors import UserError

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Tenant:
    """What one process may use.

    Attributes:
        machine: something that only processes of the same machine (or container) have in common.
        cores: numbers of the cores that it may run on.
        gpu: the identity of its GPU; empty on a CPU.
    """

    machine: str
    cores: frozenset[int]
    gpu: str = ""


def this_tenant(device: torch.device) -> Tenant:
    """What this process may use, computing on `device`."""
    boot = _BOOT.read_text().strip() if _BOOT.is_file() else ""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return Tenant(f"{socket.gethostname()} {boot}", frozenset(os.sched_getaffinity(0)), gpu)


def threads(requested: int, rank: int, tenants: Sequence[Tenant]) -> int:
    """CPU threads of a process: the request, or its share of its cores when that is 0.

    Some launchers give every process cores of its own (srun, mpirun), others let all run everywhere: a core counts
    by the number of processes that may run on it.

    Args:
        requested: threads, or 0.
        rank: which process.
        tenants: all of them, in order of rank.
    """
    if requested > 0:
        return requested
    mine = tenants[rank]
    neighbours = [t.cores for t in tenants if t.machine == mine.machine]
    share = sum(1.0 / sum(core in cores for cores in neighbours) for core in mine.cores)
    return max(1, int(share + 1e-6))


def refuse_shared_gpus(tenants: Sequence[Tenant]) -> None:
    """NCCL cannot work with two processes on one GPU, and says so in its own way only.

    Raises:
        UserError: two processes have the same one.
    """
    owner: dict[str, int] = {}
    for rank, tenant in enumerate(tenants):
        first = owner.setdefault(tenant.gpu, rank)
        if tenant.gpu and first != rank:
            raise UserError(
                f"launch: processes {first} and {rank} have the same GPU ({tenant.gpu}); start as many processes per "
                "machine as it has GPUs, and let the launcher show each all of them, or each its own "
                "(srun --gpus-per-task=1)"
            )
