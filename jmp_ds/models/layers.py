"""Dense layers, residual layers and their initialisation (specification section 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from jmp_kernels import DenseOnce, DenseTwice, Operators
from torch import Tensor, nn

from jmp_ds.graphs.graph import EdgeSet

INV_SQRT_3 = 1 / math.sqrt(3.0)


def he_orthogonal_(weight: Tensor) -> Tensor:
    """Semi-orthogonal start, standardised per output and divided by sqrt(fan_in), in place (specification section 2)."""
    if weight.is_meta:
        return weight  # there is nothing to fill
    with torch.no_grad():
        nn.init.orthogonal_(weight)
        dims = (0, 1) if weight.dim() == 3 else (1,)
        fan_in = weight.shape[0] * weight.shape[1] if weight.dim() == 3 else weight.shape[1]
        variance, mean = torch.var_mean(weight, dim=dims, unbiased=True, keepdim=True)
        return weight.sub_(mean).div_((variance + 1e-6).sqrt()).mul_(fan_in**-0.5)


class Dense(nn.Module):
    """The weight of a dense layer without bias, y = act(x Wᵀ) or x Wᵀ; key `linear.weight` as published.

    Layers hold weights only: what is computed with them, and in how few passes, is up to the operators.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        he_orthogonal_(self.linear.weight)

    @property
    def weight(self) -> Tensor:
        """[out, in]."""
        return self.linear.weight


class ResidualLayer(nn.Module):
    """The weights of y = (x + act(W₂ act(W₁ x)))/√2."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.dense_mlp = nn.Sequential(Dense(units, units), Dense(units, units))


class Residuals(nn.Sequential):
    """Several residual layers in a row; keys `0.dense_mlp.0.linear.weight` and so on, as published."""

    def __init__(self, count: int, units: int) -> None:
        super().__init__(*(ResidualLayer(units) for _ in range(count)))

    @property
    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """(W₁, W₂) of every layer."""
        return weights_of(self)


class DenseThenResiduals(nn.Sequential):
    """A dense layer and residual layers behind it; keys `0.linear.weight`, `1.dense_mlp.0.linear.weight` and so on."""

    def __init__(self, in_features: int, units: int, count: int) -> None:
        super().__init__(Dense(in_features, units), *Residuals(count, units))

    @property
    def first(self) -> Tensor:
        """The dense layer's weight, [units, in]."""
        return cast(Dense, next(iter(self))).weight

    @property
    def residuals(self) -> list[tuple[Tensor, Tensor]]:
        """(W₁, W₂) of every residual layer."""
        return weights_of(list(self)[1:])


def weights_of(layers: Iterable[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """(W₁, W₂) of every residual layer."""
    pairs = (cast(ResidualLayer, layer).dense_mlp for layer in layers)
    return [(cast(Dense, first).weight, cast(Dense, second).weight) for first, second in pairs]


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """The named (distinct, ascending) rows; x itself where these are all."""
    return x if rows.shape[0] == x.shape[0] else x.index_select(0, rows)


class BasisEmbedding(nn.Module):
    """Weights that turn a radial basis into one table [I, S] per edge.

    The weight is declared [num_radial, S, I], but its rows are read as [I, S]: published checkpoints depend on that
    (specification section 4, layout trap).
    """

    def __init__(self, num_radial: int, orders: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(he_orthogonal_(torch.empty(num_radial, orders, size)))

    def forward(self, radial: Tensor, dense: DenseOnce | DenseTwice) -> Tensor:
        """[E, num_radial] to [E, I, S], by the given operators."""
        num_radial, orders, size = self.weight.shape
        return dense.linear(radial, self.weight.reshape(num_radial, -1).T).view(radial.shape[0], size, orders)


class EdgeEmbedding(nn.Module):
    """act(W [h_s, h_t, m]): the atom parts are multiplied once per atom, not once per edge."""

    def __init__(self, atom: int, edge: int, out: int, operators: Operators) -> None:
        super().__init__()
        self.dense = Dense(2 * atom + edge, out)
        self._atom = atom
        self._operators = operators

    def forward(self, h: Tensor, m: Tensor, edges: EdgeSet) -> Tensor:
        """Atoms [N, atom] and edges [E, edge] to [E, out], in the precision of m."""
        dense, messages = self._operators.dense, self._operators.messages
        w_source, w_target, w_edge = self.dense.weight.split([self._atom, self._atom, m.shape[1]], dim=1)
        of_source = messages.gather(dense.linear(h, w_source).to(m.dtype), edges.by_source)
        of_target = messages.spread(dense.linear(h, w_target).to(m.dtype), edges.by_target)
        out: Tensor = dense.added_dense(m, w_edge, of_source + of_target)
        return out
