"""The network's activation, SiLU(x)/0.6, and its derivatives, each in as few passes over memory as PyTorch allows.

Its factor stands here, and that of a sum of two features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: Factor of the scaled activation.
SCALE = 1 / 0.6
#: Factor of a sum of two features, which keeps their variance.
INV_SQRT_2 = 1 / math.sqrt(2.0)

#: dy · silu'(p), one pass.
silu_backward = torch.ops.aten.silu_backward
#: dy · s (1 - s) where s is a sigmoid, one pass.
sigmoid_backward = torch.ops.aten.sigmoid_backward


def scaled_silu(p: Tensor) -> Tensor:
    """SiLU(p)/0.6, no gradient recorded in between."""
    return F.silu(p).mul_(SCALE)


class _Gradient(torch.autograd.Function):
    """dy · act'(p) as a function of both."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(dy, p)
        return silu_backward(dy, p).mul_(SCALE)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        dy, p = ctx.saved_tensors
        if torch.is_grad_enabled():
            s = torch.sigmoid(p)
            first = s * (1 + p * (1 - s)) * SCALE
            second = s * (1 - s) * (2 + p * (1 - 2 * s)) * SCALE
            return d * first, d * dy * second
        # silu'' = s (1 - s) (2 + p (1 - 2 s))
        s = torch.sigmoid(p)
        second = sigmoid_backward(d * dy, s)
        second.mul_(torch.rsub(s, SCALE, alpha=2 * SCALE).mul_(p).add_(2 * SCALE))
        return silu_backward(d, p).mul_(SCALE), second


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return scaled_silu(p)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        gradient: Tensor = _Gradient.apply(dy, p) if torch.is_grad_enabled() else silu_backward(dy, p).mul_(SCALE)
        return gradient


def activation(p: Tensor) -> Tensor:
    """SiLU(p)/0.6; keeps p only, differentiable any number of times."""
    y: Tensor = _Activation.apply(p)
    return y
