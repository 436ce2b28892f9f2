"""What comes next in an epoch, found out some thousand positions at a time: the structures and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.mixture import Mixture
from jmp_ds.data.sources import Source

Ints = NDArray[np.int64]
#: Positions per block. Arrays of this length stay below the size at which the C library asks the system for each of them.
_BLOCK = 8192


class LookAhead:
    """A view of one epoch that moves forward: blocks are made when they are asked for, and kept until `move_to`."""

    def __init__(self, mixture: Mixture, sources: Sequence[Source], epoch: int) -> None:
        """Args: the order, its sources, the epoch."""
        self.epoch = epoch
        self._mixture, self._sources = mixture, sources
        self._blocks: dict[int, tuple[Ints, Ints]] = {}

    def move_to(self, position: int) -> None:
        """Forget what lies before a position."""
        for passed in [number for number in self._blocks if number < position // _BLOCK]:
            del self._blocks[passed]

    def costs(self, start: int, stop: int) -> Ints:
        """Costs at the positions start ≤ p < stop."""
        parts = []
        for number in range(start // _BLOCK, -(-stop // _BLOCK)):
            offset = number * _BLOCK
            parts.append(self._block(number)[1][max(start - offset, 0) : stop - offset])
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def samples(self, positions: Ints) -> tuple[tuple[int, int, int], ...]:
        """(source, index in its store, repetition) of what stands at each position."""
        numbers, offsets = np.divmod(positions, _BLOCK)
        slots = np.array(
            [self._block(k)[0][i] for k, i in zip(numbers.tolist(), offsets.tolist(), strict=True)], np.int64
        )
        out = [(0, 0, 0)] * len(slots)
        for number, own in self._mixture.by_dataset(slots):
            repetition, index = self._mixture.within(self.epoch, number, slots[own])
            records = self._sources[number].indices[index]
            for i, record, again in zip(own.tolist(), records.tolist(), repetition.tolist(), strict=True):
                out[i] = (number, record, again)
        return tuple(out)

    def _block(self, number: int) -> tuple[Ints, Ints]:
        """Slots and costs of one block, made anew if they are not there."""
        if number not in self._blocks:
            slots = self._mixture.slots(self.epoch, number * _BLOCK, (number + 1) * _BLOCK)
            costs = np.empty(len(slots), dtype=np.int64)
            for source, own in self._mixture.by_dataset(slots):
                _, index = self._mixture.within(self.epoch, source, slots[own])
                costs[own] = self._sources[source].costs(index)
            self._blocks[number] = (slots, costs)
        return self._blocks[number]
