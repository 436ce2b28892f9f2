"""The trilinear segment family in Triton: `jmp::segment_outer`, `jmp::expand_feature`, `jmp::expand_basis`.

All are partial contractions of T(u, x, O) = Σ_r Σ_{p,i} u[r,p] x[r,i] O[seg(r),p,i] (linear message passing, section
3), hence the derivative of each is given by the others, to any order. Rows are sorted by segment; rows of segment s are
first[s] … first[s+1] - 1 and `first` ends with R. No atomics: every output has one writer and one order of summation.

Several bases per row, u [R,K,P], are R·K rows in segments K times as long. One kernel forms the outer products, one the
two expansions, which differ in the side of O they contract.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jmp_kernels.triton_ops import launch
from jmp_kernels.triton_ops.launch import Compiled, dot, load

#: Programs worth having in flight: several for each of the hundred-odd multiprocessors. Fewer segments than this are
#: shared out among several programs.
PROGRAMS = 512


@triton.jit
def outer_kernel(
    u, x, first, out, segments,
    K: tl.constexpr, P: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[share, s, p, i] = Σ u[r,p] x[r,i] over the share's rows of segment s; grid (S, blocks of p and i, shares)."""
    segment = tl.program_id(0)
    blocks_c: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    p = tl.program_id(1) // blocks_c * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    share = tl.program_id(2)
    begin = tl.load(first + segment) * K
    end = tl.load(first + segment + 1) * K
    length = tl.cdiv(tl.cdiv(end - begin, BLOCK_ROWS), tl.num_programs(2)) * BLOCK_ROWS
    begin = begin + share * length
    end = tl.minimum(end, begin + length)
    acc = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for start in range(begin, end, BLOCK_ROWS):
        r = start + tl.arange(0, BLOCK_ROWS)
        u_tile = load(u + p[:, None] + r[None, :] * P, (p < P)[:, None] & (r < end)[None, :], ACC)
        x_tile = load(x + r[:, None] * C + c[None, :], (r < end)[:, None] & (c < C)[None, :], ACC)
        acc = dot(u_tile, x_tile, acc, DOT, ACC, PRECISION)
    place = (share.to(tl.int64) * segments + segment) * P * C
    tl.store(
        out + place + p[:, None] * C + c[None, :],
        acc.to(out.dtype.element_ty),
        mask=(p < P)[:, None] & (c < C)[None, :],
    )


@triton.jit
def expand_kernel(
    a, m, first, out,
    K: tl.constexpr, INNER: tl.constexpr, N: tl.constexpr, STRIDE_INNER: tl.constexpr, STRIDE_N: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_INNER: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[r,n] = Σ_j a[r,j] m[seg(r),j,n]; grid (S, blocks of n, shares of the segment's row tiles)."""
    segment = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = tl.load(first + segment) * K
    end = tl.load(first + segment + 1) * K
    matrix = m + segment * INNER * N + n[None, :] * STRIDE_N
    whole: tl.constexpr = INNER <= BLOCK_INNER  # then the matrix is read once, before the rows
    j = tl.arange(0, BLOCK_INNER)
    m_tile = load(matrix + j[:, None] * STRIDE_INNER, (j < INNER)[:, None] & (n < N)[None, :], ACC)
    for start in range(begin + tl.program_id(2) * BLOCK_ROWS, end, tl.num_programs(2) * BLOCK_ROWS):
        r = start + tl.arange(0, BLOCK_ROWS)
        acc = tl.zeros((BLOCK_ROWS, BLOCK_N), ACC)
        for offset in tl.static_range(0, INNER, BLOCK_INNER):
            j = offset + tl.arange(0, BLOCK_INNER)
            a_tile = load(a + r[:, None] * INNER + j[None, :], (r < end)[:, None] & (j < INNER)[None, :], ACC)
            if not whole:
                m_tile = load(matrix + j[:, None] * STRIDE_INNER, (j < INNER)[:, None] & (n < N)[None, :], ACC)
            acc = dot(a_tile, m_tile, acc, DOT, ACC, PRECISION)
        tl.store(
            out + r[:, None] * N + n[None, :],
            acc.to(out.dtype.element_ty),
            mask=(r < end)[:, None] & (n < N)[None, :],
        )


def shares_of(rows: int, segments: int, blocks: int, rows_per_share: int) -> int:
    """Into how many programs the rows of a segment are shared out: more than one where segments are few and long."""
    wanted = triton.cdiv(PROGRAMS, segments * blocks)
    return max(1, min(wanted, triton.cdiv(triton.cdiv(rows, segments), rows_per_share)))


def _repeats(rows: Tensor) -> int:
    """K of rows [R, K, …], 1 of rows [R, …]."""
    return rows.shape[1] if rows.dim() == 3 else 1


def _check_expand(rows: Tensor, outer: Tensor, first: Tensor, side: int) -> None:
    launch.check(rows, outer, first)
    if rows.dim() not in (2, 3) or rows.shape[-1] != side or outer.shape[0] != first.shape[0] - 1:
        raise ValueError(
            f"rows {tuple(rows.shape)} and O {tuple(outer.shape)} in {first.shape[0] - 1} segments do not fit together"
        )


def _segment_outer(u: Tensor, x: Tensor, first: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    launch.check(u, x, first)
    if u.shape[:-1] != x.shape[:-1] or u.dim() not in (2, 3):
        raise ValueError(f"rows u {tuple(u.shape)} and x {tuple(x.shape)} do not fit together")
    out_dtype = dtype or launch.accumulator(u.dtype, x.dtype)
    segments, p, c = first.shape[0] - 1, u.shape[-1], x.shape[-1]
    u, x = u.contiguous(), x.contiguous()
    if 0 in (segments, p, c) or u.numel() == 0:
        return x.new_zeros((segments, p, c), dtype=out_dtype)
    sizes = launch.settings("segment_outer", x.device, u.dtype, x.dtype)
    blocks = triton.cdiv(p, sizes["BLOCK_P"]) * triton.cdiv(c, sizes["BLOCK_C"])
    k = _repeats(u)
    shares = shares_of(u.shape[0] * k, segments, blocks, 4 * sizes["BLOCK_ROWS"])
    acc = launch.accumulator(u.dtype, x.dtype)
    out = x.new_empty((shares, segments, p, c), dtype=acc if shares > 1 else out_dtype)
    outer_kernel[(segments, blocks, shares)](
        u, x, first, out, segments, K=k, P=p, C=c,
        DOT=launch.triton_dtype(launch.dot_dtype(u.dtype, x.dtype)), ACC=launch.triton_dtype(acc), **sizes,
    )  # fmt: skip
    return out.sum(0).to(out_dtype) if shares > 1 else out[0]


def _expand(a: Tensor, outer: Tensor, first: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
    """Rows a times the matrix of their segment, O [S,P,C] or (transposed) O [S,C,P]."""
    segments, p, c = outer.shape
    inner, n = (c, p) if transposed else (p, c)
    a, outer = a.contiguous(), outer.contiguous()
    shape = (*a.shape[:-1], n)
    if 0 in (segments, p, c) or a.numel() == 0:
        return a.new_zeros(shape, dtype=dtype)
    out = a.new_empty(shape, dtype=dtype)
    sizes = launch.settings("expand", a.device, a.dtype, outer.dtype)
    k, blocks = _repeats(a), triton.cdiv(n, sizes["BLOCK_N"])
    shares = shares_of(a.shape[0] * k, segments, blocks, sizes["BLOCK_ROWS"])
    expand_kernel[(segments, blocks, shares)](
        a, outer, first, out, K=k, INNER=inner, N=n,
        STRIDE_INNER=1 if transposed else c, STRIDE_N=c if transposed else 1,
        DOT=launch.triton_dtype(launch.dot_dtype(a.dtype, outer.dtype)),
        ACC=launch.triton_dtype(launch.accumulator(a.dtype, outer.dtype)), **sizes,
    )  # fmt: skip
    return out


def _expand_feature(u: Tensor, outer: Tensor, first: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    _check_expand(u, outer, first, outer.shape[1])
    return _expand(u, outer, first, False, dtype or u.dtype)


def _expand_basis(x: Tensor, outer: Tensor, first: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    _check_expand(x, outer, first, outer.shape[2])
    return _expand(x, outer, first, True, dtype or x.dtype)


def _outer_fake(u: Tensor, x: Tensor, first: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    shape = (first.shape[0] - 1, u.shape[-1], x.shape[-1])
    return x.new_empty(shape, dtype=dtype or launch.accumulator(u.dtype, x.dtype))


def _feature_fake(u: Tensor, outer: Tensor, first: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return u.new_empty((*u.shape[:-1], outer.shape[2]), dtype=dtype or u.dtype)


def _basis_fake(x: Tensor, outer: Tensor, first: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], outer.shape[1]), dtype=dtype or x.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, first, _ = inputs
    ctx.save_for_backward(a, b, first)


def _outer_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    u, x, first = ctx.saved_tensors
    by_u = expand_basis(x, g, first, u.dtype) if ctx.needs_input_grad[0] else None
    by_x = expand_feature(u, g, first, x.dtype) if ctx.needs_input_grad[1] else None
    return by_u, by_x, None, None


def _feature_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    u, outer, first = ctx.saved_tensors
    by_u = expand_basis(g, outer, first, u.dtype) if ctx.needs_input_grad[0] else None
    by_outer = segment_outer(u, g, first, outer.dtype) if ctx.needs_input_grad[1] else None
    return by_u, by_outer, None, None


def _basis_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, outer, first = ctx.saved_tensors
    by_x = expand_feature(g, outer, first, x.dtype) if ctx.needs_input_grad[0] else None
    by_outer = segment_outer(g, x, first, outer.dtype) if ctx.needs_input_grad[1] else None
    return by_x, by_outer, None, None


#: O[s,p,i] = Σ_{r in s} u[r,p] x[r,i]: (u [R,P], x [R,C], first [S+1], dtype=None) to [S,P,C]; with u [R,K,P] and
#: x [R,K,C] the sum runs over K too. dtype None: float32, float64 where an input is.
segment_outer = launch.register("segment_outer", _segment_outer, _outer_fake, _keep, _outer_backward)

#: x[r,i] = Σ_p u[r,p] O[seg(r),p,i]: (u [R,P] or [R,K,P], O [S,P,C], first [S+1], dtype=None) to [R,C] or [R,K,C].
expand_feature = launch.register("expand_feature", _expand_feature, _feature_fake, _keep, _feature_backward)

#: u[r,p] = Σ_i x[r,i] O[seg(r),p,i]: (x [R,C] or [R,K,C], O [S,P,C], first [S+1], dtype=None) to [R,P] or [R,K,P].
expand_basis = launch.register("expand_basis", _expand_basis, _basis_fake, _keep, _basis_backward)

#: Number format to the types of u (geometry, float32 at least), of features, of O, and of the products.
_TYPES = {
    "float64": ("*fp64", "*fp64", "*fp64", tl.float64),
    "float32": ("*fp32", "*fp32", "*fp32", tl.float32),
    "tf32": ("*fp32", "*fp32", "*fp32", tl.float32),
    "half": ("*fp32", "*bf16", "*fp32", tl.float32),
}

#: The sizes of the published model: 49 harmonics, 16 bases per row, 64 channels.
COMPILED = [
    form
    for key, (u, x, outer, acc) in _TYPES.items()
    for form in (
        Compiled(
            name=f"segment_outer/{key}",
            kernel=outer_kernel,
            tuned="segment_outer",
            number_format=key,
            arguments={"u": u, "x": x, "first": "*i64", "out": outer, "segments": "i32"},
            constants={"K": 1, "P": 49, "C": 64, "DOT": acc, "ACC": acc},
        ),
        Compiled(
            name=f"expand_feature/{key}",
            kernel=expand_kernel,
            tuned="expand",
            number_format=key,
            arguments={"a": u, "m": outer, "first": "*i64", "out": x},
            constants={"K": 16, "INNER": 49, "N": 64, "STRIDE_INNER": 64, "STRIDE_N": 1, "DOT": acc, "ACC": acc},
        ),
        Compiled(
            name=f"expand_basis/{key}",
            kernel=expand_kernel,
            tuned="expand",
            number_format=key,
            arguments={"a": x, "m": outer, "first": "*i64", "out": u},
            constants={"K": 16, "INNER": 64, "N": 49, "STRIDE_INNER": 1, "STRIDE_N": 64, "DOT": acc, "ACC": acc},
        ),
    )
]
