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
#: What the network's time is divided into, forward and backward.
_NETWORK = ("bases", "interactions", "dense", "pointwise", "heads")
_PARTS = ("graph", *_NETWORK, *(f"backward {part}" for part in _NETWORK), "optimiser")
_NODE = "autograd::engine::evaluate_function"


def time_parts(step: TrainingStep) -> dict[str, float]:
    """Seconds of one instrumented step by part; the sum is larger than an undisturbed step.

    `bases`, `heads` and `interactions` (without their dense products) are parts of the forward pass, `dense` are the
    products in it outside bases and heads, `pointwise` is the rest of it. `backward …` is the backward pass of the same;
    with gradient forces the force pass is in it. On CUDA the times are those of the device. A step must have run before.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if step.device.type == "cuda" else [])]
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
    origins: dict[tuple[int, int], str] = {}
    for event in sorted(events, key=lambda each: each.time_range.start):
        part = _part_of(event, origins)
        if part is not None:
            own = event.self_device_time_total if on_device else event.self_cpu_time_total
            seconds[part] += own * 1e-6
    return seconds


def _part_of(event: FunctionEvent, origins: dict[tuple[int, int], str]) -> str | None:
    """The part that an event belongs to; None outside of all.

    Args:
        event: an operation or a range; events must come in the order of time.
        origins: part of every operation that autograd has recorded, by thread and sequence number; filled here.
    """
    ranges, node = _around(event)
    if not ranges and node is None:
        return None
    if ranges and ranges[-1] in ("graph", "optimiser"):
        return ranges[-1]
    if node is not None:
        origin = origins.get((node.fwd_thread or 0, node.sequence_nr), "pointwise")
    else:
        origin = ranges[0] if ranges[0] in ("bases", "interactions", "heads") else "pointwise"
    if event.sequence_nr >= 0 and event is not node:
        origins.setdefault((event.thread, event.sequence_nr), origin)
    product = event.name in _PRODUCTS or event.name.startswith(_PRODUCT_FAMILIES)
    part = "dense" if product and origin not in ("bases", "heads") else origin
    return part if node is None else f"backward {part}"


def _around(event: FunctionEvent) -> tuple[list[str], FunctionEvent | None]:
    """Names of our ranges around an event, innermost first, and the autograd node it is part of."""
    ranges: list[str] = []
    node: FunctionEvent | None = None
    each: FunctionEvent | None = event
    while each is not None:
        if each.name.startswith(_PREFIX):
            ranges.append(each.name.removeprefix(_PREFIX))
        elif node is None and each.name.startswith(_NODE):
            node = each
        each = each.cpu_parent
    return ranges, node


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
