"""The trilinear segment family: three contractions that are each other's derivatives.

All come from one form over rows r with segment seg(r) (linear message passing, section 3):

    T(u, x, O) = Σ_r Σ_{p,i} u[r,p] · x[r,i] · O[seg(r),p,i]

The derivative of each member with respect to each argument is another member, so derivatives of any order stay inside
the family. Sums run in a fixed order: results are the same from run to run. Here each is a batched matrix product over
the padded layout [segments, width].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jmp_kernels.segments import Segments


class _Padded(torch.autograd.Function):
    """Every row has a place of its own, so the derivative reads the places back, and the other way round."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slot: Tensor, places: int) -> Tensor:
        ctx.save_for_backward(slot)
        return rows.new_zeros((places, *rows.shape[1:])).index_copy_(0, slot, rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (slot,) = ctx.saved_tensors
        return _Unpadded.apply(dy, slot), None, None


class _Unpadded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, places: Tensor, slot: Tensor) -> Tensor:
        ctx.count = places.shape[0]
        ctx.save_for_backward(slot)
        return places.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (slot,) = ctx.saved_tensors
        return _Padded.apply(dy, slot, ctx.count), None


def padded(rows: Tensor, segments: Segments) -> Tensor:
    """Rows [R, …] in the layout [S, width, …]; empty places are zero."""
    flat: Tensor = _Padded.apply(rows, segments.slot, segments.count * segments.width)
    return flat.view(segments.count, segments.width, *rows.shape[1:])


def unpadded(places: Tensor, segments: Segments) -> Tensor:
    """Inverse of `padded`: [S, width, …] to rows [R, …]."""
    rows: Tensor = _Unpadded.apply(places.flatten(0, 1), segments.slot)
    return rows


class _SegmentSum(torch.autograd.Function):
    """Keeps the indices only (index_add keeps the rows too)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros((count, *x.shape[1:])).index_add_(0, index, x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return dy.index_select(0, index), None, None


def segment_sum(x: Tensor, segments: Segments) -> Tensor:
    """Sum of the rows of every segment: [R, …] to [S, …]."""
    total: Tensor = _SegmentSum.apply(x, segments.index, segments.count)
    return total


def segment_outer(u: Tensor, x: Tensor, segments: Segments) -> Tensor:
    """O[s,p,i] = Σ_{r in s} u[r,p] x[r,i]: [R, P] and [R, C] to [S, P, C]."""
    return torch.bmm(padded(u, segments).transpose(1, 2), padded(x, segments))


def expand_feature(u: Tensor, outer: Tensor, segments: Segments) -> Tensor:
    """x[r,…,i] = Σ_p u[r,…,p] O[seg(r),p,i]: [R, P] or [R, K, P] and [S, P, C] to [R, C] or [R, K, C]."""
    rows = u if u.dim() == 3 else u[:, None]
    per_segment = padded(rows, segments).view(segments.count, segments.width * rows.shape[1], rows.shape[2])
    x = torch.bmm(per_segment, outer).view(segments.count, segments.width, rows.shape[1], outer.shape[2])
    x = unpadded(x, segments)
    return x if u.dim() == 3 else x[:, 0]


def expand_padded(table: Tensor, outer: Tensor, segments: Segments, basis: int) -> Tensor:
    """`expand_feature` with u given in the padded layout: [S, width · K, P] and [S, P, C] to [R, K, C], K = `basis`."""
    x = torch.bmm(table, outer)
    return unpadded(x.view(segments.count, segments.width, basis, outer.shape[2]), segments)


def expand_basis(x: Tensor, outer: Tensor, segments: Segments) -> Tensor:
    """u[r,p] = Σ_i x[r,i] O[seg(r),p,i]: [R, C] and [S, P, C] to [R, P]."""
    return unpadded(torch.bmm(padded(x, segments), outer.transpose(1, 2)), segments)
