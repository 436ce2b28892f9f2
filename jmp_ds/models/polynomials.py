"""Families of polynomials whose derivatives are computed by formula, to any order.

Recorded step by step, a recursion costs automatic differentiation hundreds of passes over one number per edge; each family
here is one node, whose derivative is the same family again with other indices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def legendre(z: Tensor, scales: Sequence[Sequence[float]]) -> Tensor:
    """Scaled derivatives of Legendre polynomials, scales[m][l] · dᵐP_l/dzᵐ: […] to […, M, L]."""
    values: Tensor = _Legendre.apply(z, scales, 0)
    return values


def powers(x: Tensor, y: Tensor, count: int) -> Tensor:
    """(x + iy)ⁿ for n < count: […] to […, count, 2] (real, imaginary part)."""
    values: Tensor = _Powers.apply(x, y, count)
    return values


class _Legendre(torch.autograd.Function):
    """scales[m][l] · d^(m + order)P_l: one order more is its derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scales: Sequence[Sequence[float]], order: int) -> Tensor:
        ctx.scales, ctx.order = scales, order
        ctx.save_for_backward(z)
        tables = []
        for m, scale in enumerate(scales):
            values = _derivatives(z, len(scale), m + order)
            tables.append(torch.stack([p * s for p, s in zip(values, scale, strict=True)], dim=-1))
        return torch.stack(tables, dim=-2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return (dy * _Legendre.apply(z, ctx.scales, ctx.order + 1)).sum((-2, -1)), None, None


def _derivatives(z: Tensor, count: int, order: int) -> list[Tensor]:
    """d^order P_l/dz^order for l < count, by the recursion in l at fixed order."""
    zero = torch.zeros_like(z)
    values = [zero] * min(order, count)
    if count > order:
        values.append(torch.full_like(z, math.prod(range(1, 2 * order, 2))))
    for l in range(order + 1, count):
        value = (2 * l - 1) * z * values[-1]
        if l > order + 1:
            value = value - (l + order - 1) * values[-2]
        values.append(value / (l - order))
    return values


class _Powers(torch.autograd.Function):
    """d(zⁿ) = n zⁿ⁻¹ dz."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, count: int) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(x, y)
        re, im = [torch.ones_like(x)], [torch.zeros_like(x)]
        for _ in range(1, count):
            re.append(re[-1] * x - im[-1] * y)
            im.append(im[-1] * x + re[-2] * y)
        return torch.stack([torch.stack(re, -1), torch.stack(im, -1)], dim=-1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y = ctx.saved_tensors
        if ctx.count == 1:
            return torch.zeros_like(x), torch.zeros_like(y), None
        lower = _Powers.apply(x, y, ctx.count - 1)
        lower = lower * torch.arange(1, ctx.count, dtype=x.dtype, device=x.device)[:, None]
        dy = dy[..., 1:, :]
        along = (lower * dy).sum((-2, -1))
        across = (lower[..., 0] * dy[..., 1] - lower[..., 1] * dy[..., 0]).sum(-1)
        return along, across, None
