"""Where the time of a step goes: one instrumented step, apart from the timed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from jmp_ds.bench.step import TrainingStep

_PREFIX = "part: "
#: Dense products, by the names under which PyTorch reports them.
_PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::linear", "aten::mkldnn_linear", "aten::_addmm_activation"})
_PRODUCT_FAMILIES = ("mkldnn::_linear_pointwise", "aten::_scaled_mm")
_PARTS = (
    "graph",
    "bases",
    "interactions",
    "dense",
    "pointwise",
    "heads",
    "backward dense",
    "backward rest",
    "optimiser",
)


def time_parts(step: TrainingStep) -> dict[str, float]:
    """Seconds of one instrumented step by part; the sum is larger than an undisturbed step.

    `bases`, `heads` and `interactions` (without their dense products) are parts of the forward pass, `dense` are the
    products in it outside bases and heads, `pointwise` is the rest of it. `backward dense` are the products of the
    backward pass, `backward rest` everything else in it. On CUDA the times are those of the device.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if step.device.type == "cuda" else [])]
    step.timed()
    with ExitStack() as stack:
        stack.enter_context(_ranges(step.model))
        found = stack.enter_context(profile(activities=activities))
        with record_function(f"{_PREFIX}graph"):
            ready = step.build()
        step.forget()
        with record_function(f"{_PREFIX}forward"):
            loss = step.loss(ready)
        with record_function(f"{_PREFIX}backward"):
            loss.backward()
        with record_function(f"{_PREFIX}optimiser"):
            step.update()
        if step.device.type == "cuda":
            torch.cuda.synchronize(step.device)
    return _by_part(found.events() or [], on_device=step.device.type == "cuda")


def _by_part(events: Sequence[FunctionEvent], *, on_device: bool) -> dict[str, float]:
    """Own times of all events, added up by the part they belong to."""
    seconds = dict.fromkeys(_PARTS, 0.0)
    for event in events:
        part = _part_of(event)
        if part is not None:
            own = event.self_device_time_total if on_device else event.self_cpu_time_total
            seconds[part] += own * 1e-6
    return seconds


def _part_of(event: FunctionEvent) -> str | None:
    """The part that an event belongs to; None outside of all."""
    around: list[str] = []
    each: FunctionEvent | None = event
    while each is not None:
        if each.name.startswith(_PREFIX):
            around.append(each.name.removeprefix(_PREFIX))
        each = each.cpu_parent
    if not around:
        return None
    outer, inner = around[-1], around[0]
    product = event.name in _PRODUCTS or event.name.startswith(_PRODUCT_FAMILIES)
    if outer == "backward":
        return "backward dense" if product else "backward rest"
    if outer != "forward":
        return outer
    if inner in ("bases", "heads"):
        return inner
    if product:
        return "dense"
    return "interactions" if inner == "interactions" else "pointwise"


@contextmanager
def _ranges(model: nn.Module) -> Iterator[None]:
    """Name the forward passes of bases, interactions and heads to the profiler, for as long as the context lasts."""
    open_ranges: list[record_function] = []

    def enter(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            open_ranges.append(record_function(f"{_PREFIX}{part}"))
            open_ranges[-1].__enter__()

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    handles = []
    for part, modules in parts_of(model).items():
        for module in modules:
            handles += [module.register_forward_pre_hook(enter(part)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parts_of(model: nn.Module) -> Mapping[str, list[nn.Module]]:
    """The modules of each part of the forward pass, told by their names and classes."""
    named = dict(model.named_modules())
    return {
        "bases": [m for name, m in named.items() if name.split(".")[-1] == "bases"],
        "interactions": [m for m in named.values() if type(m).__name__.endswith("Interaction")],
        "heads": [m for name, m in named.items() if name.startswith("heads.") and name.count(".") == 2],
    }
