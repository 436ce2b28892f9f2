"""Which structure comes next: temperature sampling over several sets, as a pure function of (seed, epoch, position).

Nothing is stored but the sizes: an epoch's order is a keyed bijection of its positions (order.py), so that 120 million
structures cost no memory, every rank and worker sees the same order without talking, and any position can be gone back to.
Source: specification section 7 ("Multi-task sampling"); decisions, "Training".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.order import Order, permute, permute_locally
from jmp_ds.errors import UserError

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Items:
    """A run of positions, spelled out; equal-length int64 arrays.

    Attributes:
        dataset: which set.
        repetition: how often the set has been gone through before, within this epoch.
        index: which structure of the set.
    """

    dataset: Ints
    repetition: Ints
    index: Ints


def expanded_sizes(sizes: Sequence[int], temperature: float) -> list[int]:
    """How many structures each set gives per epoch: ratios ∝ n^(1/T), the least repeated set being used exactly once.

    This is ceil(n_i · (n_i/n_ref)^(1/T - 1)) with n_ref the largest set (T ≥ 1). T = 1 repeats nothing, T = inf draws
    all sets equally often.

    Args:
        sizes: structures per set, each at least 1.
        temperature: T > 0.

    Raises:
        UserError: an empty set, or a temperature that is not positive.
    """
    if not sizes:
        raise UserError("sampling: there is no set of structures to draw from")
    for i, n in enumerate(sizes):
        if n < 1:
            raise UserError(f"sampling: set number {i + 1} of {len(sizes)} is empty")
    if not temperature > 0.0:
        raise UserError(f"sampling: temperature must be positive, got {temperature}")
    power = 1.0 / temperature - 1.0
    reference = max(sizes) if power <= 0.0 else min(sizes)
    return [_ceil(n * (n / reference) ** power) for n in sizes]


class Mixture:
    """The order in which structures are drawn; a value without state.

    Each epoch holds every (set, repetition, index) exactly once, in an order of its own. Where a set's size does not
    divide its expanded size, the last repetition is partial; the next epoch goes on where it stopped (cyclically), so
    that over a run no structure is drawn more than once more often than another of its set.
    """

    def __init__(self, sizes: Sequence[int], temperature: float, seed: int, order: Order = "random") -> None:
        """Args: structures per set, temperature (see `expanded_sizes`), seed of the order, kind of order (order.py).

        Raises:
            UserError: see `expanded_sizes`.
        """
        self.sizes = tuple(int(n) for n in sizes)
        self.temperature = float(temperature)
        self.seed = int(seed)
        self.order: Order = order
        self.expanded = tuple(expanded_sizes(self.sizes, self.temperature))
        self._starts = [0, *accumulate(self.expanded)]

    def __len__(self) -> int:
        """Positions per epoch."""
        return self._starts[-1]

    def items(self, epoch: int, start: int, stop: int) -> Items:
        """What stands at positions start ≤ p < stop of an epoch (cut at its end)."""
        slots = self.slots(epoch, start, stop)
        out = Items(*(np.empty(len(slots), dtype=np.int64) for _ in range(3)))
        for number, own in self.by_dataset(slots):
            out.dataset[own] = number
            out.repetition[own], out.index[own] = self.within(epoch, number, slots[own])
        return out

    def slots(self, epoch: int, start: int, stop: int) -> Ints:
        """Where positions start ≤ p < stop of an epoch (cut at its end) lead: places in the sets laid end to end."""
        positions = np.arange(start, min(stop, len(self)), dtype=np.int64)
        arrange = permute if self.order == "random" else permute_locally
        return arrange(positions, len(self), f"{self.seed}/{epoch}")

    def by_dataset(self, slots: Ints) -> Iterator[tuple[int, Ints]]:
        """For each set, where in `slots` its own ones stand."""
        for number, (first, end) in enumerate(pairwise(self._starts)):
            yield number, np.flatnonzero((slots >= first) & (slots < end))

    def within(self, epoch: int, number: int, slots: Ints) -> tuple[Ints, Ints]:
        """Repetition and index of slots that belong to one set."""
        # One set at a time, because dividing by one number is many times faster than by an array.
        n, expanded = self.sizes[number], self.expanded[number]
        index = slots - self._starts[number]
        repetition = index // n if expanded > n else np.zeros(len(slots), dtype=np.int64)
        if expanded > n:
            index -= repetition * n
        if shift := epoch * expanded % n:  # where the previous epochs left off in the cycle through the set
            index += shift
            index[index >= n] -= n
        return repetition, index

    def item(self, epoch: int, position: int) -> tuple[int, int, int]:
        """(dataset, repetition, index) at one position.

        Raises:
            IndexError: the epoch has no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of an epoch with {len(self)}")
        one = self.items(epoch, position, position + 1)
        return int(one.dataset[0]), int(one.repetition[0]), int(one.index[0])


def _ceil(x: float) -> int:
    """Smallest integer not below x, where rounding errors of x do not count."""
    nearest = round(x)
    return nearest if abs(x - nearest) <= 1e-12 * max(1.0, abs(x)) else math.ceil(x)
