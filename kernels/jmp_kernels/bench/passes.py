"""The three passes of a form: output, first derivatives, and the derivative of a recorded first derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_kernels.bench.forms import Case, Form, Pass


@dataclass(frozen=True)
class Prepared:
    """A form on its own leaves.

    Attributes:
        form: what is computed.
        leaves: floating operands by name, in order.
        learned, positional: names among them.
        towards: cotangent of the output, a leaf.
    """

    form: Form
    leaves: Mapping[str, Tensor]
    learned: tuple[str, ...]
    positional: tuple[str, ...]
    towards: Tensor

    def forward(self) -> Tensor:
        """The output, with its graph."""
        return self.form.function(*self.leaves.values())

    def backward(self, output: Tensor) -> dict[str, Tensor]:
        """Gradients of the learned operands."""
        return self._gradients(output, self.learned, recorded=False)

    def recorded(self, output: Tensor) -> dict[str, Tensor]:
        """Gradients of the positional operands (of the learned where there are none), with their graph."""
        return self._gradients(output, self.positional or self.learned, recorded=True)

    def second(self, first: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Gradients of Σ weight · |first|² with respect to the learned operands and the cotangent."""
        terms = [
            weights[name] * g.to(torch.promote_types(g.dtype, torch.float32)).square().sum()
            for name, g in first.items()
        ]
        leaves = {**self.leaves, "cotangent": self.towards}
        return derivatives(torch.stack(terms).sum(), {name: leaves[name] for name in (*self.learned, "cotangent")})

    def _gradients(self, output: Tensor, names: tuple[str, ...], *, recorded: bool) -> dict[str, Tensor]:
        return derivatives(output, {name: self.leaves[name] for name in names}, self.towards, recorded=recorded)

    def work(self, which: Pass) -> tuple[Callable[[], Tensor | None], Callable[[Tensor | None], object]]:
        """What comes before a pass, and the pass itself."""
        if which == "forward":
            return lambda: None, lambda _: self.forward()
        if which == "backward":
            return self.forward, lambda output: self.backward(_there(output))
        weights = dict.fromkeys(self.positional or self.learned, 1.0)
        return self.forward, lambda output: self.second(self.recorded(_there(output)), weights)


def derivatives(
    output: Tensor, leaves: Mapping[str, Tensor], towards: Tensor | None = None, *, recorded: bool = False
) -> dict[str, Tensor]:
    """Gradients by name; zero where nothing depends on a leaf, as with lists that are empty."""
    if not output.requires_grad:
        return {name: torch.zeros_like(x) for name, x in leaves.items()}
    found = torch.autograd.grad(output, list(leaves.values()), towards, create_graph=recorded, allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in pairs}


def _there(output: Tensor | None) -> Tensor:
    if output is None:
        raise ValueError("a backward pass needs an output")
    return output


def prepare(case: Case, form: Form, dtype: torch.dtype | None = None) -> Prepared:
    """Leaves for a form.

    Args:
        case: its operands.
        form: one of its forms.
        dtype: of all leaves; None: as they are.
    """
    operands, positional, learned = dict(case.operands), case.positional, form.learned or case.learned
    if form.own is not None:
        own = form.own()
        operands = {name: x for name, x in operands.items() if name in learned} | own
        positional = (*(name for name in case.positional if name in learned), *own)
    leaves = {name: x.detach().to(dtype or x.dtype).clone().requires_grad_() for name, x in operands.items()}
    with torch.no_grad():
        output = form.function(*leaves.values())
    generator = torch.Generator().manual_seed(11)
    towards = torch.randn(output.shape, generator=generator).bfloat16().to(output).requires_grad_()
    return Prepared(form, leaves, learned, positional, towards)
