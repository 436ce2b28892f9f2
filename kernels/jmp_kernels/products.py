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

#: Rows of the pieces, largest first. Larger ones gain nothing; among small ones the steps are small, to waste little.
PIECES = (2048, 1024, 512, 448, 384, 320, 256, 192, 128, 64)

#: With fewer rows than this the default product is no slower.
FEW = 64


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ONEDNN = _has_onednn()


def nt(x: Tensor, w: Tensor) -> Tensor:
    """x Wᵀ: [R, in] and [out, in] to [R, out]."""
    if not _in_pieces(x):
        return torch.mm(x, w.t())
    return _rowwise(x, w, _keep)


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
    return _rowwise(dy, w.t(), _keep)


def tn(dy: Tensor, x: Tensor) -> Tensor:
    """dYᵀ X: [R, out] and [R, in] to [out, in]."""
    if not _in_pieces(dy):
        return torch.mm(dy.t(), x)
    done = dy.shape[0] % PIECES[-1]
    total = torch.mm(dy[:done].float().t(), x[:done].float())
    for size in PIECES:
        while size <= dy.shape[0] - done:
            rows = slice(done, done + size)
            total += _tn_piece(dy[rows], x[rows])
            done += size
    return total.to(dy.dtype)


def pieces(total: int) -> list[tuple[int, int]]:
    """Start and length of the pieces that cover `total` rows, in order.

    All lengths are in `PIECES`. The last piece may end after the last row: by an eighth of its length or by 64 rows.
    """
    found: list[tuple[int, int]] = []
    done = 0
    while done < total:
        rest = total - done
        ample = [size for size in PIECES if rest <= size <= rest + max(size // 8, PIECES[-1])]
        size = min(ample) if ample else next(size for size in PIECES if size <= rest)
        found.append((done, size))
        done += size
    return found


def _in_pieces(x: Tensor) -> bool:
    fits = x.device.type == "cpu" and x.shape[0] >= FEW and x.shape[1] > 0
    return ONEDNN and fits and x.dtype in (torch.float32, torch.bfloat16)


def _rowwise(x: Tensor, w: Tensor, finish: Callable[[Tensor, slice, Tensor], Tensor]) -> Tensor:
    """x Wᵀ piece by piece; `finish` writes what becomes of a piece's product into its rows of the result."""
    total, parts = x.shape[0], pieces(x.shape[0])
    if len(parts) == 1:
        product = _onednn(_rows(x, *parts[0]), w)[:total]
        return finish(product, slice(None), product)
    result = x.new_empty(total, w.shape[0])
    for start, size in parts:
        first = min(start, total - size)  # the last piece overlaps the one before
        rows = slice(first, first + size)
        place = result[rows]
        # PyTorch's own bf16 product is oneDNN's, too, and writes where it is told
        narrow = x.dtype == torch.bfloat16
        finish(torch.mm(x[rows], w.t(), out=place) if narrow else _onednn(x[rows], w), rows, place)
    return result


def _keep(piece: Tensor, rows: slice, out: Tensor) -> Tensor:
    return out if out is piece else out.copy_(piece)


def _rows(x: Tensor, start: int, size: int) -> Tensor:
    """A piece, with rows of zeros in place of those beyond the last."""
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
