"""Scale factors: constants that keep the variance of activations near that of their inputs.

They are buffers of the model, fitted once on data before training from scratch (specification section 6). Zero means not
fitted; a model with such a factor must not be used (`unfitted` names them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class ScaleFactor(nn.Module):
    """One fitted constant, multiplied into the weight that stands next to it (never read on the host).

    While factors are being fitted an observer receives what the operation took and gave.
    """

    scale_factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.zeros(()))
        self.observer: Callable[[Tensor, Tensor, Tensor | None], None] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight times the factor."""
        return weight * self.scale_factor.to(weight.dtype)

    def observe(self, reference: Tensor, output: Tensor, counts: Callable[[], Tensor] | None = None) -> None:
        """Show an observer, if there is one, the tensor before the operation and after it.

        Args:
            reference: [R, C] rows before.
            output: [R', C'] rows after.
            counts: makes [R], how often every row of the reference enters the published (enumerated) variance.
        """
        if self.observer is not None:
            self.observer(reference.detach(), output.detach(), counts() if counts else None)


def scale_factors(model: nn.Module) -> dict[str, ScaleFactor]:
    """All factors by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, ScaleFactor)}


def unfitted(model: nn.Module) -> list[str]:
    """Names of factors that have no value yet."""
    return [name for name, m in scale_factors(model).items() if float(m.scale_factor) == 0.0]


class _Fitted(Exception):
    """Ends a forward pass once the observed factor has been reached."""


class _Variance:
    """Row-weighted mean over features of the unbiased variance over rows, over several batches."""

    def __init__(self) -> None:
        self.total, self.rows = 0.0, 0.0

    def add(self, x: Tensor, counts: Tensor | None) -> None:
        x = x.double().reshape(-1, x.shape[-1])
        w = torch.ones(x.shape[0], dtype=torch.float64, device=x.device) if counts is None else counts.double()
        n = float(w.sum())
        if n < 2.0:
            return
        mean = (w[:, None] * x).sum(0) / n
        variance = (w[:, None] * (x - mean) ** 2).sum(0) / (n - 1.0)
        self.total += n * float(variance.mean())
        self.rows += n

    def value(self) -> float:
        return self.total / self.rows if self.rows else math.nan


def fit_scale_factors(
    model: nn.Module,
    run: Callable[[int], None],
    num_batches: int,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, float]:
    """Fit every factor, one after the other, each with the earlier ones in place (specification section 6).

    A factor is sqrt(variance before / variance after) of its operation. Where a batch set never reaches an operation
    (no quadruplets, say), or its output does not vary, the factor is 1.

    Args:
        model: whatever holds the factors; all of them are fitted anew.
        run: evaluates the model on batch number k (0 … num_batches-1); called without gradients.
        num_batches: how many batches (published: 16).
        progress: called with the factor's name and its value.

    Returns:
        The values by name.
    """
    factors = scale_factors(model)
    for factor in factors.values():
        factor.scale_factor.fill_(1.0)
    values = {}
    for name in _order_of_use(factors, run):
        values[name] = _fit_one(factors[name], run, num_batches)
        factors[name].scale_factor.fill_(values[name])
        if progress:
            progress(name, values[name])
    return values


def _order_of_use(factors: dict[str, ScaleFactor], run: Callable[[int], None]) -> list[str]:
    """Names in the order in which one evaluation reaches them."""
    reached: list[str] = []

    def recorder(name: str) -> Callable[[Tensor, Tensor, Tensor | None], None]:
        return lambda reference, output, counts: reached.append(name)

    try:
        for name, factor in factors.items():
            factor.observer = recorder(name)
        with torch.no_grad():
            run(0)
    finally:
        for factor in factors.values():
            factor.observer = None
    return reached


def _fit_one(factor: ScaleFactor, run: Callable[[int], None], num_batches: int) -> float:
    before, after = _Variance(), _Variance()

    def observer(reference: Tensor, output: Tensor, counts: Tensor | None) -> None:
        before.add(reference, counts)
        after.add(output, None)
        raise _Fitted

    factor.observer = observer
    try:
        for k in range(num_batches):
            with torch.no_grad():
                try:
                    run(k)
                except _Fitted:
                    continue
    finally:
        factor.observer = None
    ratio = before.value() / after.value() if after.value() > 0.0 else math.nan
    return math.sqrt(ratio) if math.isfinite(ratio) and ratio > 0.0 else 1.0


def set_scale_factors(model: nn.Module, values: Iterable[tuple[str, float]]) -> None:
    """Give factors their values by name.

    Raises:
        KeyError: there is no such factor.
    """
    factors = scale_factors(model)
    for name, value in values:
        factors[name].scale_factor.fill_(value)
