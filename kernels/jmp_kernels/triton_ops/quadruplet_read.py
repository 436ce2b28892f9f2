"""Read-out of the middle bonds of quadruplets: `jmp::quadruplet_read` (linear message passing, section 2).

    t[r,h,i] = read[r,h,0] B[q(r),h,0,i] + read[r,h,1] B[q(r),h,1,i] − share[r,h] y[same(r),i]     out-pairs r = (e, q)
    S[e,l,h,i] = Σ_{r: edge e} zonal[r,l] t[r,h,i]
    o[e,k,i] = Σ_{l,h} radial[e,k,lh] S[e,l,h,i]

One program per edge and block of channels keeps S in registers; S is never stored, and y of the in-triplet d = c, which
is no quadruplet, is formed again from x, g and W (`quadruplet_gate`).

"Edges" here are the S segments of the out-pairs. Many main edges have no out-pair: leave them out (S = edges that have
some, `radial` their rows), and neither `radial` nor o nor the layers that follow hold rows for them. Segments without
out-pairs are allowed and give zeros.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from jmp_kernels.triton_ops import launch
from jmp_kernels.triton_ops.family import expand_basis, expand_feature, segment_outer
from jmp_kernels.triton_ops.quadruplet_gate import channel_block, covering, gate_backward, gated
from jmp_kernels.triton_ops.quadruplet_moments import check_gate
from jmp_kernels.triton_ops.quadruplet_read_kernels import (
    read_backward_kernel,
    read_backward_middles_kernel,
    read_kernel,
)
from jmp_kernels.triton_ops.rows import gather_rows, segment_sum

#: Number of tensors that have gradients: moments, zonal, read, share, radial, x, gate, weight.
DIFFERENTIABLE = 8


def padded_sizes(orders: int, azimuths: int) -> dict[str, int]:
    """L, H and the powers of two that cover them, with BL·BH at least 16."""
    of_orders = triton.next_power_of_2(orders)
    of_azimuths = max(triton.next_power_of_2(azimuths), triton.cdiv(16, of_orders))
    return {"L": orders, "BL": of_orders, "H": azimuths, "BH": of_azimuths}


def _sizes(zonal: Tensor, share: Tensor, radial: Tensor, x: Tensor, gate: Tensor, acc: torch.dtype) -> dict[str, Any]:
    """Constants that both edge kernels take."""
    k, g = radial.shape[1], gate.shape[1]
    return {
        "K": k, "BK": covering(k), "C": x.shape[1], "G": g, "BG": covering(g),
        "ACC": launch.triton_dtype(acc), **padded_sizes(zonal.shape[1], share.shape[1]),
    }  # fmt: skip


def _check(moments: Tensor, zonal: Tensor, read: Tensor, share: Tensor, radial: Tensor, by_edge: Tensor) -> None:
    rows, azimuths, orders = share.shape[0], share.shape[1], zonal.shape[1]
    if zonal.shape[0] != rows or read.shape != (rows, 2 * azimuths) or moments.shape[1] != 2 * azimuths:
        raise ValueError(
            f"zonal {tuple(zonal.shape)}, read {tuple(read.shape)}, share {tuple(share.shape)} and moments "
            f"{tuple(moments.shape)} do not fit together"
        )
    if radial.shape[0] != by_edge.shape[0] - 1 or radial.shape[2] != orders * azimuths:
        raise ValueError(
            f"radial {tuple(radial.shape)} for {by_edge.shape[0] - 1} edges and {orders}·{azimuths} columns"
        )


def _quadruplet_read(
    moments: Tensor, zonal: Tensor, read: Tensor, share: Tensor, radial: Tensor,
    x: Tensor, gate: Tensor, weight: Tensor, by_edge: Tensor,
    middle_first: Tensor, out_middle: Tensor, middle_order: Tensor,
    same_first: Tensor, same: Tensor, same_order: Tensor,
    edge_first: Tensor, in_edge: Tensor, edge_order: Tensor,
) -> Tensor:  # fmt: skip
    launch.check(
        moments, zonal, read, share, radial, x, gate, weight, by_edge, middle_first, out_middle, middle_order,
        same_first, same, same_order, edge_first, in_edge, edge_order,
    )  # fmt: skip
    check_gate(x, gate, weight, edge_first, in_edge)
    _check(moments, zonal, read, share, radial, by_edge)
    floating = [t.contiguous() for t in (moments, zonal, read, share, radial, x, gate, weight)]
    dtypes = [t.dtype for t in floating]
    edges, channels = radial.shape[0], x.shape[1]
    out = x.new_empty((edges, radial.shape[1], channels))
    if edges:
        tuned = launch.settings("quadruplet_read", x.device, *dtypes)
        grid = (edges, triton.cdiv(channels, channel_block(channels)))
        sizes = _sizes(zonal, share, radial, x, gate, launch.accumulator(*dtypes))
        read_kernel[grid](
            *floating, in_edge, out_middle, same, by_edge, out, BLOCK_C=channel_block(channels), **sizes, **tuned
        )
    return out


def _quadruplet_read_backward(
    d_out: Tensor, moments: Tensor, zonal: Tensor, read: Tensor, share: Tensor, radial: Tensor,
    x: Tensor, gate: Tensor, weight: Tensor, by_edge: Tensor,
    middle_first: Tensor, out_middle: Tensor, middle_order: Tensor,
    same_first: Tensor, same: Tensor, same_order: Tensor,
    edge_first: Tensor, in_edge: Tensor, edge_order: Tensor, tables: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the eight floating inputs (without `tables`: no rows for zonal, read and share).

    One kernel per edge forms S again and dt; one per middle bond sums dB; then dy of the in-triplets d = c goes through
    the gate. Between them dt [R, H, C] and its share for d = c [R, C] are stored.
    """
    floating = [t.contiguous() for t in (moments, zonal, read, share, radial, x, gate, weight)]
    dtypes = [t.dtype for t in floating]
    acc, edges, channels = launch.accumulator(*dtypes), radial.shape[0], x.shape[1]
    pairs, azimuths = share.shape
    d_moments, d_radial = x.new_empty(moments.shape, dtype=moments.dtype), x.new_empty(radial.shape, dtype=radial.dtype)
    d_zonal, d_read, d_share = (t.new_empty((pairs if tables else 0, t.shape[1])) for t in (zonal, read, share))
    d_t = x.new_empty((pairs, azimuths, channels), dtype=acc)
    d_same = x.new_empty((pairs, channels), dtype=acc)
    if edges:
        tuned = launch.settings("quadruplet_read_backward", x.device, *dtypes)
        read_backward_kernel[(edges,)](
            d_out.contiguous(), *floating, in_edge, out_middle, same, by_edge,
            d_radial, d_t, d_same, d_zonal, d_read, d_share,
            TABLES=tables, BLOCK_C=covering(channels), **_sizes(zonal, share, radial, x, gate, acc), **tuned,
        )  # fmt: skip
    if moments.shape[0]:
        tuned = launch.settings("quadruplet_read_backward_middles", x.device, *dtypes)
        grid = (moments.shape[0], triton.cdiv(channels, channel_block(channels)))
        read_backward_middles_kernel[grid](
            d_t, floating[2], middle_order, middle_first, d_moments,
            C=channels, H=azimuths, BP=covering(2 * azimuths), ACC=launch.triton_dtype(acc),
            BLOCK_C=channel_block(channels), **tuned,
        )  # fmt: skip
    d_y = segment_sum(d_same, same_first, same, same_order)
    of_gate = gate_backward(d_y, floating[5], floating[6], floating[7], edge_first, in_edge, edge_order)
    return d_moments, d_zonal, d_read, d_share, d_radial, *of_gate


def _backward_fake(
    d_out: Tensor, moments: Tensor, zonal: Tensor, read: Tensor, share: Tensor, radial: Tensor,
    x: Tensor, gate: Tensor, weight: Tensor, by_edge: Tensor,
    middle_first: Tensor, out_middle: Tensor, middle_order: Tensor,
    same_first: Tensor, same: Tensor, same_order: Tensor,
    edge_first: Tensor, in_edge: Tensor, edge_order: Tensor, tables: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = share.shape[0] if tables else 0
    return (
        moments.new_empty(moments.shape),
        zonal.new_empty((rows, zonal.shape[1])),
        read.new_empty((rows, read.shape[1])),
        share.new_empty((rows, share.shape[1])),
        radial.new_empty(radial.shape),
        x.new_empty(x.shape),
        gate.new_empty(gate.shape),
        weight.new_empty(weight.shape),
    )


def _fake(
    moments: Tensor, zonal: Tensor, read: Tensor, share: Tensor, radial: Tensor,
    x: Tensor, gate: Tensor, weight: Tensor, by_edge: Tensor,
    middle_first: Tensor, out_middle: Tensor, middle_order: Tensor,
    same_first: Tensor, same: Tensor, same_order: Tensor,
    edge_first: Tensor, in_edge: Tensor, edge_order: Tensor,
) -> Tensor:  # fmt: skip
    return x.new_empty((by_edge.shape[0] - 1, radial.shape[1], x.shape[1]))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _composed(d_out: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same gradients by operators that have derivatives."""
    moments, zonal, read, share, radial, x, gate, weight, by_edge, *lists = saved
    middle, same, edge = (lists[0], lists[1], lists[2]), (lists[3], lists[4], lists[5]), (lists[6], lists[7], lists[8])
    acc = launch.accumulator(*(t.dtype for t in saved[:DIFFERENTIABLE]))
    edges, pairs, azimuths, orders, channels = (
        radial.shape[0],
        share.shape[0],
        share.shape[1],
        zonal.shape[1],
        x.shape[1],
    )
    message = gated(x, gate, weight, edge, acc)
    y = gather_rows(message.y, *same)[:, None]
    powers = read.to(acc).view(pairs, azimuths, 2, 1)
    of_bond = gather_rows(moments, *middle, acc).view(pairs, azimuths, 2, channels)
    own = share.to(acc)[..., None]
    t = ((powers * of_bond).sum(2) - own * y).flatten(1)
    sums = segment_outer(zonal, t, by_edge, acc).view(edges, orders * azimuths, channels)

    d_out = d_out.to(acc)
    d_radial = torch.bmm(d_out, sums.transpose(1, 2)).to(radial.dtype)
    d_sums = torch.bmm(radial.to(acc).transpose(1, 2), d_out).view(edges, orders, azimuths * channels)
    d_zonal = expand_basis(t, d_sums, by_edge, zonal.dtype)
    d_t = expand_feature(zonal, d_sums, by_edge, acc).view(pairs, azimuths, channels)
    d_read = (of_bond * d_t[:, :, None]).sum(3).to(read.dtype).view(read.shape)
    d_share = -(y * d_t).sum(2).to(share.dtype)
    d_rows = (powers * d_t[:, :, None]).view(pairs, 2 * azimuths, channels)
    d_moments = segment_sum(d_rows, *middle, moments.dtype)
    d_y = segment_sum(-(own * d_t).sum(1), *same)
    return d_moments, d_zonal, d_read, d_share, d_radial, *message.gradients(d_y)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    saved, needed = ctx.saved_tensors, ctx.needs_input_grad
    if torch.is_grad_enabled():
        gradients = _composed(d_out, saved)
    else:
        gradients = quadruplet_read_backward(d_out, *saved, any(needed[1:4]))
    wanted = (g if n else None for g, n in zip(gradients, needed[:DIFFERENTIABLE], strict=True))
    return *wanted, *[None] * (len(needed) - DIFFERENTIABLE)


_backward_operator = torch.library.custom_op(
    "jmp::quadruplet_read_backward", _quadruplet_read_backward, mutates_args=()
)
_backward_operator.register_fake(_backward_fake)

#: First-order gradients of `quadruplet_read`; has no derivative itself.
quadruplet_read_backward = torch.ops.jmp.quadruplet_read_backward

#: o [S, K, C] in the dtype of x, from (floating dtypes may differ; sums in float32 at least)
#:   moments B [Q, 2H, C], zonal [R, L], read [R, 2H], share [R, H], radial [S, K, L·H]
#:   x [E, C], gate g [R', G], weight W [C, G]                        of R' in-triplets, as in `quadruplet_moments`
#:   by_edge int64 [S+1]                                              out-pairs (sorted) by edge
#:   middle_first [Q+1], out_middle [R], middle_order [R]             middle bond of every out-pair, and the transpose
#:   same_first [R'+1], same [R], same_order                          in-triplet d = c of every out-pair or -1, likewise
#:   edge_first [E+1], in_edge [R'], edge_order [R']                  edge of every in-triplet, and the transpose
quadruplet_read = launch.register("quadruplet_read", _quadruplet_read, _fake, _keep, _backward)
