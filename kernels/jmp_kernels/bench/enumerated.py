"""Triplets and quadruplets written out and padded to the longest list, as the published formulation has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_kernels.bench.lists import Lists
from jmp_kernels.segments import Segments, segments_of


@dataclass(frozen=True)
class Terms:
    """The terms of every output row.

    Attributes:
        by_row: terms as segments, one per output row.
        source: int64 [T], input row of every term.
        via: int64 [T], out-pair of every term (quadruplets; for triplets the output edge).
    """

    by_row: Segments
    source: Tensor
    via: Tensor

    def padded_source(self, none: int) -> Tensor:
        """int64 [rows · width], the input row of every place, `none` where there is no term."""
        places = self.source.new_full((self.by_row.count * self.by_row.width,), none)
        return places.index_copy(0, self.by_row.slot, self.source)

    def padded(self, table: Tensor) -> Tensor:
        """Table [T, W] in the padded layout, transposed as products want it: [rows, W, width]."""
        flat = table.new_zeros(self.by_row.count * self.by_row.width, table.shape[1])
        flat = flat.index_copy(0, self.by_row.slot, table)
        return flat.view(self.by_row.count, self.by_row.width, table.shape[1]).transpose(1, 2).contiguous()


def triplets(lists: Lists) -> Terms:
    """For every main edge the main edges into the same atom, but itself."""
    s = lists.main
    owner, row = _expanded(s.first[s.index], s.first[s.index + 1])
    kept = owner != row
    return _terms(owner[kept], row[kept], owner[kept], s.num_rows)


def quadruplets(lists: Lists) -> Terms:
    """For every edge that reads the in-triplets of all its middle bonds, but those with d = c."""
    m = lists.middles
    middle = m.middle.index
    pair, row = _expanded(m.by_middle.first[middle], m.by_middle.first[middle + 1])
    kept = row != m.same.signed[pair]
    return _terms(m.by_reader.index[pair[kept]], row[kept], pair[kept], m.by_reader.count)


def count_triplets(lists: Lists) -> int:
    """Their number, padding included."""
    return lists.main.num_rows * lists.main.width


def count_quadruplets(lists: Lists) -> int:
    """Their number, padding included."""
    m = lists.middles
    if not m.by_reader.num_rows:
        return 0
    per_pair = m.by_middle.first.diff()[m.middle.index]
    total = torch.zeros(m.by_reader.count, dtype=torch.int64, device=per_pair.device)
    return m.by_reader.count * int(total.index_add(0, m.by_reader.index, per_pair).max())


def _expanded(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """All integers of many ranges: (number of the range, integer)."""
    length = stop - start
    owner = torch.repeat_interleave(torch.arange(len(start), device=start.device), length)
    rank = torch.arange(len(owner), device=start.device) - (torch.cumsum(length, 0) - length)[owner]
    return owner, start[owner] + rank


def _terms(owner: Tensor, source: Tensor, via: Tensor, count: int) -> Terms:
    device = owner.device
    host = segments_of(owner.cpu(), count)
    moved = Segments(owner, host.first.to(device), host.slot.to(device), count, host.width)
    return Terms(moved, source, via)
