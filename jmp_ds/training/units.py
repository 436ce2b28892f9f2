"""ZeRO 3 by parts of the model: which weights are brought together when, and when they are dismissed.

DeepSpeed hooks every module and brings the weights that the module itself holds. The layers of this project hold weights
that others compute with, so that would be too late. A model therefore names its units: parts whose weights are used only
while that part runs. All weights of a unit are brought before it runs, forward and backward, and dismissed after it;
weights outside of any unit, which are few, stay from the beginning of a pass to its end. DeepSpeed's hooks on other modules
are taken away: they would do nothing but cost time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Divisible(Protocol):
    """A model that can be brought part by part."""

    def units(self) -> list[nn.Module]:
        """Parts whose weights are used only while they run."""


def register_units(model: nn.Module) -> list[nn.Module]:
    """Tell DeepSpeed which weights each unit needs, and the model the rest; before `deepspeed.initialize`.

    Returns:
        The model and its units; empty for a model that names none, whose modules DeepSpeed treats one by one.
    """
    from deepspeed.runtime.zero import register_external_parameter

    if not isinstance(model, Divisible):
        return []
    units = model.units()
    taken: set[int] = set()
    for unit in units:
        for parameter in unit.parameters():
            register_external_parameter(unit, parameter)
            taken.add(id(parameter))
    for parameter in model.parameters():
        if id(parameter) not in taken:
            register_external_parameter(model, parameter)
    return [model, *units]


def only_units_have_hooks(model: nn.Module, parts: Sequence[nn.Module], offload: Any) -> None:
    """Take DeepSpeed's hooks from all modules but the given ones; after `deepspeed.initialize`.

    Args:
        model: the model.
        parts: what `register_units` returned; empty: leave everything as it is.
        offload: DeepSpeed's object that has put up the hooks.
    """
    if not parts:
        return
    kept = {id(part) for part in parts}
    others = [module for module in model.modules() if id(module) not in kept]
    theirs = {id(hooks) for module in others for hooks in (module._forward_hooks, module._forward_pre_hooks)}
    for handle in [*offload.forward_hooks, *offload.backward_hooks]:
        if id(handle.hooks_dict_ref()) in theirs:
            handle.remove()


@contextmanager
def no_unit_left_open() -> Iterator[None]:
    """DeepSpeed's list of modules that are running ends as it began.

    Recomputation leaves a unit by an exception as soon as it has what it needs, which that list does not notice.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    running = len(FWD_MODULE_STACK)
    try:
        yield
    finally:
        del FWD_MODULE_STACK[running:]
