"""The processes of a run: which one this is, and the small messages they exchange.

Messages (counts of labels, stop requests, agreement on a checkpoint) go through a CPU group of their own, so that they
never wait for the accelerator. Which launchers are understood: place.py. How they meet: engine.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from jmp_ds.training.place import Place


def age_of_process() -> float:
    """Seconds since this process was started, its imports included."""
    import psutil  # type: ignore[import-untyped]  # comes with deepspeed

    return max(0.0, time.time() - psutil.Process().create_time())


def kind_of_device(device: str) -> str:
    """`cpu` or `cuda`; `auto` is a GPU where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them.

    Attributes:
        place: where this one stands.
        device: where it computes.
        threads: its CPU threads.
        group: the CPU group for messages; None when there is a single process.
        machines: on how many machines they are.
    """

    place: Place
    device: torch.device
    threads: int = 1
    group: dist.ProcessGroup | None = None
    machines: int = 1

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


#: How gloo, NCCL and the store say that the other end is gone.
_GONE = re.compile(
    r"connection (closed|reset|refused|was likely closed)|broken pipe|remote process exited|closed by peer|"
    r"socket (timeout|closed)|timed out|ncclremoteerror",
    re.IGNORECASE,
)

#: How they say that it did not come in time, which is another thing: it may be well, and busy.
_LATE = re.compile(r"timed out|socket timeout", re.IGNORECASE)


def lost_contact(error: BaseException) -> bool:
    """Whether an error only says that the connection to another process broke."""
    return isinstance(error, RuntimeError) and _GONE.search(str(error)) is not None


def explained(error: BaseException) -> str:
    """An error in a line; one that only says that the connection broke also says what that means."""
    told = f"{type(error).__name__}: {error}"
    if lost_contact(error) and _LATE.search(str(error)):
        return f"waited in vain for another process, which hangs, has died or was busy for too long ({told})"
    if lost_contact(error):
        return f"lost contact to another process, which has died or was ended; its message tells why ({told})"
    return told
