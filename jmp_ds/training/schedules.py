"""Learning rates over a run: warm-up, cosine, plateau control; early stopping.

Batches are cut by cost, so the number of steps is not known beforehand: the position in a run is what it has consumed,
in any unit (fraction of the run, epochs), as long as all numbers use the same one. With constant batches the rates
equal the published per-step ones (specification sections 7 and 9.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

ScheduleKind = Literal["warmup_cosine", "warmup_cosine_plateau", "constant"]


@dataclass(frozen=True, kw_only=True)
class PlateauOptions:
    """Reduce the rate when the metric no longer falls (specification section 9.1, whose values are the defaults).

    Attributes:
        factor: of every reduction.
        patience: validations without improvement that are tolerated.
        threshold: relative improvement that counts.
        eps: a reduction smaller than this is not made.
    """

    factor: float = 0.8
    patience: int = 3
    threshold: float = 1.0e-4
    eps: float = 1.0e-8


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Shape of the schedule. `warmup` and `end` are positions, in the unit in which positions are told.

    Attributes:
        kind: `warmup_cosine` (pre-training), `warmup_cosine_plateau` (fine-tuning) or `constant`.
        warmup: position at which the warm-up has reached the peak.
        end: position at which the cosine has reached its floor.
        start_factor: of the peak, at the first step.
        floor_factor: of the base rate, at the end of the cosine.
        floor_limits: every group's floor is clip(floor_factor / multiplier, *floor_limits) of its own peak, so that all
            groups end at the same rate where the limits allow (published fine-tuning; without effect for one group).
        plateau: used by `warmup_cosine_plateau`.
    """

    kind: ScheduleKind = "warmup_cosine"
    warmup: float = 0.02
    end: float = 1.0
    start_factor: float = 0.2
    floor_factor: float = 0.1
    floor_limits: tuple[float, float] = (0.0, 1.0)
    plateau: PlateauOptions = PlateauOptions()


class Schedule:
    """Learning rates of all groups as a function of the position, and of the validations so far."""

    def __init__(self, options: ScheduleOptions, base_lr: float, multipliers: Sequence[float]) -> None:
        self.options = options
        self.base_lr = base_lr
        self.multipliers = tuple(multipliers)
        low, high = options.floor_limits
        self._peaks = [base_lr * m for m in self.multipliers]
        self._floors = [
            p * min(max(options.floor_factor / m, low), high)
            for p, m in zip(self._peaks, self.multipliers, strict=True)
        ]
        self._plateau_rates: list[float] | None = None
        self._best = math.inf
        self._bad = 0

    def rates(self, position: float, step: float) -> list[float]:
        """Rates for a step.

        Args:
            position: consumed before the step.
            step: what the step consumes; with constant batches the warm-up then reaches the peak in its last step.
        """
        if self._plateau_rates is not None:
            return list(self._plateau_rates)
        return [self._rate(peak, floor, position, step) for peak, floor in zip(self._peaks, self._floors, strict=True)]

    def _rate(self, peak: float, floor: float, position: float, step: float) -> float:
        """Warm-up and cosine of one group."""
        o = self.options
        if o.kind == "constant":
            return peak
        # Differences below a millionth of a step are rounding of the position, not progress.
        if position < o.warmup - 1e-6 * step:
            length = o.warmup - step
            risen = min(position / length, 1.0) if length > 1e-6 * step else 1.0
            return peak * (o.start_factor + (1.0 - o.start_factor) * risen)
        if position >= o.end - 1e-6 * step or o.end <= o.warmup:
            return floor
        return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * (position - o.warmup) / (o.end - o.warmup)))

    def validated(self, metric: float, position: float, step: float) -> bool:
        """Take note of a validation at a position; metrics before the end of the cosine are not seen (as published).

        Args:
            metric: the smaller the better.
            position: consumed so far.
            step: what the last step consumed.

        Returns:
            Whether the rates were reduced.
        """
        if self.options.kind != "warmup_cosine_plateau" or position < self.options.end - 1e-6 * step:
            return False
        if self._plateau_rates is None:
            self._plateau_rates = list(self._floors)
        plateau = self.options.plateau
        if metric < self._best * (1.0 - plateau.threshold):
            self._best, self._bad = metric, 0
            return False
        self._bad += 1
        if self._bad <= plateau.patience:
            return False
        self._bad = 0
        before = self._plateau_rates
        reduced = [r * plateau.factor for r in before]
        self._plateau_rates = [
            new if old - new > plateau.eps else old for old, new in zip(before, reduced, strict=True)
        ]
        return self._plateau_rates != before

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on."""
        return {"plateau_rates": self._plateau_rates, "best": _finite(self._best), "bad": self._bad}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        rates = state["plateau_rates"]
        self._plateau_rates = None if rates is None else [float(r) for r in rates]
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._bad = int(state["bad"])


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingOptions:
    """When to give up (specification section 9.1).

    Attributes:
        patience: validations without improvement.
        min_delta: what counts as improvement, absolute.
        min_lr: stop when every rate is below.
    """

    patience: int = 50
    min_delta: float = 1.0e-8
    min_lr: float = 1.0e-8


class EarlyStopping:
    """Counts validations without improvement of the primary metric."""

    def __init__(self, options: EarlyStoppingOptions) -> None:
        self.options = options
        self._best = math.inf
        self._bad = 0

    def validated(self, metric: float, rates: Sequence[float]) -> str | None:
        """Take note of a validation; the reason to stop, if there is one now."""
        if metric < self._best - self.options.min_delta:
            self._best, self._bad = metric, 0
        else:
            self._bad += 1
        if self._bad >= self.options.patience:
            return f"no improvement in {self._bad} validations (best {self._best:.6g})"
        if rates and max(rates) < self.options.min_lr:
            return f"learning rate {max(rates):.3g} is below {self.options.min_lr:.3g}"
        return None

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on."""
        return {"best": _finite(self._best), "bad": self._bad}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._bad = int(state["bad"])


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
