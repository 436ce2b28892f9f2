"""Dense pieces that differentiate twice, for models whose forces are energy gradients.

The products go through `products`. The weight's gradient is a node of its own (`_WeightPath`), so that a derivative by
positions alone, as forces are, does not compute it: autograd leaves out nodes that lead to nothing asked for, but it
cannot leave out one output of a Python function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jmp_kernels import products
from jmp_kernels.activation import INV_SQRT_2, activation

# With gradients off, as in the last backward pass of a step, a product needs no node of its own.


def _nt(x: Tensor, w: Tensor) -> Tensor:
    return _NT.apply(x, w) if torch.is_grad_enabled() else products.nt(x, w)


def _nn(dy: Tensor, w: Tensor) -> Tensor:
    return _NN.apply(dy, w) if torch.is_grad_enabled() else products.nn(dy, w)


def _tn(dy: Tensor, x: Tensor) -> Tensor:
    return _TN.apply(dy, x) if torch.is_grad_enabled() else products.tn(dy, x)


class _NT(torch.autograd.Function):
    """x Wᵀ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return products.nt(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return _nn(dy, w), _tn(dy, x)


class _NN(torch.autograd.Function):
    """dY W."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(dy, w)
        return products.nn(dy, w)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        dy, w = ctx.saved_tensors
        return _nt(d, w), _tn(dy, d)


class _TN(torch.autograd.Function):
    """dYᵀ X."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(dy, x)
        return products.tn(dy, x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        dy, x = ctx.saved_tensors
        return _nt(x, d), _nn(dy, d)


class _WeightPath(torch.autograd.Function):
    """[R, out] without values, whose gradient dY becomes the weight's, dYᵀ X."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_empty(()).expand(x.shape[0], w.shape[0])  # nobody reads it

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "gradients of weights cannot be differentiated again; leave the weights out of this derivative"
            )
        (x,) = ctx.saved_tensors
        return None, products.tn(dy, x)


class _Product(torch.autograd.Function):
    """x Wᵀ; the gradient of W leaves by the weight path."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, weight_path: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return products.nt(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, Tensor]:
        (w,) = ctx.saved_tensors
        return _nn(dy, w) if ctx.needs_input_grad[0] else None, None, dy


class DenseTwice:
    """Twice differentiable."""

    @staticmethod
    def linear(x: Tensor, w: Tensor) -> Tensor:
        """x Wᵀ: [R, in] and [out, in] to [R, out]."""
        w = w.to(x.dtype)
        y: Tensor = _Product.apply(x, w, _WeightPath.apply(x.detach(), w))
        return y

    @staticmethod
    def dense(x: Tensor, w: Tensor) -> Tensor:
        """act(x Wᵀ)."""
        return activation(DenseTwice.linear(x, w))

    @staticmethod
    def added_dense(x: Tensor, w: Tensor, term: Tensor) -> Tensor:
        """act(x Wᵀ + term)."""
        return activation(DenseTwice.linear(x, w) + term)

    @staticmethod
    def residuals(x: Tensor, weights: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Residual layers in a row: x ← (x + act(W₂ act(W₁ x)))/√2."""
        for first, second in weights:
            x = (x + DenseTwice.dense(DenseTwice.dense(x, first), second)) * INV_SQRT_2
        return x

    @staticmethod
    def gate(x: Tensor, rad: Tensor, w_gate: Tensor) -> Tensor:
        """x ⊙ (rad Wᵀ): [R, C], [R, rbf] and [C, rbf] to [R, C]."""
        return x * DenseTwice.linear(rad.to(x.dtype), w_gate)

    @staticmethod
    def gated_down(x: Tensor, w: Tensor, rad: Tensor, w_gate: Tensor, w_down: Tensor) -> Tensor:
        """act(W_down (act(W x) ⊙ (W_gate rad)))."""
        return DenseTwice.dense(DenseTwice.gate(DenseTwice.dense(x, w), rad, w_gate), w_down)

    @staticmethod
    def merge(x: Tensor, w: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> Tensor:
        """(act(W x) + Σ over parts of act(W_p y)/√2)/2.

        Args:
            x, w: [E, in] and [out, in].
            parts: (y [R, narrow], W_p [out, narrow], rows): rows is None where y has all E rows, else int64 [R], the
                (distinct) rows it has.
        """
        total = DenseTwice.dense(x, w)
        for y, w_up, rows in parts:
            up = DenseTwice.dense(y, w_up) * INV_SQRT_2
            total = total + up if rows is None else total.index_add(0, rows, up)
        return total * 0.5

    @staticmethod
    def gated_concat(xs: Sequence[Tensor], rad: Tensor, gates: Sequence[Tensor], w: Tensor) -> Tensor:
        """act(W [x₁ ⊙ (rad G₁ᵀ), x₂ ⊙ (rad G₂ᵀ), …]): several [R, C] to [R, out]; W is [out, several · C]."""
        return DenseTwice.dense(
            torch.cat([DenseTwice.gate(x, rad, g) for x, g in zip(xs, gates, strict=True)], dim=1), w
        )

    @staticmethod
    def layers(x: Tensor, parameters: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Dense layers in a row: x ← act(W x + b), for every (W, b)."""
        for w, b in parameters:
            p = DenseTwice.linear(x, w)
            x = activation(p if b is None else p + b.to(x.dtype))
        return x

    @staticmethod
    def contracted(make: Callable[..., Tensor], tensors: Sequence[Tensor], w: Tensor, dtype: torch.dtype) -> Tensor:
        """The dense layer on read-outs: o Wᵀ, [R, out] in `dtype`, where o = make(*tensors) is [R, K, C]."""
        return DenseTwice.linear(make(*tensors).flatten(1).to(dtype), w)
