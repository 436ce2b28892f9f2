"""Which structure comes next: temperature sampling over several sets, as a pure function of (seed, epoch, position).

Nothing is stored but the sizes: an epoch's order is a keyed bijection of its positions, so that 120 million structures
cost no memory, every rank and worker sees the same order without talking, and any position can be gone back to.
Source: specification section 7 ("Multi-task sampling"); decisions, "Training".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError

Ints = NDArray[np.int64]
_ROUNDS = 8


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

    def __init__(self, sizes: Sequence[int], temperature: float, seed: int) -> None:
        """Args: structures per set, temperature (see `expanded_sizes`), seed of the order.

        Raises:
            UserError: see `expanded_sizes`.
        """
        self.sizes = tuple(int(n) for n in sizes)
        self.temperature = float(temperature)
        self.seed = int(seed)
        self.expanded = tuple(expanded_sizes(self.sizes, self.temperature))
        self._starts = np.concatenate([[0], np.cumsum(self.expanded)]).astype(np.int64)

    def __len__(self) -> int:
        """Positions per epoch."""
        return int(self._starts[-1])

    def items(self, epoch: int, start: int, stop: int) -> Items:
        """What stands at positions start ≤ p < stop of an epoch (cut at its end)."""
        stop = min(stop, len(self))
        slots = permute(np.arange(start, stop, dtype=np.int64), len(self), f"{self.seed}/{epoch}")
        dataset = np.searchsorted(self._starts, slots, side="right") - 1
        within = slots - self._starts[dataset]
        sizes = np.array(self.sizes, dtype=np.int64)
        # Where the previous epochs left off in the cycle through each set.
        shift = np.array([epoch * e % n for e, n in zip(self.expanded, self.sizes, strict=True)], dtype=np.int64)
        n = sizes[dataset]
        return Items(dataset=dataset, repetition=within // n, index=(within + shift[dataset]) % n)

    def item(self, epoch: int, position: int) -> tuple[int, int, int]:
        """(dataset, repetition, index) at one position.

        Raises:
            IndexError: the epoch has no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of an epoch with {len(self)}")
        one = self.items(epoch, position, position + 1)
        return int(one.dataset[0]), int(one.repetition[0]), int(one.index[0])


def permute(values: Ints, length: int, key: str) -> Ints:
    """Image of each value under a bijection of 0..length-1 that `key` chooses.

    A Feistel network on pairs (value div b, value mod b) with a·b barely above `length`; what falls outside is sent
    through again until it is inside (cycle walking), which keeps it a bijection.
    """
    a = max(1, math.isqrt(max(length - 1, 0)) + 1)
    b = max(1, -(-length // a))
    digest = hashlib.blake2b(key.encode(), digest_size=8 * 8).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    out = _feistel(values.astype(np.uint64), a, b, keys)
    while (outside := np.flatnonzero(out >= length)).size:
        out[outside] = _feistel(out[outside], a, b, keys)
    return out.astype(np.int64)


def _feistel(values: NDArray[np.uint64], a: int, b: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass: the two halves are shifted in turn by a hash of the other."""
    left, right = np.divmod(values, np.uint64(b))
    for i in range(0, _ROUNDS, 2):
        left = (left + scramble(right ^ keys[i]) % np.uint64(a)) % np.uint64(a)
        right = (right + scramble(left ^ keys[i + 1]) % np.uint64(b)) % np.uint64(b)
    return left * np.uint64(b) + right


def scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A fixed bijective hash of 64-bit integers (the finaliser of splitmix64); wraps around by design."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _ceil(x: float) -> int:
    """Smallest integer not below x, where rounding errors of x do not count."""
    nearest = round(x)
    return nearest if abs(x - nearest) <= 1e-12 * max(1.0, abs(x)) else math.ceil(x)
