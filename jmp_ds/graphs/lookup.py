"""Finding an edge by its ends and offset, and writing out index ranges: the two tools that graphs are made with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class EdgeTable:
    """Edges sorted by target, found by (source, target, offset).

    Attributes:
        source, target: int64 [E].
        offset: int64 [E, 3].
        first: int64 [N+1], where the edges into every atom begin.
        num_edges: E.
    """

    def __init__(self, rows: IntArray, num_atoms: int) -> None:
        """Take rows (source, target, o1, o2, o3), sorted by target."""
        self.source, self.target, self.offset = rows[:, 0], rows[:, 1], rows[:, 2:]
        self.num_edges = len(rows)
        self.first = np.searchsorted(self.target, np.arange(num_atoms + 1)).astype(np.int64)
        self._num_atoms = num_atoms
        self._reach = int(np.abs(self.offset).max()) if len(rows) else 0
        key = self._key(self.source, self.target, self.offset)
        self._order = np.argsort(key, kind="stable")
        self._sorted = key[self._order]

    def _key(self, source: IntArray, target: IntArray, offset: IntArray) -> IntArray:
        base = 2 * self._reach + 1
        key = source * self._num_atoms + target
        for axis in range(3):
            key = key * base + offset[:, axis] + self._reach
        return key

    def find(self, source: IntArray, target: IntArray, offset: IntArray) -> IntArray:
        """Index of every wanted edge, -1 where it does not exist."""
        if not self.num_edges:
            return np.full(len(source), -1, dtype=np.int64)
        within: NDArray[np.bool_] = np.asarray((np.abs(offset) <= self._reach).all(axis=1))
        key = self._key(source, target, np.where(within[:, None], offset, 0))
        at = np.minimum(np.searchsorted(self._sorted, key), self.num_edges - 1)
        return np.where(within & (self._sorted[at] == key), self._order[at], -1)


def expand_ranges(start: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """All integers of many ranges: (number of the range, integer), range by range.

    Args:
        start, stop: int64 [R]; stop >= start.
    """
    length = stop - start
    owner = np.repeat(np.arange(len(start), dtype=np.int64), length)
    within = np.arange(len(owner), dtype=np.int64) - np.repeat(np.cumsum(length) - length, length)
    return owner, start[owner] + within
