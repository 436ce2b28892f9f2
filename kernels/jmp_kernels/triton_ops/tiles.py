"""What the fused kernels share: the rows of one atom, and tiles of them."""

from __future__ import annotations

import triton
import triton.language as tl

#: Number format to the types of features, of harmonics and radial weights, and of sums: the forms compiled offline.
FORMATS = {
    "float64": ("*fp64", "*fp64", tl.float64),
    "float32": ("*fp32", "*fp32", tl.float32),
    "tf32": ("*fp32", "*fp32", tl.float32),
    "half": ("*bf16", "*fp32", tl.float32),
}


@triton.jit
def extent(first, atom):
    """First row of atom `atom` (64 bit) and how many it has (32 bit)."""
    start = tl.load(first + atom)
    return start, (tl.load(first + atom + 1) - start).to(tl.int32)


@triton.jit
def tile(rows, row, column, width: tl.constexpr, inside, ACC: tl.constexpr):
    """Elements (row, column) of a matrix of `width` columns, in ACC; zero where `inside` is false or beyond the width."""
    mask = inside[:, None] & (column < width)[None, :]
    return tl.load(rows + row[:, None] * width + column[None, :], mask=mask, other=0.0).to(ACC)
