"""What comes next in an epoch, found out some thousand positions at a time: the structures and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.mixture import Items, Mixture
from jmp_ds.data.sources import Source

Ints = NDArray[np.int64]
#: Positions per block. Arrays of this length stay below the size at which the C library asks the system for each of them.
_BLOCK = 8192


class LookAhead:
    """A view of one epoch that moves forward: blocks are made when they are asked for, and forgotten once passed."""

    def __init__(self, mixture: Mixture, sources: Sequence[Source], epoch: int) -> None:
        """Args: the order, its sources, the epoch."""
        self.epoch = epoch
        self._mixture, self._sources = mixture, sources
        self._blocks: dict[int, tuple[Items, Ints]] = {}

    def costs(self, start: int, stop: int) -> Ints:
        """Costs at the positions start ≤ p < stop. Blocks before `start` are forgotten."""
        first = start // _BLOCK
        for passed in [number for number in self._blocks if number < first - 1]:
            del self._blocks[passed]
        parts = []
        for number in range(first, -(-stop // _BLOCK)):
            offset = number * _BLOCK
            parts.append(self._block(number)[1][max(start - offset, 0) : stop - offset])
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def samples(self, positions: Ints) -> tuple[tuple[int, int, int], ...]:
        """(source, index in its store, repetition) of what stands at each position."""
        return tuple(self._sample(p) for p in positions.tolist())

    def _sample(self, position: int) -> tuple[int, int, int]:
        items, _ = self._block(position // _BLOCK)
        i = position % _BLOCK
        number = int(items.dataset[i])
        place = items.index[i : i + 1]
        return number, int(self._sources[number].indices[place][0]), int(items.repetition[i])

    def _block(self, number: int) -> tuple[Items, Ints]:
        """Items and costs of one block, made anew if they are not there."""
        if number not in self._blocks:
            items = self._mixture.items(self.epoch, number * _BLOCK, (number + 1) * _BLOCK)
            self._blocks[number] = (items, self._costs(items))
        return self._blocks[number]

    def _costs(self, items: Items) -> Ints:
        out = np.zeros(len(items.dataset), dtype=np.int64)
        for number, source in enumerate(self._sources):
            own = np.flatnonzero(items.dataset == number)
            out[own] = source.costs(items.index[own])
        return out
