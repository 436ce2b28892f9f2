"""Dense layers, residual layers and their initialisation (specification section 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INV_SQRT_2 = 1 / math.sqrt(2.0)
INV_SQRT_3 = 1 / math.sqrt(3.0)


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x)/0.6, the activation of the whole network."""
    return F.silu(x) * (1 / 0.6)


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
    """y = act(x Wᵀ), without bias; key `linear.weight` as published."""

    def __init__(self, in_features: int, out_features: int, *, activation: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        he_orthogonal_(self.linear.weight)
        self.activation = activation

    @property
    def weight(self) -> Tensor:
        """[out, in]."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] to […, out]."""
        y = self.linear(x)
        return scaled_silu(y) if self.activation else y


class ResidualLayer(nn.Module):
    """y = (x + Dense(Dense(x)))/√2."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.dense_mlp = nn.Sequential(Dense(units, units), Dense(units, units))

    def forward(self, x: Tensor) -> Tensor:
        """[…, units] to the same."""
        return (x + self.dense_mlp(x)) * INV_SQRT_2


def residual_layers(count: int, units: int) -> nn.Sequential:
    """Several residual layers in a row."""
    return nn.Sequential(*(ResidualLayer(units) for _ in range(count)))


class BasisEmbedding(nn.Module):
    """Weights that turn a radial basis into one table [I, S] per edge.

    The weight is declared [num_radial, S, I], but its rows are read as [I, S]: published checkpoints depend on that
    (specification section 4, layout trap).
    """

    def __init__(self, num_radial: int, orders: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(he_orthogonal_(torch.empty(num_radial, orders, size)))

    def forward(self, radial: Tensor) -> Tensor:
        """[E, num_radial] to [E, I, S]."""
        num_radial, orders, size = self.weight.shape
        return (radial @ self.weight.to(radial.dtype).reshape(num_radial, -1)).view(radial.shape[0], size, orders)


class EdgeEmbedding(nn.Module):
    """act(W [h_s, h_t, m]): the atom parts are multiplied once per atom, not once per edge."""

    def __init__(self, atom: int, edge: int, out: int) -> None:
        super().__init__()
        self.dense = Dense(2 * atom + edge, out)
        self._atom = atom

    def forward(self, h: Tensor, m: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Atoms [N, atom] and edges [E, edge] to [E, out]."""
        w_source, w_target, w_edge = self.dense.weight.split([self._atom, self._atom, m.shape[1]], dim=1)
        of_source = F.linear(h, w_source).index_select(0, source)
        of_target = F.linear(h, w_target).index_select(0, target)
        return scaled_silu(F.linear(m, w_edge) + of_source + of_target)
