"""How many operations a step starts, and how often the host waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from jmp_ds.bench.step import TrainingStep

#: Operations that make the host wait for a device, because their result or its size is needed.
_WAITING = frozenset(
    {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}
    | {"unique_consecutive", "bincount", "allclose"}
)
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


@dataclass(frozen=True)
class Activity:
    """Counts of one step from a batch on the device.

    Attributes:
        operations: dispatched by PyTorch in forward, loss and backward; views do not count.
        waits: those among them that make the host wait for a device (on a CPU: that would make it wait), by name.
        optimiser_operations: dispatched by the optimiser.
        launches: kernels started on a CUDA device in all of these; None on a CPU.
    """

    operations: int
    waits: dict[str, int]
    optimiser_operations: int
    launches: int | None


class _Counting(TorchDispatchMode):
    """Counts what comes by."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then go on."""
        self.operations += not func.is_view
        if _waits(func, args):
            self.waits[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: Any) -> bool:
    """Whether an operation needs its result, or its result's size, on the host."""
    name = func.overloadpacket.__name__
    if name in ("index", "index_put_", "index_put"):  # a mask among the indices is looked for first
        return any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1])
    if name == "repeat_interleave":
        return len(args) == 1 or args[-1] is None
    return name in _WAITING


def count_activity(step: TrainingStep) -> Activity:
    """Run one step and count; the step is slower than usual."""
    ready = step.build()
    network = _counted(lambda: step.on(ready))
    optimiser = _counted(step.update)
    launches = _launches(step, ready) if step.device.type == "cuda" else None
    return Activity(network.operations, dict(network.waits), optimiser.operations, launches)


def _counted(work: Callable[[], object]) -> _Counting:
    with _Counting() as counting:
        work()
    return counting


def _launches(step: TrainingStep, ready: Any) -> int:
    """Kernel launches of forward, loss, backward and optimiser."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step.on(ready)
        step.update()
        torch.cuda.synchronize(step.device)
    return sum(event.name.startswith(_LAUNCHES) for event in found.events() or [])
