"""Dense pieces with first derivatives written by hand, for training by direct forces.

By hand, because (1) only inputs and pre-activations are kept: activations, gates, up-projections and the inner inputs of
residual layers are made again from them by passes that cost little beside a product; (2) constants are folded into the
weights, which are small beside the features, and sums go into the products' own epilogue.
Asking for second derivatives is an error, never a wrong number (`once_differentiable`).

A function that takes several parameters gets each by a path of its own (`path`), beside the values it computes with: the
order in which autograd hands out gradients is then the order of the paths, always. Of several parameters that hang on one
node it depends on what else is waiting, which differs between processes that sum gradients in that order. The values are
the parameters themselves, so that what is kept for the backward pass is no second hold on their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from jmp_kernels.activation import INV_SQRT_2, SCALE, scaled_silu, silu_backward
from jmp_kernels.products import nn, nt, nt_plus, nt_times, tn


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return nt(x, w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor]:
        x, w = ctx.saved_tensors
        return nn(dy, w) if ctx.needs_input_grad[0] else None, tn(dy, x)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, term: Tensor | None) -> Tensor:
        p = nt(x, w) if term is None else nt_plus(x, w, term)
        ctx.save_for_backward(x, w, p)
        return scaled_silu(p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, w, p = ctx.saved_tensors
        dp = silu_backward(dy, p).mul_(SCALE)
        return nn(dp, w) if ctx.needs_input_grad[0] else None, tn(dp, x), dp if ctx.needs_input_grad[2] else None


def path(w: Tensor) -> Tensor:
    """The same values behind a node of its own; for the gradient only."""
    return w.view_as(w)


def _residual(x: Tensor, p2: Tensor) -> Tensor:
    """(x + act(p₂))/√2."""
    return torch.add(x, F.silu(p2), alpha=SCALE).mul_(INV_SQRT_2)


def times(w: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """A weight times a constant, then in another precision."""
    return (w * factor).to(dtype)


class _Residuals(torch.autograd.Function):
    """Keeps x and the pre-activations of every layer; the inner inputs are made again, bit by bit the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Sequence[Tensor], *paths: Tensor) -> Tensor:
        y, kept = x, [x]
        for first, second in zip(weights[::2], weights[1::2], strict=True):
            p1 = nt(y, first.to(y.dtype))
            p2 = nt(F.silu(p1), times(second, SCALE, y.dtype))
            y = _residual(y, p2)
            kept += [p1, p2]
        ctx.save_for_backward(*kept, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        count = len(saved) // 4
        x, pre, weights = saved[0], saved[1 : 1 + 2 * count], saved[1 + 2 * count :]
        inputs = [x]
        for p2 in pre[1:-1:2]:
            inputs.append(_residual(inputs[-1], p2))
        grads: list[Tensor] = []
        factor = SCALE * SCALE * INV_SQRT_2
        for k in reversed(range(count)):
            (p1, p2), (first, second) = pre[2 * k : 2 * k + 2], weights[2 * k : 2 * k + 2]
            dp2 = silu_backward(dy, p2)  # over SCALE/√2
            d_second = times(tn(dp2, F.silu(p1)), factor, second.dtype)
            dp1 = silu_backward(nn(dp2, times(second, factor, dy.dtype)), p1)
            grads = [tn(dp1, inputs.pop()).to(first.dtype), d_second, *grads]
            dy = nn(dp1, first.to(dy.dtype)).add_(dy, alpha=INV_SQRT_2)
        return dy, None, *grads


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rad: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, rad, w)
        return nt_times(rad, w, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, rad, w = ctx.saved_tensors
        d_gate = dy * x
        return nt_times(rad, w, dy), nn(d_gate, w), tn(d_gate, rad)


class _GatedDown(torch.autograd.Function):
    """The down-projection's weight comes times `SCALE`: the factor of the activation before it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, rad: Tensor, w_gate: Tensor, w_down: Tensor) -> Tensor:
        p = nt(x, w)
        z = nt(nt_times(rad, w_gate, F.silu(p)), w_down)
        ctx.save_for_backward(x, w, rad, w_gate, w_down, p, z)
        return scaled_silu(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, rad, w_gate, w_down, p, z = ctx.saved_tensors
        dz = silu_backward(dy, z).mul_(SCALE)
        s = F.silu(p)
        d_down = tn(dz, nt_times(rad, w_gate, s))
        dt = nn(dz, w_down)
        d_gate = s.mul_(dt)
        dp = silu_backward(nt_times(rad, w_gate, dt), p)
        dx = nn(dp, w) if ctx.needs_input_grad[0] else None
        return dx, tn(dp, x), nn(d_gate, w_gate), tn(d_gate, rad), d_down


class _Merge(torch.autograd.Function):
    """Up-projections are made again in the backward pass: they cost an eighth of a layer and are as large as one."""

    @staticmethod
    def forward(
        ctx: Any, rows: tuple[Tensor | None, ...], weights: Sequence[Tensor], x: Tensor, *tensors: Tensor
    ) -> Tensor:
        w, *ups = weights
        ys = tensors[: len(rows)]  # the rest are the paths of the weights
        p = nt(x, w)
        total = F.silu(p).mul_(0.5 * SCALE)
        for y, w_up, own in zip(ys, ups, rows, strict=True):
            up = F.silu(nt(y, w_up))
            if own is None:
                total.add_(up, alpha=0.5 * SCALE * INV_SQRT_2)
            else:
                total.index_add_(0, own, up, alpha=0.5 * SCALE * INV_SQRT_2)
        ctx.rows = rows
        ctx.save_for_backward(x, w, p, *ys, *ups)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, p, *rest = ctx.saved_tensors
        ys, ups = rest[: len(ctx.rows)], rest[len(ctx.rows) :]
        dys, d_ups = [], []
        factor = 0.5 * SCALE * INV_SQRT_2
        for y, w_up, own in zip(ys, ups, ctx.rows, strict=True):
            d = silu_backward(dy if own is None else dy.index_select(0, own), nt(y, w_up))
            dys.append(nn(d, w_up * factor))
            d_ups.append(tn(d, y).mul_(factor))
        dp = silu_backward(dy, p)
        return None, None, nn(dp, w * (0.5 * SCALE)), *dys, tn(dp, x).mul_(0.5 * SCALE), *d_ups


class _GatedConcat(torch.autograd.Function):
    """The concatenation is never made: the products of its parts are summed; gated features are made again."""

    @staticmethod
    def forward(ctx: Any, rad: Tensor, w: Tensor, count: int, *tensors: Tensor) -> Tensor:
        xs, gates = tensors[:count], tensors[count:]
        p = rad.new_empty(0)
        for k, (x, g, part) in enumerate(zip(xs, gates, w.split(xs[0].shape[1], 1), strict=True)):
            t = nt_times(rad, g, x)
            p = nt_plus(t, part, p) if k else nt(t, part)
        ctx.count = count
        ctx.save_for_backward(rad, w, p, *tensors)
        return scaled_silu(p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rad, w, p, *tensors = ctx.saved_tensors
        xs, gates = tensors[: ctx.count], tensors[ctx.count :]
        dp = silu_backward(dy, p).mul_(SCALE)
        d_rad, dws, dxs, dgs = torch.zeros_like(rad), [], [], []
        for x, g, part in zip(xs, gates, w.split(xs[0].shape[1], 1), strict=True):
            dws.append(tn(dp, nt_times(rad, g, x)))
            dt = nn(dp, part.contiguous())
            dxs.append(nt_times(rad, g, dt))
            d_gate = dt.mul_(x)
            d_rad += nn(d_gate, g)
            dgs.append(tn(d_gate, rad))
        return d_rad, torch.cat(dws, dim=1), None, *dxs, *dgs


class _Contracted(torch.autograd.Function):
    """Keeps what the read-outs are made of, which is small, and makes them again."""

    @staticmethod
    def forward(ctx: Any, make: Callable[..., Tensor], w: Tensor, dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        ctx.make = make
        ctx.save_for_backward(w, *tensors)
        return nt(make(*tensors).flatten(1).to(dtype), w.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        w, *saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_(need) for t, need in zip(saved, needed, strict=True)]
            o = ctx.make(*tensors)
        d_o = nn(dy, w.to(dy.dtype)).to(o.dtype).view_as(o)
        d_w = tn(dy, o.detach().flatten(1).to(dy.dtype)).to(w.dtype)
        grads = iter(torch.autograd.grad(o, [t for t in tensors if t.requires_grad], d_o, allow_unused=True))
        return None, d_w, None, *(next(grads) if need else None for need in needed)


class _Layers(torch.autograd.Function):
    """Keeps the input and every pre-activation; inner inputs are made again from them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *paths: Tensor | None
    ) -> Tensor:
        y, pre = x, []
        for w, b in zip(weights, biases, strict=True):
            p = nt(y, w)
            pre.append(p if b is None else p.add_(b))
            y = scaled_silu(pre[-1])
        ctx.count = len(weights)
        ctx.has_bias = [b is not None for b in biases]
        ctx.save_for_backward(x, *pre, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        pre, weights = rest[: ctx.count], rest[ctx.count :]
        d_weights: list[Tensor] = []
        d_biases: list[Tensor | None] = []
        for k in reversed(range(ctx.count)):
            dp = silu_backward(dy, pre[k]).mul_(SCALE)
            d_weights.insert(0, tn(dp, scaled_silu(pre[k - 1]) if k else x))
            d_biases.insert(0, dp.sum(0) if ctx.has_bias[k] else None)
            dy = nn(dp, weights[k])
        return dy, None, None, *d_weights, *d_biases


class DenseOnce:
    """First derivatives by hand: fewer passes, less memory; second derivatives are refused."""

    @staticmethod
    def linear(x: Tensor, w: Tensor) -> Tensor:
        """x Wᵀ: [R, in] and [out, in] to [R, out]."""
        y: Tensor = _Linear.apply(x, w.to(x.dtype))
        return y

    @staticmethod
    def dense(x: Tensor, w: Tensor) -> Tensor:
        """act(x Wᵀ)."""
        y: Tensor = _Dense.apply(x, w.to(x.dtype), None)
        return y

    @staticmethod
    def added_dense(x: Tensor, w: Tensor, term: Tensor) -> Tensor:
        """act(x Wᵀ + term)."""
        y: Tensor = _Dense.apply(x, w.to(x.dtype), term)
        return y

    @staticmethod
    def residuals(x: Tensor, weights: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Residual layers in a row: x ← (x + act(W₂ act(W₁ x)))/√2."""
        if not weights:
            return x
        flat = [w for pair in weights for w in pair]
        y: Tensor = _Residuals.apply(x, flat, *map(path, flat))
        return y

    @staticmethod
    def gate(x: Tensor, rad: Tensor, w_gate: Tensor) -> Tensor:
        """x ⊙ (rad Wᵀ): [R, C], [R, rbf] and [C, rbf] to [R, C]."""
        y: Tensor = _Gate.apply(x, rad.to(x.dtype), w_gate.to(x.dtype))
        return y

    @staticmethod
    def gated_down(x: Tensor, w: Tensor, rad: Tensor, w_gate: Tensor, w_down: Tensor) -> Tensor:
        """act(W_down (act(W x) ⊙ (W_gate rad)))."""
        t = x.dtype
        y: Tensor = _GatedDown.apply(x, w.to(t), rad.to(t), w_gate.to(t), (w_down * SCALE).to(t))
        return y

    @staticmethod
    def merge(x: Tensor, w: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> Tensor:
        """(act(W x) + Σ over parts of act(W_p y)/√2)/2.

        Args:
            x, w: [E, in] and [out, in].
            parts: (y [R, narrow], W_p [out, narrow], rows): rows is None where y has all E rows, else int64 [R], the
                (distinct) rows it has.
        """
        weights = [z.to(x.dtype) for z in (w, *(w_up for _, w_up, _ in parts))]
        ys = [y.to(x.dtype) for y, _, _ in parts]
        total: Tensor = _Merge.apply(tuple(rows for _, _, rows in parts), weights, x, *ys, *map(path, weights))
        return total

    @staticmethod
    def gated_concat(xs: Sequence[Tensor], rad: Tensor, gates: Sequence[Tensor], w: Tensor) -> Tensor:
        """act(W [x₁ ⊙ (rad G₁ᵀ), x₂ ⊙ (rad G₂ᵀ), …]): several [R, C] to [R, out]; W is [out, several · C]."""
        t = xs[0].dtype
        y: Tensor = _GatedConcat.apply(rad.to(t), w.to(t), len(xs), *xs, *(g.to(t) for g in gates))
        return y

    @staticmethod
    def layers(x: Tensor, parameters: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Dense layers in a row: x ← act(W x + b), for every (W, b)."""
        weights = [w.to(x.dtype) for w, _ in parameters]
        biases = [None if b is None else b.to(x.dtype) for _, b in parameters]
        paths = [None if p is None else path(p) for p in (*weights, *biases)]
        y: Tensor = _Layers.apply(x, weights, biases, *paths)
        return y

    @staticmethod
    def contracted(make: Callable[..., Tensor], tensors: Sequence[Tensor], w: Tensor, dtype: torch.dtype) -> Tensor:
        """The dense layer on read-outs: o Wᵀ, [R, out] in `dtype`, where o = make(*tensors) is [R, K, C]."""
        y: Tensor = _Contracted.apply(make, w, dtype, *tensors)
        return y
