"""Rows that belong to segments: sorted, so that a sum over a segment reads one contiguous piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """R rows, sorted by the segment they belong to (compressed sparse rows).

    Attributes:
        index: int64 [R], the segment of every row, ascending.
        first: int64 [S + 1], rows of segment s are first[s] … first[s + 1] - 1.
        slot: int64 [R], where the row stands in the padded layout [count, width]: index · width + rank in the segment.
        count: number of segments S; some may be empty.
        width: size of the largest segment, known on the host.
    """

    index: Tensor
    first: Tensor
    slot: Tensor
    count: int
    width: int

    @property
    def num_rows(self) -> int:
        """R."""
        return self.index.shape[0]


def segments_of(index: Tensor, count: int) -> Segments:
    """Segments of rows whose (ascending) segment numbers are given; for CPU tensors, no gradient.

    Args:
        index: int64 [R], ascending, each in 0 … count-1.
        count: number of segments.

    Raises:
        ValueError: the rows are not sorted, or a segment number is out of range.
    """
    if index.numel():
        if bool((index[1:] < index[:-1]).any()):
            raise ValueError("segments_of: rows must be sorted by their segment")
        if int(index[0]) < 0 or int(index[-1]) >= count:
            raise ValueError(f"segments_of: segment numbers must be in 0 … {count - 1}")
    size = torch.bincount(index, minlength=count)
    width = int(size.max()) if count else 0
    first = torch.cat([size.new_zeros(1), torch.cumsum(size, 0)])
    rank = torch.arange(index.shape[0]) - first[index]
    return Segments(index=index, first=first, slot=index * width + rank, count=count, width=width)
