"""Edge dropout where graphs are built on the device: numbers drawn on the host, and handed to the rows there.

For large periodic structures drawing takes the host a while, so that it can be done beforehand (`Unbuilt.prepared`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jmp_ds.graphs.device_cells import room_for
from jmp_ds.graphs.device_plan import Plan
from jmp_ds.graphs.device_search import Rows, sent
from jmp_ds.graphs.device_selection import Sorted, before_each
from jmp_ds.graphs.neighbors import EdgeDropout
from jmp_ds.graphs.radius import BoolArray, IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnDropout(EdgeDropout):
    """Edge dropout whose first numbers have been drawn.

    Attributes:
        bits: uint8, for eight numbers each whether they leave an edge.
    """

    bits: NDArray[np.uint8]

    def kept(self, count: int) -> BoolArray:
        """As for any dropout."""
        if count > 8 * len(self.bits):
            return super().kept(count)
        return np.unpackbits(self.bits, count=count).view(np.bool_)


def numbers_to_draw(plan: Plan) -> IntArray:
    """int64 [B]: how many numbers `left_by_dropout` takes of every structure, but for further rounds of a cell list."""
    pairs = plan.natoms * (plan.natoms + 1) // 2
    rows = [
        room_for(plan, k).within if large else int(pairs[k]) * len(plan.images[k]) for k, large in enumerate(plan.large)
    ]
    return numbers_needed(plan, np.array(rows, dtype=np.int64))


def numbers_needed(plan: Plan, rows: IntArray) -> IntArray:
    """int64 [B]: one number for each of so many rows [B], and by the published rule another for its reverse."""
    return rows * np.where(_published(plan), 2, 1)


def _published(plan: Plan) -> BoolArray:
    return np.array([s.symmetrize == "jmp" for s in plan.settings], dtype=bool)


def left_by_dropout(
    dropout: Sequence[EdgeDropout | None], plan: Plan, candidates: Rows, rows: Sorted, begin: IntArray, end: IntArray
) -> Tensor | None:
    """What edge dropout leaves, bool [R], with the bits of the builder on the host; None where nothing is dropped.

    The k-th number of a sample's stream belongs to its k-th valid row (`selection`). How many of them there are is known
    on the device only, but not more than there are rows: so many are taken on the host.

    Args:
        dropout: per structure.
        plan: of the batch.
        candidates, rows: before and after sorting.
        begin, end: int64 [B], where the rows of every structure stand among the candidates.
    """
    if not any(d is not None and d.probability > 0.0 for d in dropout):
        return None
    device = rows.row.device
    sizes = numbers_needed(plan, end - begin)
    bits = [
        drop.kept(size) if drop is not None else np.ones(size, dtype=bool)
        for drop, size in zip(dropout, sizes.tolist(), strict=True)
    ]
    table, table_begin = sent(np.concatenate(bits), device), sent(np.cumsum(sizes) - sizes, device)
    before = before_each(candidates.valid)
    first, last = before[sent(begin, device)], before[sent(end, device)]
    structure = sent(plan.structure, device)[rows.target]
    number = before[rows.canonical] - first[structure]
    # the published rule goes on with the reversed rows, the invariant one drops both directions together
    published = sent(_published(plan), device)[structure]
    number = torch.where(published & ~rows.is_canonical, number + (last - first)[structure], number)
    return table[table_begin[structure] + torch.where(rows.valid, number, 0)]
