"""Rows that belong to segments: sorted, so that a sum over a segment reads one contiguous piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def cached_index(make: Callable[[Any], T]) -> cached_property[T]:
    """A property that is computed once; a batch first seen in inference mode can be trained on afterwards."""

    @wraps(make)
    def outside(owner: Any) -> T:
        with torch.inference_mode(False):
            return make(owner)

    return cached_property(outside)


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

    @cached_index
    def rows(self) -> Tensor:
        """int64 [R]: 0 … R - 1, every row's own number; made when first asked for."""
        return torch.arange(self.num_rows, device=self.index.device)


@dataclass(frozen=True)
class Transposed:
    """Which rows take each row of another list: those at order[first[s]] … order[first[s + 1] - 1], ascending.

    Attributes:
        first: int64 [S + 1].
        order: int64 [R].
    """

    first: Tensor
    order: Tensor


@dataclass(frozen=True)
class Gather:
    """For each of R rows the row of another list (of `count` rows) that it takes, in any order.

    Attributes:
        index: int64 [R], each in 0 … count-1.
        count: rows there.
    """

    index: Tensor
    count: int

    @cached_index
    def transposed(self) -> Transposed:
        """The other way round; made when first asked for, without a host synchronisation."""
        return _transposed(self.index, self.count)


@dataclass(frozen=True)
class LookUp:
    """For each of R rows the matching row of another list (of `count` rows), or none.

    Attributes:
        index: int64 [R]; 0 where there is none.
        found: bool [R].
        count: rows there.
    """

    index: Tensor
    found: Tensor
    count: int

    @cached_index
    def signed(self) -> Tensor:
        """int64 [R]: the row, -1 where there is none."""
        return torch.where(self.found, self.index, -1)

    @cached_index
    def transposed(self) -> Transposed:
        """The other way round; rows without a match stand at the end, past every `first`.

        Made when first asked for, without a host synchronisation.
        """
        return _transposed(self._or_beyond, self.count)

    @cached_index
    def inverse(self) -> Tensor:
        """int64 [count]: the row whose match each row there is, -1 for none; for matches that no two rows share.

        Made when first asked for, without a host synchronisation.
        """
        inverse = self.index.new_full((self.count + 1,), -1)
        rows = torch.arange(self.index.shape[0], device=self.index.device)
        return inverse.scatter(0, self._or_beyond, rows)[: self.count]

    @property
    def _or_beyond(self) -> Tensor:
        """int64 [R]: the row, `count` where there is none."""
        return torch.where(self.found, self.index, self.count)


def _transposed(index: Tensor, count: int) -> Transposed:
    order = torch.argsort(index, stable=True)
    first = torch.searchsorted(index.index_select(0, order), torch.arange(count + 1, device=index.device))
    return Transposed(first=first, order=order)


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
