"""First derivative of `jmp::triplet`, fused, and the same as a composition that can be differentiated again.

With o' the gradient of o (symbols of triplet.py), per atom

    A'[p,i] = Σ_{e,k} U[e,k,p] o'[e,k,i]              U'[e,k,p] = Σ_i o'[e,k,i] A[p,i]
    R'[e,k,l] = Σ_m f_l Y_out[e,lm] U'[e,k,lm] - P̃_l(1) Σ_i o'[e,k,i] x[twin(e),i]
    Y_out'[e,p] = Σ_k f_l R[e,k,l(p)] U'[e,k,p]       Y_in'[r,p] = Σ_i x[r,i] A'[p,i]
    x'[r,i] = Σ_p Y_in[r,p] A'[p,i] - Σ_k (Σ_l P̃_l(1) R[e,k,l]) o'[e,k,i],  e the edge whose twin is r

One program makes A again, sweeps over the output edges, and then over the input rows: no atomics, a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from jmp_kernels.triton_ops.family import expand_basis, expand_feature, segment_outer
from jmp_kernels.triton_ops.launch import Compiled, accumulator, block, check, settings, triton_dtype
from jmp_kernels.triton_ops.rows import gather_rows, segment_sum
from jmp_kernels.triton_ops.tiles import FORMATS, extent, tile
from jmp_kernels.triton_ops.triplet_tiles import (
    FORMS,
    addition_factor,
    atom_moments,
    order_of,
    read_out_tile,
    sizes_of,
    twin_tile,
    twin_weight,
)


@triton.jit
def triplet_backward_kernel(
    grad, x, y_in, first_in, radial, y_out, first_out, twin, inverse_twin, dx, dy_in, dradial, dy_out, num_rows, num_edges,
    C: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    KP: tl.constexpr, LP: tl.constexpr, PP: tl.constexpr, BC: tl.constexpr, HARMONICS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (atoms, blocks of channels); sums over channels are left per block, in dradial, dy_in and dy_out."""
    P: tl.constexpr = L * L
    BE: tl.constexpr = BLOCK_OUT // KP if KP < BLOCK_OUT else 1
    atom = tl.program_id(0).to(tl.int64)
    channel_block = tl.program_id(1).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    l = tl.arange(0, LP)
    p = tl.arange(0, PP)
    order = order_of(p, L)
    start_in, rows = extent(first_in, atom)
    start_out, edges = extent(first_out, atom)
    own_x = x + start_in * C
    own_y = y_in + start_in * P
    moments = atom_moments(own_x, own_y, rows, p, order, c, C, L, PP, BC, BLOCK_IN, ACC, PRECISION)
    weight = twin_weight(p, order, L, ACC)
    of_order = ((order[:, None] == l[None, :]) & (p < P)[:, None]).to(ACC)

    # output edges: R', Y_out', and A' on the way
    own_grad = grad + start_out * K * C
    own_radial = radial + start_out * (K * L)
    y_out += start_out * P
    twin += start_out
    dradial += (channel_block * num_edges + start_out) * (K * L)
    dy_out += (channel_block * num_edges + start_out) * P
    dmoments = tl.zeros([PP, BC], ACC)
    row = tl.arange(0, BE * KP)
    k = row % KP
    for start in range(0, edges, BE):
        e = start + row // KP
        used = (e < edges) & (k < K)
        r, y = read_out_tile(own_radial, y_out, e, k, used, p, order, K, L, ACC)
        g = tile(own_grad, e * K + k, c, C, used, ACC)
        dmoments = tl.dot(tl.trans(r * y), g, dmoments, input_precision=PRECISION, out_dtype=ACC)
        du = tl.dot(g, tl.trans(moments), input_precision=PRECISION, out_dtype=ACC)
        excluded = tl.sum(g * twin_tile(x, twin, e, used, c, C, ACC), 1)
        by_harmonic = du * y - excluded[:, None] * weight[None, :]
        dr = tl.dot(by_harmonic, of_order, input_precision=PRECISION, out_dtype=ACC)
        place = ((e * K + k) * L)[:, None] + l[None, :]
        tl.store(dradial + place, dr.to(dradial.dtype.element_ty), mask=used[:, None] & (l < L)[None, :])
        if HARMONICS:
            dy = tl.sum(tl.reshape(du * r, [BE, KP, PP]), 1)
            edge = start + tl.arange(0, BE)
            place = edge[:, None] * P + p[None, :]
            mask = (edge < edges)[:, None] & (p < P)[None, :]
            tl.store(dy_out + place, dy.to(dy_out.dtype.element_ty), mask=mask)
    dmoments *= addition_factor(order, ACC)[:, None]

    # input rows: x' and Y_in'
    inverse_twin += start_in
    dx += start_in * C
    dy_in += (channel_block * num_rows + start_in) * P
    share = 1.0 / addition_factor(l, ACC)
    for start in range(0, rows, BLOCK_IN):
        i = start + tl.arange(0, BLOCK_IN)
        inside = i < rows
        basis = tile(own_y, i, p, P, inside, ACC)
        d = tl.dot(basis, dmoments, input_precision=PRECISION, out_dtype=ACC)
        edge = tl.load(inverse_twin + i, mask=inside, other=-1)
        for j in range(K):
            read = edge * K + j
            own = tl.sum(tile(radial, read, l, L, edge >= 0, ACC) * share[None, :], 1)
            d -= own[:, None] * tile(grad, read, c, C, edge >= 0, ACC)
        place = i[:, None] * C + c[None, :]
        tl.store(dx + place, d.to(dx.dtype.element_ty), mask=inside[:, None] & (c < C)[None, :])
        if HARMONICS:
            feature = tile(own_x, i, c, C, inside, ACC)
            dy = tl.dot(feature, tl.trans(dmoments), input_precision=PRECISION, out_dtype=ACC)
            place = i[:, None] * P + p[None, :]
            tl.store(dy_in + place, dy.to(dy_in.dtype.element_ty), mask=inside[:, None] & (p < P)[None, :])


@torch.library.custom_op("jmp::triplet_backward", mutates_args=())
def triplet_backward(
    grad: Tensor,
    x: Tensor,
    y_in: Tensor,
    first_in: Tensor,
    radial: Tensor,
    y_out: Tensor,
    first_out: Tensor,
    twin: Tensor,
    inverse_twin: Tensor,
    harmonics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y_in, radial and y_out of `jmp::triplet`; has no derivative itself (`composed_gradients` has).

    Args:
        grad: [E, K, C], gradient of the output.
        x, y_in, first_in, radial, y_out, first_out, twin, inverse_twin: as given to `jmp::triplet`.
        harmonics: whether the gradients of y_in and y_out are wanted; if not, both are empty tensors.

    Returns:
        Gradients with the shapes and dtypes of x, y_in, radial and y_out.
    """
    check(grad, x, y_in, first_in, radial, y_out, first_out, twin, inverse_twin)
    (edges, basis, orders), (rows, channels), atoms = radial.shape, x.shape, first_in.shape[0] - 1
    sizes = sizes_of(channels, basis, orders)
    blocks = triton.cdiv(channels, sizes["BC"])
    # with several channel blocks their sums are kept in full precision until they are added up
    sums = accumulator(x.dtype, y_in.dtype, radial.dtype, y_out.dtype)
    kept = 1 if harmonics else 0
    dx = x.new_empty(rows, channels)
    dradial = radial.new_empty(blocks, edges, basis, orders, dtype=radial.dtype if blocks == 1 else sums)
    dy_in = y_in.new_empty(blocks, rows * kept, orders**2, dtype=y_in.dtype if blocks == 1 else sums)
    dy_out = y_out.new_empty(blocks, edges * kept, orders**2, dtype=y_out.dtype if blocks == 1 else sums)
    if atoms and blocks:
        with torch.cuda.device_of(x):  # triton launches on the current GPU, whatever the tensors'
            triplet_backward_kernel[(atoms, blocks)](
                grad.contiguous(), x.contiguous(), y_in.contiguous(), first_in, radial.contiguous(), y_out.contiguous(),
                first_out, twin, inverse_twin, dx, dy_in, dradial, dy_out, rows, edges,
                LP=block(orders, 64), HARMONICS=harmonics, ACC=triton_dtype(sums), **sizes,
                **settings("triplet_backward", x.device, x.dtype, y_in.dtype, radial.dtype, y_out.dtype),
            )  # fmt: skip
    if blocks == 1:
        return dx, dy_in[0], dradial[0], dy_out[0]
    return dx, dy_in.sum(0).to(y_in.dtype), dradial.sum(0).to(radial.dtype), dy_out.sum(0).to(y_out.dtype)


@triplet_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    y_in: Tensor,
    first_in: Tensor,
    radial: Tensor,
    y_out: Tensor,
    first_out: Tensor,
    twin: Tensor,
    inverse_twin: Tensor,
    harmonics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept = 1 if harmonics else 0
    return (
        x.new_empty(x.shape),
        y_in.new_empty(y_in.shape[0] * kept, y_in.shape[1]),
        radial.new_empty(radial.shape),
        y_out.new_empty(y_out.shape[0] * kept, y_out.shape[1]),
    )


def composed_gradients(
    grad: Tensor,
    x: Tensor,
    y_in: Tensor,
    first_in: Tensor,
    radial: Tensor,
    y_out: Tensor,
    first_out: Tensor,
    twin: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `triplet_backward` returns, from operators of the family: differentiable to any order.

    Args:
        grad, x, y_in, first_in, radial, y_out, first_out, twin: as there.
    """
    work = accumulator(x.dtype, y_in.dtype, radial.dtype, y_out.dtype)
    g, feature, basis_in, r, basis_out = (t.to(work) for t in (grad, x, y_in, radial, y_out))
    factor, spread = _addition_tables(r)
    own_weight = factor.reciprocal()

    expanded = r @ spread
    moments = segment_outer(basis_in, feature, first_in)
    dmoments = segment_outer(expanded * basis_out[:, None], g, first_out)
    dx = expand_feature(basis_in, dmoments, first_in)
    dy_in = expand_basis(feature, dmoments, first_in)
    du = expand_basis(g, moments, first_out)
    dradial = (du * basis_out[:, None]) @ spread.T
    dy_out = (du * expanded).sum(1)

    # the twin: rows by the edge that names them; those without one come first and belong to no row
    in_order, by_twin = torch.sort(twin, stable=True)
    first = torch.searchsorted(in_order, torch.arange(x.shape[0] + 1, device=twin.device))
    of_twin = gather_rows(feature, first, twin, by_twin)
    own = (r * own_weight).sum(2)
    dx = dx - segment_sum((own[:, :, None] * g).sum(1), first, twin, by_twin)
    dradial = dradial - (g * of_twin[:, None]).sum(2, keepdim=True) * own_weight
    return dx.to(x.dtype), dy_in.to(y_in.dtype), dradial.to(radial.dtype), dy_out.to(y_out.dtype)


def _addition_tables(radial: Tensor) -> tuple[Tensor, Tensor]:
    """f_l [L], and f_l at (l, p) for the harmonics p of order l, 0 elsewhere [L, L²]."""
    orders = torch.arange(radial.shape[2], device=radial.device)
    order_of_harmonic = torch.sqrt(torch.arange(radial.shape[2] ** 2, device=radial.device) + 0.5).to(torch.int64)
    factor = torch.sqrt(4.0 * torch.pi / (2 * orders + 1).to(radial.dtype))
    return factor, torch.where(orders[:, None] == order_of_harmonic, factor[:, None], 0.0)


COMPILED = [
    Compiled(
        name=f"triplet_backward/{key}/L{orders}/K{basis}/C{channels}{'' if harmonics else '/no_harmonics'}",
        kernel=triplet_backward_kernel,
        tuned="triplet_backward",
        number_format=key,
        arguments={
            "grad": feature, "x": feature, "y_in": table, "first_in": "*i64", "radial": table, "y_out": table,
            "first_out": "*i64", "twin": "*i64", "inverse_twin": "*i64", "dx": feature, "dy_in": table,
            "dradial": table, "dy_out": table, "num_rows": "i32", "num_edges": "i32",
        },
        constants={**sizes_of(channels, basis, orders), "LP": 16, "HARMONICS": harmonics, "ACC": sums},
        forward=False,
    )
    for key, (channels, basis, orders) in FORMS
    for feature, table, sums in [FORMATS[key]]
    for harmonics in ((True, False) if (channels, orders) == (64, 7) else (True,))
]  # fmt: skip
