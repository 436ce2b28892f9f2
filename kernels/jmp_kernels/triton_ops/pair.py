"""`jmp::pair`: features of source atoms, gathered and summed into outer products of target atoms.

    O[a,k,i] = Σ_{r→a} w[r,k] h[source(r),i]

(atom-atom interaction; linear message passing, section 1.) The gathered rows h[source] are never stored. The derivative
makes, per target, w'[r,k] = Σ_i O'[a,k,i] h[source(r),i] and the row's part of h', Σ_k w[r,k] O'[a,k,i]; these parts are
then summed per source, in a fixed order, by the transpose of `source`. No atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jmp_kernels.triton_ops.family import expand_basis, expand_feature, shares_of
from jmp_kernels.triton_ops.launch import Compiled, accumulator, block, check, register, settings, triton_dtype
from jmp_kernels.triton_ops.rows import gather_rows, segment_sum
from jmp_kernels.triton_ops.tiles import FORMATS, extent, tile


@triton.jit
def pair_kernel(
    weight, h, source, first, out, atoms,
    C: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[share, a, k, i] over the share's rows of atom a; grid (atoms, blocks of channels, shares)."""
    atom = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    k = tl.arange(0, KP)
    start, rows = extent(first, atom)
    weight += start * K
    source += start
    sums = tl.zeros([KP, BC], ACC)
    for begin in range(tl.program_id(2) * BLOCK_ROWS, rows, tl.num_programs(2) * BLOCK_ROWS):
        r = begin + tl.arange(0, BLOCK_ROWS)
        inside = r < rows
        feature = tile(h, tl.load(source + r, mask=inside, other=0), c, C, inside, ACC)
        by_row = tile(weight, r, k, K, inside, ACC)
        sums = tl.dot(tl.trans(by_row), feature, sums, input_precision=PRECISION, out_dtype=ACC)
    out += (tl.program_id(2) * atoms + atom) * (K * C)
    place = k[:, None] * C + c[None, :]
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=(k < K)[:, None] & (c < C)[None, :])


@triton.jit
def pair_backward_kernel(
    grad, weight, h, source, first, dweight, drow, num_rows,
    C: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (atoms, blocks of channels, shares of the atom's rows); dweight is left per block of channels."""
    atom = tl.program_id(0).to(tl.int64)
    channel_block = tl.program_id(1).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    k = tl.arange(0, KP)
    start, rows = extent(first, atom)
    weight += start * K
    source += start
    dweight += (channel_block * num_rows + start) * K
    drow += start * C
    g = tile(grad + atom * (K * C), k, c, C, k < K, ACC)
    for begin in range(tl.program_id(2) * BLOCK_ROWS, rows, tl.num_programs(2) * BLOCK_ROWS):
        r = begin + tl.arange(0, BLOCK_ROWS)
        inside = r < rows
        feature = tile(h, tl.load(source + r, mask=inside, other=0), c, C, inside, ACC)
        dw = tl.dot(feature, tl.trans(g), input_precision=PRECISION, out_dtype=ACC)
        place = r[:, None] * K + k[None, :]
        tl.store(dweight + place, dw.to(dweight.dtype.element_ty), mask=inside[:, None] & (k < K)[None, :])
        dh = tl.dot(tile(weight, r, k, K, inside, ACC), g, input_precision=PRECISION, out_dtype=ACC)
        place = r[:, None] * C + c[None, :]
        tl.store(drow + place, dh.to(drow.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])


def _sizes(channels: int, basis: int) -> dict[str, int]:
    """C and K, and what they are padded to: KP, and BC, the channels per program."""
    return {"C": channels, "K": basis, "KP": block(basis, 1024), "BC": block(channels, 64)}


def _pair(
    weight: Tensor, h: Tensor, source: Tensor, first: Tensor, source_order: Tensor, source_first: Tensor
) -> Tensor:
    check(weight, h, source, first, source_order, source_first)
    (rows, basis), channels, atoms = weight.shape, h.shape[1], first.shape[0] - 1
    if source.shape != (rows,) or source_order.shape != (rows,) or source_first.shape != (h.shape[0] + 1,):
        raise ValueError(
            f"pair: {rows} rows of weights and {h.shape[0]} atoms need source [{rows}], its order [{rows}] and first "
            f"[{h.shape[0] + 1}], not {list(source.shape)}, {list(source_order.shape)} and {list(source_first.shape)}"
        )
    if rows == 0 or atoms == 0 or channels == 0:
        return h.new_zeros(atoms, basis, channels)
    sizes = _sizes(channels, basis)
    chosen = settings("pair", h.device, weight.dtype, h.dtype)
    sums = accumulator(weight.dtype, h.dtype)
    blocks = triton.cdiv(channels, sizes["BC"])
    shares = shares_of(rows, atoms, blocks, 4 * chosen["BLOCK_ROWS"])
    out = h.new_empty(shares, atoms, basis, channels, dtype=h.dtype if shares == 1 else sums)
    pair_kernel[(atoms, blocks, shares)](
        weight.contiguous(), h.contiguous(), source, first, out, atoms, ACC=triton_dtype(sums), **sizes, **chosen
    )
    return out[0] if shares == 1 else out.sum(0).to(h.dtype)


def _fake(
    weight: Tensor, h: Tensor, source: Tensor, first: Tensor, source_order: Tensor, source_first: Tensor
) -> Tensor:
    return h.new_empty(first.shape[0] - 1, weight.shape[1], h.shape[1])


@torch.library.custom_op("jmp::pair_backward", mutates_args=())
def pair_backward(
    grad: Tensor,
    weight: Tensor,
    h: Tensor,
    source: Tensor,
    first: Tensor,
    source_order: Tensor,
    source_first: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and h of `jmp::pair`; has no derivative itself (`composed_gradients` has).

    Args:
        grad: [N, K, C], gradient of the output.
        weight, h, source, first, source_order, source_first: as given to `jmp::pair`.

    Returns:
        Gradients with the shapes and dtypes of weight and h.
    """
    check(grad, weight, h, source, first, source_order, source_first)
    (rows, basis), channels, atoms = weight.shape, h.shape[1], first.shape[0] - 1
    if rows == 0 or atoms == 0 or channels == 0:
        return torch.zeros_like(weight), torch.zeros_like(h)
    sizes = _sizes(channels, basis)
    chosen = settings("pair_backward", h.device, weight.dtype, h.dtype)
    sums = accumulator(weight.dtype, h.dtype)
    blocks = triton.cdiv(channels, sizes["BC"])
    dweight = weight.new_empty(blocks, rows, basis, dtype=weight.dtype if blocks == 1 else sums)
    drow = h.new_empty(rows, channels, dtype=sums)
    shares = shares_of(rows, atoms, blocks, chosen["BLOCK_ROWS"])
    with torch.cuda.device_of(h):  # triton launches on the current GPU, whatever the tensors'
        pair_backward_kernel[(atoms, blocks, shares)](
            grad.contiguous(), weight.contiguous(), h.contiguous(), source, first, dweight, drow, rows,
            ACC=triton_dtype(sums), **sizes, **chosen,
        )  # fmt: skip
    dh = segment_sum(drow, source_first, source, source_order, h.dtype)
    return dweight[0] if blocks == 1 else dweight.sum(0).to(weight.dtype), dh


@pair_backward.register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    h: Tensor,
    source: Tensor,
    first: Tensor,
    source_order: Tensor,
    source_first: Tensor,
) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), h.new_empty(h.shape)


def composed_gradients(
    grad: Tensor,
    weight: Tensor,
    h: Tensor,
    source: Tensor,
    first: Tensor,
    source_order: Tensor,
    source_first: Tensor,
) -> tuple[Tensor, Tensor]:
    """What `pair_backward` returns, from operators of the family: differentiable to any order.

    Args:
        grad, weight, h, source, first, source_order, source_first: as there.
    """
    work = accumulator(weight.dtype, h.dtype)
    g, w, feature = (t.to(work) for t in (grad, weight, h))
    dweight = expand_basis(gather_rows(feature, source_first, source, source_order), g, first)
    dh = segment_sum(expand_feature(w, g, first), source_first, source, source_order)
    return dweight.to(weight.dtype), dh.to(h.dtype)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = composed_gradients if torch.is_grad_enabled() else pair_backward
    dweight, dh = gradients(grad, *ctx.saved_tensors)
    return dweight, dh, None, None, None, None


#: O [N, K, C], in the dtype of h, from
#:   weight w [R, K] of the rows, sorted by target atom;  h [N_s, C] features of the source atoms;
#:   source int64 [R], the source atom of every row;  first int64 [N + 1], row pointer of the rows;
#:   source_order int64 [R] and source_first int64 [N_s + 1], the rows sorted by source: the transpose of `source`, which
#:   only the derivative reads.
#: Sums are kept in float32, float64 where an input is. ValueError for sizes that do not fit each other and for tensors
#: that are not where kernels run.
pair = register("pair", _pair, _fake, _setup_context, _backward)

#: Number formats with channels and basis channels, as compiled offline.
_FORMS = [("float64", (64, 16))] + [
    (key, sizes) for key in ("float32", "tf32", "half") for sizes in ((64, 16), (16, 16), (64, 32))
]

COMPILED = [
    Compiled(
        name=f"pair/{key}/K{basis}/C{channels}",
        kernel=pair_kernel,
        tuned="pair",
        number_format=key,
        arguments={
            "weight": table, "h": feature, "source": "*i64", "first": "*i64", "out": feature, "atoms": "i32",
        },
        constants={**_sizes(channels, basis), "ACC": sums},
    )
    for key, (channels, basis) in _FORMS
    for feature, table, sums in [FORMATS[key]]
] + [
    Compiled(
        name=f"pair_backward/{key}/K{basis}/C{channels}",
        kernel=pair_backward_kernel,
        tuned="pair_backward",
        number_format=key,
        arguments={
            "grad": feature, "weight": table, "h": feature, "source": "*i64", "first": "*i64", "dweight": table,
            "drow": "*fp64" if key == "float64" else "*fp32", "num_rows": "i32",
        },
        constants={**_sizes(channels, basis), "ACC": sums},
        forward=False,
    )
    for key, (channels, basis) in _FORMS
    for feature, table, sums in [FORMATS[key]]
]  # fmt: skip
