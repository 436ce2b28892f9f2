"""Kernels of the quadruplet read-out; symbols in `quadruplet_read`.

A sum S has BL·BH rows (order l, azimuth channel h), L and H each padded to a power of two: [BL, BH, BC] while rows are
added, [BL·BH, BC] in products.
"""

import triton
import triton.language as tl

from jmp_kernels.triton_ops.quadruplet_gate import message_row, row_tile, weight_tile


@triton.jit
def moment_rows(moments, read, middle, r, h, c, C: tl.constexpr, H: tl.constexpr, ACC: tl.constexpr):
    """Both parts of an out-pair's azimuth powers [BH] and of its bond's moments [BH, BC]: real, imaginary, Re B, Im B."""
    at = read + (r * H + h) * 2
    real = tl.load(at, mask=h < H, other=0.0).to(ACC)
    imaginary = tl.load(at + 1, mask=h < H, other=0.0).to(ACC)
    of_bond = moments + tl.load(middle + r) * (2 * H) * C + (2 * h)[:, None] * C + c[None, :]
    inside = (h < H)[:, None] & (c < C)[None, :]
    return (
        real,
        imaginary,
        tl.load(of_bond, mask=inside, other=0.0).to(ACC),
        tl.load(of_bond + C, mask=inside, other=0.0).to(ACC),
    )


@triton.jit
def edge_sums(
    moments, zonal, read, share, x, gate, w, in_edge, middle, same, start, end, c,
    C: tl.constexpr, L: tl.constexpr, BL: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, G: tl.constexpr,
    BG: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """S of one edge from its out-pairs start … end-1: [BL·BH, BC]."""
    l, h = tl.arange(0, BL), tl.arange(0, BH)
    sums = tl.zeros([BL, BH, BLOCK_C], ACC)
    for r in range(start, end):
        real, imaginary, real_moments, imaginary_moments = moment_rows(moments, read, middle, r, h, c, C, H, ACC)
        own = tl.load(share + r * H + h, mask=h < H, other=0.0).to(ACC)
        y = message_row(x, gate, w, in_edge, tl.load(same + r), c, C, G, BG, ACC)
        t = real[:, None] * real_moments + imaginary[:, None] * imaginary_moments - own[:, None] * y[None, :]
        polar = tl.load(zonal + r * L + l, mask=l < L, other=0.0).to(ACC)
        sums += polar[:, None, None] * t[None, :, :]
    return tl.reshape(sums, [BL * BH, BLOCK_C])


@triton.jit
def radial_tile(
    radial, k, used,
    L: tl.constexpr, BL: tl.constexpr, H: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Offsets and mask of an edge's radial table [K, L·H] as [BK, BL·BH], `used` [BK] the rows that are wanted."""
    lh = tl.arange(0, BL * BH)
    l, h = lh // BH, lh % BH
    inside = (l < L) & (h < H)
    return radial + k[:, None] * (L * H) + (l * H + h)[None, :], used[:, None] & inside[None, :]


@triton.jit
def read_kernel(
    moments, zonal, read, share, radial, x, gate, weight, in_edge, middle, same, first, out,
    K: tl.constexpr, C: tl.constexpr, L: tl.constexpr, BL: tl.constexpr, H: tl.constexpr, BH: tl.constexpr,
    G: tl.constexpr, BG: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """o of one edge, one block of channels; zero for an edge without out-pairs."""
    edge = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, end = tl.load(first + edge), tl.load(first + edge + 1)
    w = weight_tile(weight, c, C, G, BG, ACC)
    sums = edge_sums(
        moments, zonal, read, share, x, gate, w, in_edge, middle, same, start, end,
        c, C, L, BL, H, BH, G, BG, ACC, BLOCK_C,
    )  # fmt: skip
    k = tl.arange(0, BK)
    at, inside = radial_tile(radial + edge * K * (L * H), k, (k < K) & (end > start), L, BL, H, BH)
    table = tl.load(at, mask=inside, other=0.0).to(ACC)
    o = tl.dot(table, sums, input_precision=PRECISION, out_dtype=ACC)
    out += edge * K * C
    tl.store(out + k[:, None] * C + c[None, :], o.to(out.dtype.element_ty), mask=(k < K)[:, None] & (c < C)[None, :])


@triton.jit
def read_backward_kernel(
    d_out, moments, zonal, read, share, radial, x, gate, weight, in_edge, middle, same, first, d_radial, d_t,
    d_same, d_zonal, d_read, d_share,
    K: tl.constexpr, C: tl.constexpr, L: tl.constexpr, BL: tl.constexpr, H: tl.constexpr, BH: tl.constexpr,
    G: tl.constexpr, BG: tl.constexpr, BK: tl.constexpr, TABLES: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One edge: gradient of its radial table; of its out-pairs dt, −Σ_h share dt, and with TABLES those of their tables.

    BLOCK_C covers all channels.
    """
    edge = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    k, l, h = tl.arange(0, BK), tl.arange(0, BL), tl.arange(0, BH)
    start, end = tl.load(first + edge), tl.load(first + edge + 1)
    w = weight_tile(weight, c, C, G, BG, ACC)
    sums = edge_sums(
        moments, zonal, read, share, x, gate, w, in_edge, middle, same, start, end,
        c, C, L, BL, H, BH, G, BG, ACC, BLOCK_C,
    )  # fmt: skip
    used = (k < K) & (end > start)
    of_out = row_tile(d_out + edge * K * C, k, used, c, C).to(ACC)
    at, inside = radial_tile(d_radial + edge * K * (L * H), k, k < K, L, BL, H, BH)
    of_radial = tl.dot(of_out, tl.trans(sums), input_precision=PRECISION, out_dtype=ACC)
    tl.store(at, of_radial.to(d_radial.dtype.element_ty), mask=inside)

    at, inside = radial_tile(radial + edge * K * (L * H), k, used, L, BL, H, BH)
    table = tl.load(at, mask=inside, other=0.0).to(ACC)
    d_sums = tl.dot(tl.trans(table), of_out, input_precision=PRECISION, out_dtype=ACC)
    d_sums = tl.reshape(d_sums, [BL, BH, BLOCK_C])
    here = (h < H)[:, None] & (c < C)[None, :]
    for r in range(start, end):
        polar = tl.load(zonal + r * L + l, mask=l < L, other=0.0).to(ACC)
        of_t = tl.sum(polar[:, None, None] * d_sums, 0)
        tl.store(d_t + (r * H + h)[:, None] * C + c[None, :], of_t, mask=here)
        own = tl.load(share + r * H + h, mask=h < H, other=0.0).to(ACC)
        tl.store(d_same + r * C + c, -tl.sum(own[:, None] * of_t, 0), mask=c < C)
        if TABLES:
            real, imaginary, real_moments, imaginary_moments = moment_rows(moments, read, middle, r, h, c, C, H, ACC)
            y = message_row(x, gate, w, in_edge, tl.load(same + r), c, C, G, BG, ACC)
            t = real[:, None] * real_moments + imaginary[:, None] * imaginary_moments - own[:, None] * y[None, :]
            of_zonal = tl.sum(tl.sum(d_sums * t[None, :, :], 2), 1)
            tl.store(d_zonal + r * L + l, of_zonal.to(d_zonal.dtype.element_ty), mask=l < L)
            of_real, of_imaginary = tl.sum(of_t * real_moments, 1), tl.sum(of_t * imaginary_moments, 1)
            tl.store(d_read + (r * H + h) * 2, of_real.to(d_read.dtype.element_ty), mask=h < H)
            tl.store(d_read + (r * H + h) * 2 + 1, of_imaginary.to(d_read.dtype.element_ty), mask=h < H)
            of_own = -tl.sum(of_t * y[None, :], 1)
            tl.store(d_share + r * H + h, of_own.to(d_share.dtype.element_ty), mask=h < H)


@triton.jit
def read_backward_middles_kernel(
    d_t, read, order, first, d_moments,
    C: tl.constexpr, H: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dB of one middle bond: the sum of read ⊗ dt over its out-pairs, one block of channels."""
    middle = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BP)
    inside = (p < 2 * H)[:, None] & (c < C)[None, :]
    total = tl.zeros([BP, BLOCK_C], ACC)
    for place in range(tl.load(first + middle), tl.load(first + middle + 1)):
        r = tl.load(order + place)
        powers = tl.load(read + r * (2 * H) + p, mask=p < 2 * H, other=0.0).to(ACC)
        of_t = tl.load(d_t + (r * H + p // 2)[:, None] * C + c[None, :], mask=inside, other=0.0).to(ACC)
        total += powers[:, None] * of_t
    d_moments += middle * (2 * H) * C
    tl.store(d_moments + p[:, None] * C + c[None, :], total.to(d_moments.dtype.element_ty), mask=inside)
