"""The three matrix products of a dense layer. Nothing here records gradients: `dense_once` and `dense_twice` do.

On a GPU and in float64 they are PyTorch's own. On a CPU float32 and bf16 go through oneDNN, which is up to twice as fast
as the default library on some CPUs (docs/benchmarks.md) but compiles code for every new number of rows, and batches differ
in size at every step: rows are therefore worked on in pieces of few sizes, so that what is compiled is bounded and is
compiled in the first steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Rows of the pieces, largest first. Larger ones gain nothing; results of this size are copied while in the cache.
PIECES = (2048, 1024, 512, 256, 128)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ONEDNN = _has_onednn()


def nt(x: Tensor, w: Tensor) -> Tensor:
    """x Wᵀ: [R, in] and [out, in] to [R, out]."""
    if not _in_pieces(x):
        return torch.mm(x, w.t())
    return _rowwise(x, w, lambda piece, rows, out: out.copy_(piece))


def nt_times(x: Tensor, w: Tensor, factor: Tensor) -> Tensor:
    """(x Wᵀ) ⊙ factor: [R, in], [out, in] and [R, out] to [R, out]."""
    if not _in_pieces(x):
        return torch.mm(x, w.t()).mul_(factor)
    return _rowwise(x, w, lambda piece, rows, out: torch.mul(piece, factor[rows], out=out))


def nt_plus(x: Tensor, w: Tensor, term: Tensor) -> Tensor:
    """x Wᵀ + term: [R, in], [out, in] and [R, out] to [R, out]."""
    if not _in_pieces(x):
        return torch.addmm(term, x, w.t())
    return _rowwise(x, w, lambda piece, rows, out: torch.add(piece, term[rows], out=out))


def nn(dy: Tensor, w: Tensor) -> Tensor:
    """dY W: [R, out] and [out, in] to [R, in]."""
    if not _in_pieces(dy):
        return torch.mm(dy, w)
    return _rowwise(dy, w.t(), lambda piece, rows, out: out.copy_(piece))


def tn(dy: Tensor, x: Tensor) -> Tensor:
    """dYᵀ X: [R, out] and [R, in] to [out, in]."""
    if not _in_pieces(dy):
        return torch.mm(dy.t(), x)
    total = torch.zeros(dy.shape[1], x.shape[1], dtype=torch.float32)
    for start, size in pieces(dy.shape[0]):
        total += _tn_piece(_rows(dy, start, size), _rows(x, start, size))
    return total.to(dy.dtype)


def pieces(total: int) -> list[tuple[int, int]]:
    """Start and length of the pieces that cover `total` rows, in order.

    Lengths are those in `PIECES` of at most `total` rows, or else the shortest. The last piece may end after the last row,
    by a quarter of its length, or by anything if it has the shortest length.
    """
    sizes = [size for size in PIECES if size <= total] or [PIECES[-1]]
    found: list[tuple[int, int]] = []
    done = 0
    while done < total:
        rest = total - done
        ample = [size for size in sizes if 3 * size <= 4 * rest <= 4 * size]
        size = min(ample) if ample else next((size for size in sizes if size <= rest), sizes[-1])
        found.append((done, size))
        done += size
    return found


def _in_pieces(x: Tensor) -> bool:
    fits = x.device.type == "cpu" and x.shape[0] >= PIECES[-1] and x.shape[1] > 0
    return ONEDNN and fits and x.dtype in (torch.float32, torch.bfloat16)


def _rowwise(x: Tensor, w: Tensor, finish: Callable[[Tensor, slice, Tensor], Tensor]) -> Tensor:
    """x Wᵀ piece by piece; `finish` writes a piece's product into its rows of the result."""
    result = x.new_empty(x.shape[0], w.shape[0])
    for start, size in pieces(x.shape[0]):
        first = min(start, x.shape[0] - size)  # the last piece overlaps the one before: its rows come out alike
        rows = slice(first, first + size)
        finish(_onednn(x[rows], w), rows, result[rows])
    return result


def _rows(x: Tensor, start: int, size: int) -> Tensor:
    """A piece for a sum over rows, to which rows of zeros beyond the last add nothing."""
    piece = x[start : start + size]
    return piece if piece.shape[0] == size else pad(piece, (0, 0, 0, size - piece.shape[0]))


def _tn_piece(dy: Tensor, x: Tensor) -> Tensor:
    # oneDNN wants its left operand laid out along the rows that are summed: the narrower one is laid out anew
    if dy.shape[1] <= x.shape[1]:
        return _onednn(dy.t().contiguous(), x.t())
    return _onednn(x.t().contiguous(), dy.t()).t()


def _onednn(x: Tensor, w: Tensor) -> Tensor:
    # other layouts of w than rows or columns without gaps would go to a reference implementation, a thousand times slower
    w = w if w.is_contiguous() or w.t().is_contiguous() else w.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), w, None, "none", [], "")
    return product
