"""The angular gate of in-triplets d→b→a, and the gradients that pass through it.

    y[r,i] = x[d→b(r),i] Σ_g g[r,g] W[i,g]            (linear message passing, section 2; specification section 5.3)

y is never stored: kernels that need it form it from x, g and W. Both quadruplet operators end their backward pass here,
with the gradient dy of y:

    dx[e,i] = Σ_{r: d→b(r) = e} dy[r,i] Σ_g g[r,g] W[i,g]
    dg[r,g] = Σ_i dy[r,i] x[d→b(r),i] W[i,g]
    dW[i,g] = Σ_r dy[r,i] x[d→b(r),i] g[r,g]

dx sums along the list of every edge's in-triplets; dW is summed per block of rows, and the blocks by torch.sum. Both
orders are fixed.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from jmp_kernels.triton_ops.launch import accumulator, block, settings, triton_dtype
from jmp_kernels.triton_ops.rows import gather_rows, segment_sum

#: Channels that a program takes at once: the widest published message (JMP-L), 64.
LARGEST_CHANNEL_BLOCK = 64


@triton.jit
def row_tile(table, r, used, column, width: tl.constexpr):
    """Rows r of a table of `width` columns: [BR, columns], zero outside."""
    return tl.load(
        table + r[:, None] * width + column[None, :], mask=used[:, None] & (column < width)[None, :], other=0.0
    )


@triton.jit
def weight_tile(weight, c, C: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, ACC: tl.constexpr):
    """W of channels c: [BC, BG], zero beyond C and G."""
    return row_tile(weight, c, c < C, tl.arange(0, BG), G).to(ACC)


@triton.jit
def message_row(
    x, gate, w, in_edge, r, c,
    C: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y of one in-triplet r, zero where r < 0: [BC]; `w` as `weight_tile` gives it."""
    found = r >= 0
    g = tl.arange(0, BG)
    basis = tl.load(gate + r * G + g, mask=found & (g < G), other=0.0).to(ACC)
    edge = tl.load(in_edge + r, mask=found, other=0)
    feature = tl.load(x + edge * C + c, mask=found & (c < C), other=0.0).to(ACC)
    return feature * tl.sum(w * basis[None, :], 1)


@triton.jit
def gate_rows_kernel(
    d_y, x, gate, weight, in_edge, d_gate, d_weight, R,
    C: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, ACC: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of in-triplets: their rows of dg, and their share of dW at d_weight[block]."""
    part = tl.program_id(0).to(tl.int64)
    start = part * BLOCK_ROWS
    r = tl.arange(0, BLOCK_ROWS)
    used = r < R - start
    g = tl.arange(0, BG)
    d_y += start * C
    d_gate += start * G
    d_weight += part * C * G
    edge = tl.load(in_edge + start + r, mask=used, other=0)
    basis = row_tile(gate + start * G, r, used, g, G).to(ACC)
    total = tl.zeros([BLOCK_ROWS, BG], ACC)
    for first_c in range(0, C, BLOCK_C):
        c = first_c + tl.arange(0, BLOCK_C)
        through = row_tile(d_y, r, used, c, C).to(ACC) * row_tile(x, edge, used, c, C).to(ACC)
        w = weight_tile(weight, c, C, G, BG, ACC)
        total = tl.dot(through, w, total, input_precision=PRECISION, out_dtype=ACC)
        share = tl.dot(tl.trans(through), basis, input_precision=PRECISION, out_dtype=ACC)
        tl.store(d_weight + c[:, None] * G + g[None, :], share, mask=(c < C)[:, None] & (g < G)[None, :])
    tl.store(
        d_gate + r[:, None] * G + g[None, :],
        total.to(d_gate.dtype.element_ty),
        mask=used[:, None] & (g < G)[None, :],
    )


@triton.jit
def gate_edges_kernel(
    d_y, gate, weight, order, first, d_x,
    C: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx of one edge: Σ_g W[i,g] Σ_r dy[r,i] g[r,g] over the edge's in-triplets."""
    edge = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    g = tl.arange(0, BG)
    outer = tl.zeros([BLOCK_C, BG], ACC)
    for place in range(tl.load(first + edge), tl.load(first + edge + 1)):
        r = tl.load(order + place)
        of_row = tl.load(d_y + r * C + c, mask=c < C, other=0.0).to(ACC)
        basis = tl.load(gate + r * G + g, mask=g < G, other=0.0).to(ACC)
        outer += of_row[:, None] * basis[None, :]
    total = tl.sum(outer * weight_tile(weight, c, C, G, BG, ACC), 1)
    tl.store(d_x + edge * C + c, total.to(d_x.dtype.element_ty), mask=c < C)


def covering(size: int) -> int:
    """Power of two that covers `size`, at least the 16 of a product's side."""
    return block(size, triton.next_power_of_2(max(size, 1)))


def channel_block(channels: int) -> int:
    """BLOCK_C of the kernels that take the channels block by block."""
    return block(channels, LARGEST_CHANNEL_BLOCK)


def gate_backward(
    d_y: Tensor, x: Tensor, gate: Tensor, weight: Tensor, edge_first: Tensor, in_edge: Tensor, edge_order: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [E, C], g [R, G] and W [C, G] from that of y [R, C], each in the dtype of what it belongs to.

    Args:
        d_y: in the precision of the accumulation.
        x, gate, weight: features of edges, gate basis, gate weight.
        edge_first, in_edge, edge_order: where in-triplets belong, as `rows` describes it.
    """
    rows, channels, size = d_y.shape[0], x.shape[1], gate.shape[1]
    dtypes = (x.dtype, gate.dtype, weight.dtype, d_y.dtype)
    shared = {"C": channels, "G": size, "BG": covering(size), "ACC": triton_dtype(accumulator(*dtypes))}
    shared["BLOCK_C"] = channel_block(channels)
    d_x, d_gate = torch.empty_like(x), torch.empty_like(gate)
    of_rows = settings("quadruplet_gate_rows", x.device, *dtypes)
    parts = triton.cdiv(rows, of_rows["BLOCK_ROWS"])
    shares = d_y.new_empty((parts, *weight.shape))
    if parts:
        gate_rows_kernel[(parts,)](d_y, x, gate, weight, in_edge, d_gate, shares, rows, **shared, **of_rows)
    of_edges = settings("quadruplet_gate_edges", x.device, *dtypes)
    if x.shape[0]:
        grid = (x.shape[0], triton.cdiv(channels, shared["BLOCK_C"]))
        gate_edges_kernel[grid](d_y, gate, weight, edge_order, edge_first, d_x, **shared, **of_edges)
    return d_x, d_gate, shares.sum(0).to(weight.dtype)


@dataclass(frozen=True)
class Gated:
    """y and what it is made of, by operators that have derivatives.

    Attributes:
        x, gate, weight: as given.
        where: (edge_first, in_edge, edge_order).
        feature: x of every in-triplet's edge [R, C].
        factor: Σ_g g[r,g] W[i,g] [R, C].
    """

    x: Tensor
    gate: Tensor
    weight: Tensor
    where: tuple[Tensor, Tensor, Tensor]
    feature: Tensor
    factor: Tensor

    @property
    def y(self) -> Tensor:
        """[R, C]."""
        return self.feature * self.factor

    def gradients(self, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `gate_backward` gives, differentiable."""
        through = d_y * self.feature
        return (
            segment_sum(d_y * self.factor, *self.where, self.x.dtype),
            (through @ self.weight.to(d_y.dtype)).to(self.gate.dtype),
            (through.T @ self.gate.to(d_y.dtype)).to(self.weight.dtype),
        )


def gated(x: Tensor, gate: Tensor, weight: Tensor, where: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> Gated:
    """y of all in-triplets in precision `dtype`; arguments as in `gate_backward`."""
    feature = gather_rows(x, *where, dtype)
    return Gated(x, gate, weight, where, feature, gate.to(dtype) @ weight.to(dtype).T)
