"""The three matrix products of a dense layer. Nothing here records gradients: `dense_once` and `dense_twice` do.

PyTorch's own products, on every device. oneDNN's are faster on some CPUs (docs/benchmarks.md), but each new number of rows
leaves half a megabyte of compiled code in the process for every layer's shape, and batches differ in size at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nt(x: Tensor, w: Tensor) -> Tensor:
    """x Wᵀ: [R, in] and [out, in] to [R, out]."""
    return torch.mm(x, w.t())


def nt_times(x: Tensor, w: Tensor, factor: Tensor) -> Tensor:
    """(x Wᵀ) ⊙ factor: [R, in], [out, in] and [R, out] to [R, out]."""
    return torch.mm(x, w.t()).mul_(factor)


def nt_plus(x: Tensor, w: Tensor, term: Tensor) -> Tensor:
    """x Wᵀ + term: [R, in], [out, in] and [R, out] to [R, out]."""
    return torch.addmm(term, x, w.t())


def nn(dy: Tensor, w: Tensor) -> Tensor:
    """dY W: [R, out] and [out, in] to [R, in]."""
    return torch.mm(dy, w)


def tn(dy: Tensor, x: Tensor) -> Tensor:
    """dYᵀ X: [R, out] and [R, in] to [out, in]."""
    return torch.mm(dy.t(), x)
