"""Steps whose micro-batches are divided where memory runs out, on one process without the others noticing.

DeepSpeed reduces gradients while a backward pass runs, so a process that runs out of memory in the middle of one could
not start anew without getting out of step. Here each process first makes the gradients of its micro-batches by itself,
in as many parts as it needs, without any collective; then all hand them to DeepSpeed in the same order, in one backward
pass per micro-batch whatever became of it. The price: each process holds whole gradients until then, and nothing is
reduced while gradients are made. ZeRO 3 cannot do that: its forward passes are collective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from jmp_ds.errors import UserError
from jmp_ds.training.engine import Engine, LossSums, StepResult, add_sums, objective

#: (number of the micro-batch, how many parts) → the parts, on the right device.
Divide = Callable[[int, int], Sequence[Any]]


class OutOfMemory(UserError):
    """A batch does not fit into memory, and nothing can be done about it here."""


def step_in_parts(
    engine: Engine,
    batches: Sequence[Any],
    counts: Mapping[str, float],
    loss_sums: LossSums,
    divide: Divide,
    tell: Callable[[int, int], None],
) -> StepResult:
    """As `Engine.step`, dividing micro-batches as long as memory runs out.

    Args:
        engine: ZeRO 0 to 2.
        batches, counts, loss_sums: see `Engine.step`.
        divide: gives a micro-batch anew, in parts.
        tell: called with number of the micro-batch and of parts when one is divided.

    Raises:
        torch.OutOfMemoryError: a single structure does not fit.
    """
    factors = engine.factors(counts)
    totals: dict[str, Tensor] = {}
    losses, gradients = [], []
    engine.module.train()
    for number, batch in enumerate(batches):
        made = _made([batch], engine, factors, loss_sums)
        parts = 1
        while made is None:
            # The failed pass is gone by now, with its tensors.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            parts *= 2
            if parts >= 2 * max(2, batch.num_structures):
                raise torch.OutOfMemoryError(f"one structure of micro-batch {number + 1} alone does not fit")
            tell(number, parts)
            made = _made(divide(number, parts), engine, factors, loss_sums)
        gradient, loss, sums = made
        gradients.append(gradient)
        losses.append(loss)
        add_sums(totals, sums)
    for number, gradient in enumerate(gradients):
        engine.backward_given(gradient, last=number == len(gradients) - 1)
    skipped = engine.apply()
    return StepResult(totals, losses, engine.step_norm, skipped)


def _made(
    parts: Sequence[Any], engine: Engine, factors: Mapping[str, float], loss_sums: LossSums
) -> tuple[list[Tensor], Tensor, dict[str, Tensor]] | None:
    """Gradients, loss and sums of the loss over the parts of a micro-batch; None where memory ran out.

    The network is called with aliases of its parameters, so that no hook, neither DeepSpeed's nor the model's, sees
    these gradients before they are handed over.
    """
    named = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    gradient = [torch.zeros_like(p) for _, p in named]
    loss = torch.zeros((), device=engine.processes.device)
    totals: dict[str, Tensor] = {}
    try:
        for part in parts:
            aliases = {name: p.detach().requires_grad_() for name, p in named}
            with engine.autocast():
                outputs = functional_call(engine.module, aliases, (part,))
                sums = loss_sums(outputs, part)
                own = objective(outputs, sums, factors)
            found = torch.autograd.grad(own, list(aliases.values()), allow_unused=True)
            for total, value in zip(gradient, found, strict=True):
                if value is not None:
                    total += value
            loss = loss + own.detach()
            add_sums(totals, sums)
    except torch.OutOfMemoryError:
        return None
    return gradient, loss, totals
