"""The processes of a run: which one this is, and the small messages they exchange.

Messages (counts of labels, stop requests, agreement on a checkpoint) go through a CPU group of their own, so that they
never wait for the accelerator. How the processes are started is DeepSpeed's affair: see engine.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from jmp_ds.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where one process stands among all.

    Attributes:
        rank, world: among all processes.
        local_rank, local_world: among those of this machine.
        launched: whether a launcher set them (deepspeed, torchrun); otherwise this is the only process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launched: bool = False


def recognise(environ: Mapping[str, str]) -> Place:
    """Read the place of this process from what the deepspeed launcher or torchrun set.

    Raises:
        UserError: some of the variables are there and others are not.
    """
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not {"RANK", "WORLD_SIZE"} & set(environ):
        return Place()
    missing = [name for name in needed if name not in environ]
    if missing:
        raise UserError(
            f"launch: {', '.join(missing)} not set although RANK or WORLD_SIZE is; "
            "start through `deepspeed` or `torchrun`, or unset RANK and WORLD_SIZE for a single process"
        )
    world = int(environ["WORLD_SIZE"])
    local_world = environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE") or str(world)
    return Place(int(environ["RANK"]), world, int(environ["LOCAL_RANK"]), int(local_world), launched=True)


def threads_per_process(requested: int, local_world: int) -> int:
    """CPU threads of this process: the request, or an equal share of the usable cores when it is 0."""
    if requested > 0:
        return requested
    return max(1, len(os.sched_getaffinity(0)) // local_world)


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them.

    Attributes:
        place: where this one stands.
        device: where it computes.
        threads: its CPU threads.
        group: the CPU group for messages; None when there is a single process.
    """

    place: Place
    device: torch.device
    threads: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.place.rank

    @property
    def world(self) -> int:
        """How many there are."""
        return self.place.world

    @property
    def first(self) -> bool:
        """Whether this is the process that writes for all."""
        return self.place.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over the processes, in float64 (exact for counts)."""
        if self.world == 1 or not values:
            return [float(v) for v in values]
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return [float(v) for v in tensor.tolist()]

    def all_agree(self, yes: bool) -> bool:
        """Whether every process says yes."""
        return self.sum([0.0 if yes else 1.0])[0] == 0.0

    def from_first(self, value: Any) -> Any:
        """The first process's value, a small plain object, on all."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, a small plain object, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier(group=self.group)
