"""Which structures share a batch: windows of the order, cut by a budget of edges and shared out evenly.

One optimizer step is a window of world · accumulation micro-batches over consecutive positions. Every rank computes the
whole plan from the same pure inputs, so that nobody has to talk and all have the same number of micro-batches. The only
state is the position where the window starts: another number of ranks can go on from it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError

#: Costs of the positions start ≤ p < stop of an epoch.
Costs = Callable[[int, int], NDArray[Any]]


@dataclass(frozen=True)
class EdgeBudget:
    """Fill every micro-batch up to this many edges (a structure with more goes alone)."""

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


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step.

    Attributes:
        start, stop: the positions start ≤ p < stop that it consumes.
        parts: `parts[micro][rank]` are the positions of one micro-batch, ascending; at the end of an epoch some may be
            empty.
    """

    start: int
    stop: int
    parts: tuple[tuple[tuple[int, ...], ...], ...]


def plan_step(costs: Costs, length: int, position: int, rule: BatchRule, world: int, accumulation: int) -> StepPlan:
    """The step that starts at `position`.

    With an `EdgeBudget` the window is as long as it can be: the longest run of positions (found by a search) that the
    balanced partition fits into world · accumulation micro-batches.

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
        stop = min(position + rule.structures, length)
        bins = partition(_clipped(costs(position, stop), None), count, None)
    else:
        stop, bins = _longest_window(costs, length, position, rule.edges, count)
    return StepPlan(position, stop, _deal(bins, position, world, accumulation))


def partition(costs: NDArray[np.int64], count: int, budget: int | None) -> list[list[int]]:
    """Share items out over `count` bins, the largest first, each to the bin with the least so far (LPT).

    Equal costs keep their order and equal bins are taken by number, so the result is the same everywhere.

    Returns:
        The bins, heaviest first; empty list of bins if an item would push a bin that is not empty over the budget.
    """
    heap = [(0, i) for i in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    order = np.argsort(-costs, kind="stable")
    for item, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        load, i = heap[0]
        total = load + cost
        if budget is not None and load > 0 and total > budget:
            return []
        heapq.heapreplace(heap, (total, i))
        bins[i].append(item)
    return [bins[i] for _, i in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]


def _longest_window(costs: Costs, length: int, position: int, budget: int, count: int) -> tuple[int, list[list[int]]]:
    """End of the longest window that fits, and its bins."""
    known = _clipped(costs(position, min(position + 4 * count, length)), budget)
    # A window whose costs add up to more than all budgets cannot fit; read on until that point or the end.
    while known.sum() <= budget * count and position + len(known) < length:
        more = costs(position + len(known), min(position + 2 * len(known), length))
        known = np.concatenate([known, _clipped(more, budget)])
    upper = int(np.searchsorted(np.cumsum(known), budget * count, side="right"))
    if whole := partition(known[:upper], count, budget):
        return position + upper, whole
    best = min(count, upper)  # one each: this always fits
    bins = partition(known[:best], count, budget)
    # Good windows lie near the upper end, so the search leans there; it may stop 0.4 % short of the longest.
    while upper - best > upper // 256:
        trial = upper - (upper - best) // 8
        found = partition(known[:trial], count, budget)
        if found:
            best, bins = trial, found
        else:
            upper = trial - 1
    return position + best, bins


def _clipped(costs: NDArray[Any], budget: int | None) -> NDArray[np.int64]:
    """Costs of at least 1 and, for a structure that goes alone, exactly the budget."""
    return np.clip(np.asarray(costs, dtype=np.int64), 1, budget)


def _deal(
    bins: list[list[int]], position: int, world: int, accumulation: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Heaviest first to the micro-batches, so that ranks run side by side on similar ones; back and forth over the
    ranks, so that none has the heaviest each time.
    """
    dealt = []
    for micro in range(accumulation):
        row = bins[micro * world : (micro + 1) * world]
        row = row[::-1] if micro % 2 else row
        dealt.append(tuple(tuple(sorted(position + i for i in part)) for part in row))
    return tuple(dealt)
