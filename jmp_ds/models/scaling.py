"""Scale factors: constants that keep the variance of activations near that of their inputs.

They are buffers of the model, fitted once on data before training from scratch (specification section 6). Zero means not
fitted; a model with such a factor must not be used (`unfitted` names them).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Takes the rows before an operation, those after, and how often each row before counts; gives the rows to go on with.
Observer = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class ScaleFactor(nn.Module):
    """One fitted constant, multiplied into the weight that stands next to it (never read on the host).

    While factors are being fitted an observer receives what the operation took and gave.
    """

    scale_factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_factor", torch.zeros(()))
        self.observer: Observer | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight times the factor."""
        return weight * self.scale_factor.to(weight.dtype)

    def observe(self, reference: Tensor, output: Tensor, counts: Callable[[], Tensor] | None = None) -> Tensor:
        """Show an observer, if there is one, the tensor before the operation and after it; the output to go on with.

        Args:
            reference: [R, C] rows before.
            output: [R', C'] rows after, linear in the factor.
            counts: makes [R], how often every row of the reference enters the published (enumerated) variance.
        """
        if self.observer is None:
            return output
        return self.observer(reference, output, counts() if counts else None)


def scale_factors(model: nn.Module) -> dict[str, ScaleFactor]:
    """All factors by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, ScaleFactor)}


def unfitted(model: nn.Module) -> list[str]:
    """Names of factors that have no value yet."""
    return [name for name, m in scale_factors(model).items() if float(m.scale_factor) == 0.0]


@dataclass
class _Variance:
    """Row-weighted mean over features of the unbiased variance over rows, over several batches."""

    total: float = 0.0
    rows: float = 0.0

    def add(self, x: Tensor, counts: Tensor | None) -> None:
        x = x.detach().double().reshape(-1, x.shape[-1])
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
    run: Callable[[int], object],
    num_batches: int,
    progress: Callable[[str, float], None] | None = None,
    *,
    keep: Iterable[str] = (),
) -> dict[str, float]:
    """Fit factors one after the other, each with the earlier ones in place (specification section 6).

    A factor is sqrt(variance before / variance after) of its operation over all batches. Where no batch reaches an
    operation (no quadruplets, say), or its output does not vary, the factor is 1. Every batch is evaluated once: its
    evaluation waits at each factor for those of the other batches, then all go on with the factor's value.

    Args:
        model: whatever holds the factors.
        run: evaluates the model on batch number k (0 … num_batches-1); called without gradients, one at a time.
        num_batches: how many batches (published: 16).
        progress: called with each factor's name and value, in the order of computation.
        keep: names of factors that keep the value they have.

    Returns:
        The fitted values by name.

    Raises:
        ValueError: no batches.
    """
    if num_batches < 1:
        raise ValueError("scale factors cannot be fitted without structures")
    fitted = {name: f for name, f in scale_factors(model).items() if name not in set(keep)}
    for factor in fitted.values():
        factor.scale_factor.fill_(1.0)
    return _Lockstep(fitted, num_batches, progress).fit(run)


class _Lockstep:
    """Evaluations of all batches, each in its own thread, that meet at every factor; only one computes at a time."""

    def __init__(
        self, factors: Mapping[str, ScaleFactor], num_batches: int, progress: Callable[[str, float], None] | None
    ) -> None:
        self._factors, self._progress = factors, progress
        self._values: dict[str, float] = {}
        self._name = ""
        self._seen: list[tuple[_Variance, _Variance]] = [(_Variance(), _Variance())] * num_batches
        self._failure: list[BaseException] = []
        self._turn = threading.Lock()
        self._meeting = threading.Barrier(num_batches, action=self._settle)
        self._batch = threading.local()

    def fit(self, run: Callable[[int], object]) -> dict[str, float]:
        for name, factor in self._factors.items():
            factor.observer = self._observer(name, factor)
        threads = [threading.Thread(target=self._evaluate, args=(run, k)) for k in range(len(self._seen))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:
            self._meeting.abort()  # interrupted: nobody may wait for the others any more
            raise
        finally:
            for factor in self._factors.values():
                factor.observer = None
        if self._failure:
            raise self._failure[0]
        return self._values

    def _evaluate(self, run: Callable[[int], object], number: int) -> None:
        self._batch.number = number
        try:
            with self._turn, torch.no_grad():
                run(number)
        except threading.BrokenBarrierError:
            pass  # another evaluation failed, and its error is kept
        except BaseException as error:
            self._failure.append(error)
            self._meeting.abort()

    def _observer(self, name: str, factor: ScaleFactor) -> Observer:
        def observer(reference: Tensor, output: Tensor, counts: Tensor | None) -> Tensor:
            before, after = _Variance(), _Variance()
            before.add(reference, counts)
            after.add(output, None)
            self._seen[self._batch.number] = before, after
            self._name = name
            self._turn.release()
            try:
                self._meeting.wait()
            finally:
                self._turn.acquire()
            return output * factor.scale_factor.to(output.dtype)

        return observer

    def _settle(self) -> None:
        """All batches have reached the same factor: give it its value."""
        before, after = (
            _Variance(sum(v.total for v in side), sum(v.rows for v in side)) for side in zip(*self._seen, strict=True)
        )
        ratio = before.value() / after.value() if after.value() > 0.0 else math.nan
        value = math.sqrt(ratio) if math.isfinite(ratio) and ratio > 0.0 else 1.0
        self._factors[self._name].scale_factor.fill_(value)
        self._values[self._name] = value
        if self._progress:
            self._progress(self._name, value)
