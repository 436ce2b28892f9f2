"""Sums over rows and their inverse, the gather, in Triton: `jmp::segment_sum` and `jmp::gather_rows`.

Both take the same description of who belongs where, an index and its transpose:

    index int64 [R]      where row r belongs, in 0 … S-1, or -1: nowhere
    order int64 [R']     the rows that belong somewhere, sorted by index; None: rows 0 … R-1 as they are
    first int64 [S+1]    rows of s are order[first[s]] … order[first[s+1] - 1]

so each is the other's derivative, and no sum needs atomics: all run in the same order every time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jmp_kernels.triton_ops import launch
from jmp_kernels.triton_ops.family import shares_of
from jmp_kernels.triton_ops.launch import Compiled, load


@triton.jit
def sum_kernel(
    x, first, order, out, segments,
    C: tl.constexpr, ORDERED: tl.constexpr, ACC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[share, s, i] = Σ x[r,i] over the share's rows of segment s; grid (S, blocks of i, shares)."""
    segment = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    share = tl.program_id(2)
    begin = tl.load(first + segment)
    end = tl.load(first + segment + 1)
    length = tl.cdiv(end - begin, tl.num_programs(2))
    begin = begin + share * length
    end = tl.minimum(end, begin + length)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_C), ACC)
    for start in range(begin, end, BLOCK_ROWS):
        r = start + tl.arange(0, BLOCK_ROWS)
        row = tl.load(order + r, mask=r < end, other=0) if ORDERED else r
        acc += load(x + row[:, None] * C + c[None, :], (r < end)[:, None] & (c < C)[None, :], ACC).to(ACC)
    place = (share.to(tl.int64) * segments + segment) * C
    tl.store(out + place + c, tl.sum(acc, 0).to(out.dtype.element_ty), mask=c < C)


@triton.jit
def gather_kernel(
    y, index, out, rows,
    C: tl.constexpr, ACC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[r,i] = y[index[r],i], zero where index[r] is negative; grid (blocks of r, blocks of i)."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.load(index + r, mask=r < rows, other=-1)
    value = load(y + row[:, None] * C + c[None, :], (row >= 0)[:, None] & (c < C)[None, :], ACC)
    tl.store(
        out + r[:, None] * C + c[None, :],
        value.to(out.dtype.element_ty),
        mask=(r < rows)[:, None] & (c < C)[None, :],
    )


def _segment_sum(
    x: Tensor, first: Tensor, index: Tensor, order: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    launch.check(x, first, index, order)
    if index.shape[0] != x.shape[0]:
        raise ValueError(f"segment_sum: {x.shape[0]} rows, but index has {index.shape[0]}")
    out_dtype = dtype or x.dtype
    segments, c = first.shape[0] - 1, math.prod(x.shape[1:])
    shape = (segments, *x.shape[1:])
    if segments == 0 or x.numel() == 0:
        return x.new_zeros(shape, dtype=out_dtype)
    x = x.contiguous()
    sizes = launch.settings("segment_sum", x.device, x.dtype)
    acc = launch.accumulator(x.dtype)
    blocks = triton.cdiv(c, sizes["BLOCK_C"])
    shares = shares_of(x.shape[0], segments, blocks, 8 * sizes["BLOCK_ROWS"])
    out = x.new_empty((shares, *shape), dtype=acc if shares > 1 else out_dtype)
    sum_kernel[(segments, blocks, shares)](
        x, first, first if order is None else order, out, segments,
        C=c, ORDERED=order is not None, ACC=launch.triton_dtype(acc), **sizes,
    )  # fmt: skip
    return out.sum(0).to(out_dtype) if shares > 1 else out[0]


def _gather_rows(
    y: Tensor, first: Tensor, index: Tensor, order: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    launch.check(y, first, index, order)
    if first.shape[0] - 1 != y.shape[0]:
        raise ValueError(f"gather_rows: {y.shape[0]} rows to gather from, but first has {first.shape[0]} entries")
    out_dtype = dtype or y.dtype
    rows, c = index.shape[0], math.prod(y.shape[1:])
    shape = (rows, *y.shape[1:])
    if rows == 0 or y.numel() == 0:
        return y.new_zeros(shape, dtype=out_dtype)
    out = y.new_empty(shape, dtype=out_dtype)
    sizes = launch.settings("gather_rows", y.device, y.dtype)
    gather_kernel[(triton.cdiv(rows, sizes["BLOCK_ROWS"]), triton.cdiv(c, sizes["BLOCK_C"]))](
        y.contiguous(), index, out, rows, C=c, ACC=launch.triton_dtype(launch.accumulator(y.dtype)), **sizes
    )
    return out


def _sum_fake(
    x: Tensor, first: Tensor, index: Tensor, order: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    return x.new_empty((first.shape[0] - 1, *x.shape[1:]), dtype=dtype or x.dtype)


def _gather_fake(
    y: Tensor, first: Tensor, index: Tensor, order: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    return y.new_empty((index.shape[0], *y.shape[1:]), dtype=dtype or y.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, first, index, order, _ = inputs
    ctx.save_for_backward(first, index, order)
    ctx.dtype = rows.dtype


def _sum_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return gather_rows(g, *ctx.saved_tensors, ctx.dtype), None, None, None, None


def _gather_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return segment_sum(g, *ctx.saved_tensors, ctx.dtype), None, None, None, None


#: y[s] = Σ x[r] over the rows of s: (x [R,…], first, index, order=None, dtype=None) to [S,…]. Accumulated in float32
#: (float64 for float64); dtype None: that of x.
segment_sum = launch.register("segment_sum", _segment_sum, _sum_fake, _keep, _sum_backward)

#: x[r] = y[index[r]], zero where index[r] = -1: (y [S,…], first, index, order=None, dtype=None) to [R,…].
gather_rows = launch.register("gather_rows", _gather_rows, _gather_fake, _keep, _gather_backward)

_POINTERS = {"float64": "*fp64", "float32": "*fp32", "half": "*bf16"}
_ACC = {"float64": tl.float64, "float32": tl.float32, "half": tl.float32}

COMPILED = [
    Compiled(
        name=f"segment_sum/{key}{'/ordered' if ordered else ''}",
        kernel=sum_kernel,
        tuned="segment_sum",
        number_format=key,
        arguments={"x": pointer, "first": "*i64", "order": "*i64", "out": pointer, "segments": "i32"},
        constants={"C": 256, "ORDERED": ordered, "ACC": _ACC[key]},
    )
    for key, pointer in _POINTERS.items()
    for ordered in (False, True)
] + [
    Compiled(
        name=f"gather_rows/{key}",
        kernel=gather_kernel,
        tuned="gather_rows",
        number_format=key,
        arguments={"y": pointer, "index": "*i64", "out": pointer, "rows": "i32"},
        constants={"C": 256, "ACC": _ACC[key]},
    )
    for key, pointer in _POINTERS.items()
]
