"""Which structures share a batch: windows of the order, cut by a budget of cost and shared out evenly.

A structure's cost is its number of edges, or what a cost model makes of its counts (costs.py).

One optimizer step is a window of world · accumulation micro-batches over consecutive positions. Every rank computes the
whole plan from the same pure inputs, so that nobody has to talk and all have the same number of micro-batches. The only
state is the position where the window starts: another number of ranks can go on from it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError

Ints = NDArray[np.int64]
#: Costs of the positions start ≤ p < stop of an epoch.
Costs = Callable[[int, int], NDArray[Any]]


@dataclass(frozen=True)
class EdgeBudget:
    """Fill every micro-batch up to this many edges, or units of cost (a structure with more goes alone)."""

    edges: int

    def __post_init__(self) -> None:
        if self.edges < 1:
            raise UserError(f"batch: the budget must be at least 1 edge, got {self.edges}")


@dataclass(frozen=True)
class StructureCount:
    """A fixed number of structures per optimizer step, over all ranks and micro-batches; no limit on edges."""

    structures: int

    def __post_init__(self) -> None:
        if self.structures < 1:
            raise UserError(f"batch: a step needs at least 1 structure, got {self.structures}")


BatchRule = EdgeBudget | StructureCount

#: From this many bins on, items are shared out round by round, and the first two shares are not tried: they seldom fit.
_MANY = 24
#: Shares of the budgets that are tried.
_SHARES = (1.0, 0.995, 0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.91, 0.88, 0.85, 0.81, 0.77, 0.72, 0.67, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True, eq=False)
class StepPlan:
    """One optimizer step.

    Attributes:
        start, stop: the positions start ≤ p < stop that it consumes.
        world: ranks.
        accumulation: micro-batches per rank.
        place: int64 [stop - start], by position the micro-batch it goes to: micro · world + rank. At the end of an epoch
            some micro-batches may get nothing.
    """

    start: int
    stop: int
    world: int
    accumulation: int
    place: Ints

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, StepPlan)
            and (self.start, self.stop, self.world, self.accumulation)
            == (other.start, other.stop, other.world, other.accumulation)
            and np.array_equal(self.place, other.place)
        )

    __hash__ = None  # type: ignore[assignment]

    def part(self, micro: int, rank: int) -> Ints:
        """Positions of one micro-batch, counted from `start`, ascending."""
        return np.flatnonzero(self.place == micro * self.world + rank)

    @cached_property
    def parts(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """`parts[micro][rank]`: the positions of every micro-batch, ascending; for people and tests, not for a loop."""
        return tuple(
            tuple(tuple((self.start + self.part(micro, rank)).tolist()) for rank in range(self.world))
            for micro in range(self.accumulation)
        )


def plan_step(costs: Costs, length: int, position: int, rule: BatchRule, world: int, accumulation: int) -> StepPlan:
    """The step that starts at `position`.

    With an `EdgeBudget` the window is as long as it can be, up to a few per cent: the longest of some runs of positions
    that the balanced partition fits into world · accumulation micro-batches.

    Args:
        costs: edges per structure, by position; numbers below 1 count as 1.
        length: positions in the epoch.
        position: where the step starts, below `length`.
        rule: how much goes into a step.
        world: ranks.
        accumulation: micro-batches per rank and step.

    Raises:
        IndexError: the epoch is over at `position`.
    """
    if not 0 <= position < length:
        raise IndexError(f"position {position} of an epoch with {length}")
    count = world * accumulation
    if isinstance(rule, StructureCount):
        window = _clipped(costs(position, min(position + rule.structures, length)), None)
        owner, loads = share_out(window, count)
    else:
        owner, loads = _fill(_window(costs, length, position, rule.edges, count), rule.edges, count)
    place = _deal(loads, world)[owner]
    return StepPlan(position, position + len(owner), world, accumulation, place)


def share_out(costs: Ints, count: int) -> tuple[Ints, Ints]:
    """Share items out over `count` bins, the largest first, each to the bin with the least so far (LPT).

    Equal costs keep their order and equal bins are taken by number, so the result is the same everywhere.

    Args:
        costs: [n], at least 1; their sum below 2^62 / max(n, count).
        count: bins.

    Returns:
        The bin of each item, int64 [n], and the sum of costs in each bin, int64 [count].
    """
    order = _ascending(-costs)
    least_first = _one_by_one if count < _MANY else _round_by_round
    bins, loads = least_first(costs[order], count)
    owner = np.empty(len(costs), dtype=np.int64)
    owner[order] = bins
    return owner, loads


def _one_by_one(costs: Ints, count: int) -> tuple[Ints, Ints]:
    """Bins of descending costs, by a heap."""
    heap = [(0, i) for i in range(count)]
    bins = []
    for cost in costs.tolist():
        load, i = heap[0]
        heapq.heapreplace(heap, (load + cost, i))
        bins.append(i)
    loads = [load for load, _ in sorted(heap, key=lambda entry: entry[1])]
    return np.array(bins, dtype=np.int64), np.array(loads, dtype=np.int64)


def _round_by_round(costs: Ints, count: int) -> tuple[Ints, Ints]:
    """The same bins as `_one_by_one`, many items at a time.

    The next items go to the bins in the order of their loads as long as none that has been given one in this round is
    below (or level with) the next bin.
    """
    loads = np.zeros(count, dtype=np.int64)
    bins = np.empty(len(costs), dtype=np.int64)
    at = 0
    while at < len(costs):
        least = _ascending(loads)[: len(costs) - at]
        before = loads[least]
        after = before + costs[at : at + len(least)]
        overtaken = before[1:] >= np.minimum.accumulate(after[:-1])
        taken = int(overtaken.argmax()) + 1 if overtaken.any() else len(least)
        loads[least[:taken]] = after[:taken]
        bins[at : at + taken] = least[:taken]
        at += taken
    return bins, loads


def _ascending(values: Ints) -> Ints:
    """Stable argsort: value and place in one number each, because plain sorting is many times faster."""
    bits = max(len(values) - 1, 0).bit_length()
    packed = np.sort((values << bits) | np.arange(len(values), dtype=np.int64))
    return packed & ((1 << bits) - 1)


def _window(costs: Costs, length: int, position: int, budget: int, count: int) -> tuple[Ints, Ints]:
    """Costs from `position` on and their cumulative sum, as far as all budgets together can hold."""
    known = _clipped(costs(position, min(position + 4 * count, length)), budget)
    total = np.cumsum(known)
    while total[-1] <= budget * count and position + len(known) < length:
        at = position + len(known)
        # a little more than what is missing if costs go on as they are; twice as much at most
        more = min(len(known), int(len(known) * (1.05 * budget * count / total[-1] - 1.0)) + 8)
        known = np.concatenate([known, _clipped(costs(at, min(at + more, length)), budget)])
        total = np.cumsum(known)
    n = int(np.searchsorted(total, budget * count, side="right"))
    return known[:n], total[:n]


def _fill(window: tuple[Ints, Ints], budget: int, count: int) -> tuple[Ints, Ints]:
    """The longest of some beginnings of the window that fits the budgets, shared out: owners and loads.

    Only a few lengths are tried, from all of it downwards, closely at first: what is left over is at most a few per cent.
    """
    costs, total = window
    for share in _SHARES[2 if count >= _MANY else 0 :]:
        n = int(np.searchsorted(total, share * budget * count, side="right"))
        if n <= count:
            break
        owner, loads = share_out(costs[:n], count)
        if loads.max() <= budget:
            return owner, loads
    return share_out(costs[:count], count)  # one each: this always fits


def _clipped(costs: NDArray[Any], budget: int | None) -> Ints:
    """Costs of at least 1 and, for a structure that goes alone, exactly the budget."""
    out = np.maximum(np.asarray(costs, dtype=np.int64), 1)
    return out if budget is None else np.minimum(out, budget, out=out)


def _deal(loads: Ints, world: int) -> Ints:
    """Place (micro · world + rank) of each bin.

    Heaviest first to the micro-batches, so that ranks run side by side on similar ones; back and forth over the ranks, so
    that none has the heaviest each time.
    """
    place = np.arange(len(loads), dtype=np.int64)
    micro, rank = np.divmod(place, world)
    place = micro * world + np.where(micro % 2 == 1, world - 1 - rank, rank)
    out = np.empty_like(place)
    out[_ascending(-loads)] = place
    return out
