"""What the triplet kernels share: moments of an atom, and tiles of the rows (edge, basis channel) that read them.

Symbols as in linear message passing, section 1: A[p,i] = Σ_e' Y_p(v_e') x[e',i], U[e,k,p] = f_l R[e,k,l(p)] Y_p(v_e), with
f_l = sqrt(4π/(2l+1)) and P̃_l(1) = 1/f_l. Harmonics p = (l, m) run in the order l² … (l+1)² - 1.

Pointers start at the atom's own rows (64 bit); offsets inside an atom are 32 bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from jmp_kernels.triton_ops.launch import block
from jmp_kernels.triton_ops.tiles import tile


def sizes_of(channels: int, basis: int, orders: int) -> dict[str, int]:
    """Sizes C, K, L of the tensors and what they are padded to in a tile: KP, PP (L²) and BC, the channels per program."""
    return {
        "C": channels,
        "K": basis,
        "L": orders,
        "KP": triton.next_power_of_2(basis),
        "PP": block(orders**2, 1024),
        "BC": block(channels, 64),
    }


#: Number formats with channels, basis channels and orders, as compiled offline: the published sizes in every format, and
#: around them in those of training.
FORMS = [("float64", (64, 16, 7))] + [
    (key, sizes)
    for key in ("float32", "tf32", "half")
    for sizes in ((64, 16, 7), (16, 16, 7), (64, 16, 4), (16, 16, 4))
]


@triton.jit
def order_of(p, L: tl.constexpr):
    """Order l of harmonic p: the largest l < L with l² <= p."""
    order = tl.zeros_like(p)
    for l in tl.static_range(1, L):
        order += (p >= l * l).to(tl.int32)
    return order


@triton.jit
def addition_factor(order, ACC: tl.constexpr):
    """f_l = sqrt(4π/(2l+1)), the factor of the addition theorem."""
    sphere = tl.full([1], 12.566370614359172954, ACC)
    return tl.sqrt(sphere / (2 * order + 1).to(ACC))


@triton.jit
def twin_weight(p, order, L: tl.constexpr, ACC: tl.constexpr):
    """P̃_l(1) at the first harmonic of every order, 0 at the others.

    Against R[e,k,l(p)], its sum over p is the twin's share Σ_l P̃_l(1) R[e,k,l].
    """
    first = (p == order * order) & (p < L * L)
    return tl.where(first, 1.0 / addition_factor(order, ACC), tl.zeros_like(p).to(ACC))


@triton.jit
def twin_tile(x, twin, e, used, c, C: tl.constexpr, ACC: tl.constexpr):
    """Features of the twins of edges e: [rows, BC], zero where there is none."""
    t = tl.load(twin + e, mask=used, other=-1)
    return tile(x, t, c, C, t >= 0, ACC)


@triton.jit
def read_out_tile(radial, y, e, k, used, p, order, K: tl.constexpr, L: tl.constexpr, ACC: tl.constexpr):
    """R[e,k,l(p)] and Y_p(v_e) of the rows (e, k): both [rows, PP], zero for unused rows and beyond L²."""
    mask = used[:, None] & (p < L * L)[None, :]
    r = tl.load(radial + ((e * K + k) * L)[:, None] + order[None, :], mask=mask, other=0.0).to(ACC)
    return r, tile(y, e, p, L * L, used, ACC)


@triton.jit
def atom_moments(
    x, y, rows, p, order, c, C: tl.constexpr, L: tl.constexpr, PP: tl.constexpr, BC: tl.constexpr,
    BLOCK_IN: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """f_l A[p,i] of one atom: [PP, BC]. x and y point at its first input row."""
    moments = tl.zeros([PP, BC], ACC)
    for start in range(0, rows, BLOCK_IN):
        r = start + tl.arange(0, BLOCK_IN)
        basis = tile(y, r, p, L * L, r < rows, ACC)
        feature = tile(x, r, c, C, r < rows, ACC)
        moments = tl.dot(tl.trans(basis), feature, moments, input_precision=PRECISION, out_dtype=ACC)
    return moments * addition_factor(order, ACC)[:, None]
