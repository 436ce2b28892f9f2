"""A guard: gradients must be ready in the same order on all processes.

DeepSpeed pairs the gradients of different processes by the order in which they become ready. If a process computes them in
another order, or lacks one, then wrong tensors are summed, without any error (deepspeed.md section 2). In the first steps
every process therefore notes the order, and all compare before the weights change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from jmp_ds.errors import UserError
from jmp_ds.training.processes import Processes


class OrderGuard:
    """Watches the first steps of a run, then goes away.

    Args:
        model: before DeepSpeed has it.
        processes: collective over them.
        steps: how many steps are watched.
    """

    def __init__(self, model: nn.Module, processes: Processes, steps: int = 3) -> None:
        self._processes = processes
        self._left = steps if processes.world > 1 else 0
        self._ready: list[str] = []
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._handles = [p.register_post_accumulate_grad_hook(self._note(name)) for name, p in trainable if self._left]

    def _note(self, name: str) -> Callable[[Tensor], None]:
        return lambda _: self._ready.append(name)

    def check(self) -> None:
        """Compare what has been noted since the last call; collective while steps are watched.

        Raises:
            UserError: on all processes, if they differ.
        """
        if not self._left:
            return
        ready, self._ready = self._ready, []
        self._left -= 1
        if not self._left:
            for handle in self._handles:
                handle.remove()
        digests = self._processes.gather(_digest(ready))
        if len(set(digests)) > 1:
            raise UserError(self._complaint(ready, digests))

    def _complaint(self, ready: Sequence[str], digests: Sequence[str]) -> str:
        """What differs, told by every process about itself."""
        odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        orders = self._processes.gather("\n".join(ready))
        first, other = orders[0].split("\n"), orders[odd[0]].split("\n")
        at = next(
            (i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other))
        )
        names = [order[at] if at < len(order) else "nothing" for order in (first, other)]
        return (
            f"processes compute gradients in different orders (process 0 and {odd[0]} differ from number {at + 1} on: "
            f"{names[0]} and {names[1]}), so wrong ones would be summed; the model must use the same parameters in the "
            "same order on every batch, also where a task has no structure"
        )


def _digest(names: Sequence[str]) -> str:
    """Short for an order of names."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
