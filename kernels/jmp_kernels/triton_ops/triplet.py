"""`jmp::triplet`: messages of all edges into an atom, read by every edge into it, without a list of triplets.

    A[a,p,i] = Σ_{r→a} Y_in[r,p] x[r,i]
    o[e,k,i] = Σ_p f_l R[e,k,l(p)] Y_out[e,p] A[t(e),p,i] - (Σ_l P̃_l(1) R[e,k,l]) x[twin(e),i]

(linear message passing, section 1; f_l = sqrt(4π/(2l+1)).) One program makes the moments of one atom for one block of
channels, keeps them on the chip and reads them for output edges of that atom; neither A nor the table R·Y is stored.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from jmp_kernels.triton_ops.family import shares_of
from jmp_kernels.triton_ops.launch import Compiled, accumulator, check, register, settings, triton_dtype
from jmp_kernels.triton_ops.tiles import FORMATS, extent
from jmp_kernels.triton_ops.triplet_backward import composed_gradients, triplet_backward
from jmp_kernels.triton_ops.triplet_tiles import (
    FORMS,
    atom_moments,
    order_of,
    read_out_tile,
    sizes_of,
    twin_tile,
    twin_weight,
)


@triton.jit
def triplet_kernel(
    x, y_in, first_in, radial, y_out, first_out, twin, out,
    C: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    KP: tl.constexpr, PP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (atoms, blocks of channels, shares of the atom's output edges).

    A tile of the read-out holds BE edges, each with its K basis channels, padded to KP.
    """
    BE: tl.constexpr = BLOCK_OUT // KP if KP < BLOCK_OUT else 1
    atom = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    p = tl.arange(0, PP)
    order = order_of(p, L)
    start_in, rows = extent(first_in, atom)
    own_y = y_in + start_in * (L * L)
    moments = atom_moments(x + start_in * C, own_y, rows, p, order, c, C, L, PP, BC, BLOCK_IN, ACC, PRECISION)
    weight = twin_weight(p, order, L, ACC)

    start_out, edges = extent(first_out, atom)
    radial += start_out * (K * L)
    y_out += start_out * (L * L)
    twin += start_out
    out += start_out * (K * C)
    row = tl.arange(0, BE * KP)
    k = row % KP
    for start in range(tl.program_id(2) * BE, edges, tl.num_programs(2) * BE):
        e = start + row // KP
        used = (e < edges) & (k < K)
        r, y = read_out_tile(radial, y_out, e, k, used, p, order, K, L, ACC)
        o = tl.dot(r * y, moments, input_precision=PRECISION, out_dtype=ACC)
        o -= tl.sum(r * weight[None, :], 1)[:, None] * twin_tile(x, twin, e, used, c, C, ACC)
        place = (e * K + k)[:, None] * C + c[None, :]
        tl.store(out + place, o.to(out.dtype.element_ty), mask=used[:, None] & (c < C)[None, :])


def _triplet(
    x: Tensor,
    y_in: Tensor,
    first_in: Tensor,
    radial: Tensor,
    y_out: Tensor,
    first_out: Tensor,
    twin: Tensor,
    inverse_twin: Tensor,
) -> Tensor:
    check(x, y_in, first_in, radial, y_out, first_out, twin, inverse_twin)
    edges, basis, orders = radial.shape
    atoms, channels = first_in.shape[0] - 1, x.shape[1]
    if y_in.shape != (x.shape[0], orders**2) or y_out.shape != (edges, orders**2):
        raise ValueError(
            f"triplet: with {orders} orders, harmonics are [{x.shape[0]}, {orders**2}] and [{edges}, {orders**2}], "
            f"not {list(y_in.shape)} and {list(y_out.shape)}"
        )
    if first_out.shape != first_in.shape or twin.shape != (edges,) or inverse_twin.shape != (x.shape[0],):
        raise ValueError("triplet: both row pointers are of the same atoms; one twin per edge, one inverse per row")
    out = x.new_empty(edges, basis, channels)
    if out.numel() == 0:
        return out
    sizes = sizes_of(channels, basis, orders)
    chosen = settings("triplet", x.device, x.dtype, y_in.dtype, radial.dtype, y_out.dtype)
    blocks = triton.cdiv(channels, sizes["BC"])
    # every share makes the moments again: it should read out at least as many rows as those are made of
    shares = shares_of(edges, atoms, blocks, max(8, x.shape[0] // (atoms * basis)))
    triplet_kernel[(atoms, blocks, shares)](
        x.contiguous(), y_in.contiguous(), first_in, radial.contiguous(), y_out.contiguous(), first_out, twin, out,
        ACC=triton_dtype(accumulator(x.dtype, y_in.dtype, radial.dtype, y_out.dtype)), **sizes, **chosen,
    )  # fmt: skip
    return out


def _fake(
    x: Tensor,
    y_in: Tensor,
    first_in: Tensor,
    radial: Tensor,
    y_out: Tensor,
    first_out: Tensor,
    twin: Tensor,
    inverse_twin: Tensor,
) -> Tensor:
    return x.new_empty(radial.shape[0], radial.shape[1], x.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    harmonics = ctx.needs_input_grad[1] or ctx.needs_input_grad[4]
    if torch.is_grad_enabled():
        dx, dy_in, dradial, dy_out = composed_gradients(grad, *inputs[:-1])
    else:
        dx, dy_in, dradial, dy_out = triplet_backward(grad, *inputs, harmonics)
    if not harmonics:
        return dx, None, None, dradial, None, None, None, None
    return dx, dy_in, None, dradial, dy_out, None, None, None


#: o [E, K, C], in the dtype of x, from
#:   x [R, C] features of the input rows, sorted by target atom;  y_in [R, L²] their harmonics;
#:   first_in int64 [N + 1] their row pointer;
#:   radial R [E, K, L] radial weights of the output edges, sorted by target atom;  y_out [E, L²] their harmonics;
#:   first_out int64 [N + 1] their row pointer;
#:   twin int64 [E] the input row that is the same edge as e and is left out, -1 for none;
#:   inverse_twin int64 [R] the edge whose twin r is, -1 for none (`LookUp.inverse`); only the derivative reads it.
#: Harmonics and radial weights are float32 or float64. Sums are kept in float32, float64 where an input is.
#: ValueError for sizes that do not fit each other and for tensors that are not where kernels run.
triplet = register("triplet", _triplet, _fake, _setup_context, _backward)

COMPILED = [
    Compiled(
        name=f"triplet/{key}/L{orders}/K{basis}/C{channels}",
        kernel=triplet_kernel,
        tuned="triplet",
        number_format=key,
        arguments={
            "x": feature, "y_in": table, "first_in": "*i64", "radial": table, "y_out": table, "first_out": "*i64",
            "twin": "*i64", "out": feature,
        },
        constants={**sizes_of(channels, basis, orders), "ACC": sums},
    )
    for key, (channels, basis, orders) in FORMS
    for feature, table, sums in [FORMATS[key]]
]  # fmt: skip
