"""Moments of the middle bonds of quadruplets: `jmp::quadruplet_moments` (linear message passing, section 2).

    y[r,i] = x[d→b(r),i] Σ_g g[r,g] W[i,g]                in-triplets r = (d→b→a)
    B[q,p,i] = Σ_{r: middle bond q} write[r,p] y[r,i]     p runs over 2H: azimuth channels, real and imaginary part

One program per middle bond and block of channels; y is formed tile by tile and never stored. In-triplets are sorted by
middle bond. The backward pass has no atomics: results are the same from run to run.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from jmp_kernels.triton_ops import launch
from jmp_kernels.triton_ops.family import expand_basis, expand_feature
from jmp_kernels.triton_ops.quadruplet_gate import channel_block, covering, gate_backward, gated
from jmp_kernels.triton_ops.quadruplet_moments_kernels import moments_backward_kernel, moments_kernel


def check_gate(x: Tensor, gate: Tensor, weight: Tensor, edge_first: Tensor, in_edge: Tensor) -> None:
    """The parts of y fit together.

    Raises:
        ValueError: they do not.
    """
    if weight.shape != (x.shape[1], gate.shape[1]):
        raise ValueError(f"gate weight {tuple(weight.shape)} instead of {(x.shape[1], gate.shape[1])}")
    if in_edge.shape[0] != gate.shape[0] or edge_first.shape[0] != x.shape[0] + 1:
        raise ValueError(
            f"{gate.shape[0]} gate rows and {x.shape[0]} edges, but {in_edge.shape[0]} in-triplets "
            f"on {edge_first.shape[0] - 1} edges"
        )


def _sizes(x: Tensor, gate: Tensor, write: Tensor, acc: torch.dtype) -> dict[str, Any]:
    """Constants that both kernels take."""
    p, g = write.shape[1], gate.shape[1]
    return {
        "C": x.shape[1], "P": p, "BP": covering(p), "G": g, "BG": covering(g),
        "ACC": launch.triton_dtype(acc), "BLOCK_C": channel_block(x.shape[1]),
    }  # fmt: skip


def _quadruplet_moments(
    x: Tensor, gate: Tensor, weight: Tensor, write: Tensor,
    middle_first: Tensor, edge_first: Tensor, in_edge: Tensor, edge_order: Tensor,
) -> Tensor:  # fmt: skip
    launch.check(x, gate, weight, write, middle_first, edge_first, in_edge, edge_order)
    check_gate(x, gate, weight, edge_first, in_edge)
    x, gate, weight, write = (t.contiguous() for t in (x, gate, weight, write))
    dtypes = (x.dtype, gate.dtype, weight.dtype, write.dtype)
    acc, middles, channels = launch.accumulator(*dtypes), middle_first.shape[0] - 1, x.shape[1]
    out = x.new_empty((middles, write.shape[1], channels), dtype=acc)
    if middles:
        tuned = launch.settings("quadruplet_moments", x.device, *dtypes)
        grid = (middles, triton.cdiv(channels, channel_block(channels)))
        moments_kernel[grid](x, gate, weight, write, in_edge, middle_first, out, **_sizes(x, gate, write, acc), **tuned)
    return out


def _quadruplet_moments_backward(
    d_moments: Tensor, x: Tensor, gate: Tensor, weight: Tensor, write: Tensor,
    middle_first: Tensor, edge_first: Tensor, in_edge: Tensor, edge_order: Tensor, tables: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, gate, weight and write (without `tables`: [0, 2H] for the last).

    One kernel per middle bond forms dy, two more take it through the gate; dy [R, C] is the only thing stored between.
    """
    d_moments, x, gate, weight, write = (t.contiguous() for t in (d_moments, x, gate, weight, write))
    dtypes = (x.dtype, gate.dtype, weight.dtype, write.dtype)
    acc, middles, channels = launch.accumulator(*dtypes), middle_first.shape[0] - 1, x.shape[1]
    d_y = x.new_empty((gate.shape[0], channels), dtype=acc)
    d_write = write.new_empty((write.shape[0] if tables else 0, write.shape[1]))
    if middles:
        tuned = launch.settings("quadruplet_moments_backward", x.device, *dtypes)
        moments_backward_kernel[(middles,)](
            d_moments, x, gate, weight, write, in_edge, middle_first, d_y, d_write,
            TABLES=tables, **_sizes(x, gate, write, acc), **tuned,
        )  # fmt: skip
    return *gate_backward(d_y, x, gate, weight, edge_first, in_edge, edge_order), d_write


def _backward_fake(
    d_moments: Tensor, x: Tensor, gate: Tensor, weight: Tensor, write: Tensor,
    middle_first: Tensor, edge_first: Tensor, in_edge: Tensor, edge_order: Tensor, tables: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    d_write = write.new_empty((write.shape[0] if tables else 0, write.shape[1]))
    return x.new_empty(x.shape), gate.new_empty(gate.shape), weight.new_empty(weight.shape), d_write


def _fake(
    x: Tensor, gate: Tensor, weight: Tensor, write: Tensor,
    middle_first: Tensor, edge_first: Tensor, in_edge: Tensor, edge_order: Tensor,
) -> Tensor:  # fmt: skip
    acc = launch.accumulator(x.dtype, gate.dtype, weight.dtype, write.dtype)
    return x.new_empty((middle_first.shape[0] - 1, write.shape[1], x.shape[1]), dtype=acc)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _composed(d_moments: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same gradients by operators that have derivatives."""
    x, gate, weight, write, middle_first, *where = saved
    message = gated(x, gate, weight, (where[0], where[1], where[2]), d_moments.dtype)
    d_y = expand_feature(write, d_moments, middle_first, d_moments.dtype)
    return *message.gradients(d_y), expand_basis(message.y, d_moments, middle_first, write.dtype)


def _backward(ctx: Any, d_moments: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    if torch.is_grad_enabled():
        gradients = _composed(d_moments, saved)
    else:
        gradients = quadruplet_moments_backward(d_moments, *saved, ctx.needs_input_grad[3])
    wanted = (g if needed else None for g, needed in zip(gradients, ctx.needs_input_grad[:4], strict=True))
    return *wanted, None, None, None, None


_backward_operator = torch.library.custom_op(
    "jmp::quadruplet_moments_backward", _quadruplet_moments_backward, mutates_args=()
)
_backward_operator.register_fake(_backward_fake)

#: First-order gradients of `quadruplet_moments`; has no derivative itself.
quadruplet_moments_backward = torch.ops.jmp.quadruplet_moments_backward

#: B [Q, 2H, C] in float32 (float64 where an input is), from
#:   x [E, C], gate g [R, G], weight W [C, G], write [R, 2H]        floating, dtypes may differ
#:   middle_first int64 [Q+1]                                       in-triplets (sorted) by middle bond
#:   edge_first int64 [E+1], in_edge int64 [R], edge_order int64 [R]  edge d→b of every in-triplet, and the transpose
quadruplet_moments = launch.register("quadruplet_moments", _quadruplet_moments, _fake, _keep, _backward)
