"""Kernels of the quadruplet moments; symbols in `quadruplet_moments`."""

import triton
import triton.language as tl

from jmp_kernels.triton_ops.quadruplet_gate import row_tile, weight_tile


@triton.jit
def moments_kernel(
    x, gate, weight, write, in_edge, first, out,
    C: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, ACC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """B of one middle bond, one block of channels."""
    middle = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p, g = tl.arange(0, BP), tl.arange(0, BG)
    start = tl.load(first + middle)
    rows = (tl.load(first + middle + 1) - start).to(tl.int32)
    gate += start * G
    write += start * P
    in_edge += start
    w = tl.trans(weight_tile(weight, c, C, G, BG, ACC))
    moments = tl.zeros([BP, BLOCK_C], ACC)
    for done in range(0, rows, BLOCK_ROWS):
        r = done + tl.arange(0, BLOCK_ROWS)
        used = r < rows
        edge = tl.load(in_edge + r, mask=used, other=0)
        basis = row_tile(gate, r, used, g, G).to(ACC)
        y = row_tile(x, edge, used, c, C).to(ACC)
        y *= tl.dot(basis, w, input_precision=PRECISION, out_dtype=ACC)
        powers = tl.trans(row_tile(write, r, used, p, P).to(ACC))
        moments = tl.dot(powers, y, moments, input_precision=PRECISION, out_dtype=ACC)
    out += middle * P * C
    tl.store(out + p[:, None] * C + c[None, :], moments, mask=(p < P)[:, None] & (c < C)[None, :])


@triton.jit
def moments_backward_kernel(
    d_moments, x, gate, weight, write, in_edge, first, d_y, d_write,
    C: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, TABLES: tl.constexpr,
    ACC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dy, and with TABLES the gradient of `write`, of the in-triplets of one middle bond."""
    middle = tl.program_id(0).to(tl.int64)
    p, g = tl.arange(0, BP), tl.arange(0, BG)
    start = tl.load(first + middle)
    rows = (tl.load(first + middle + 1) - start).to(tl.int32)
    d_moments += middle * P * C
    gate += start * G
    write += start * P
    in_edge += start
    d_y += start * C
    d_write += start * P
    for done in range(0, rows, BLOCK_ROWS):
        r = done + tl.arange(0, BLOCK_ROWS)
        used = r < rows
        powers = row_tile(write, r, used, p, P).to(ACC)
        total = tl.zeros([BLOCK_ROWS, BP], ACC)
        for first_c in range(0, C, BLOCK_C):
            c = first_c + tl.arange(0, BLOCK_C)
            of_bond = row_tile(d_moments, p, p < P, c, C).to(ACC)
            of_rows = tl.dot(powers, of_bond, input_precision=PRECISION, out_dtype=ACC)
            tl.store(d_y + r[:, None] * C + c[None, :], of_rows, mask=used[:, None] & (c < C)[None, :])
            if TABLES:
                edge = tl.load(in_edge + r, mask=used, other=0)
                basis = row_tile(gate, r, used, g, G).to(ACC)
                w = tl.trans(weight_tile(weight, c, C, G, BG, ACC))
                y = row_tile(x, edge, used, c, C).to(ACC)
                y *= tl.dot(basis, w, input_precision=PRECISION, out_dtype=ACC)
                total = tl.dot(y, tl.trans(of_bond), total, input_precision=PRECISION, out_dtype=ACC)
        if TABLES:
            tl.store(
                d_write + r[:, None] * P + p[None, :],
                total.to(d_write.dtype.element_ty),
                mask=used[:, None] & (p < P)[None, :],
            )
