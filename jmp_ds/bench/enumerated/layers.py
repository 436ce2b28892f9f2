"""Elementary layers as published, on parameters by name (specification section 2), and the zero-padded layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jmp_ds.bench.enumerated.lists import Padding

SQRT_2, SQRT_3 = 2.0**0.5, 3.0**0.5


@dataclass(frozen=True)
class Weights:
    """Parameters and buffers by published name, seen from below a prefix."""

    tensors: Mapping[str, Tensor]
    prefix: str = ""

    def below(self, name: str) -> Weights:
        """The same tensors, named from one level further down."""
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def get(self, name: str) -> Tensor | None:
        """The tensor, None where the model has none of that name."""
        return self.tensors.get(self.prefix + name)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x Wᵀ: […, in] to […, out]."""
        return F.linear(x, self[f"{name}.linear.weight"])

    def dense(self, x: Tensor, name: str) -> Tensor:
        """SiLU(x Wᵀ)/0.6: […, in] to […, out]."""
        return scaled_silu(self.linear(x, name))

    def residuals(self, x: Tensor, name: str, numbers: Iterable[int]) -> Tensor:
        """Residual layers in a row: […, units] to the same."""
        for k in numbers:
            inner = self.dense(self.dense(x, f"{name}.{k}.dense_mlp.0"), f"{name}.{k}.dense_mlp.1")
            x = (x + inner) * (1 / SQRT_2)
        return x

    def scaled(self, x: Tensor, name: str) -> Tensor:
        """The tensor times a scale factor, which is not read on the host."""
        return x * self[f"{name}.scale_factor"].to(x.dtype)


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x)/0.6."""
    return F.silu(x) * (1 / 0.6)


def padded(rows: Tensor, padding: Padding) -> Tensor:
    """Rows [T, …] in a matrix [count, width, …], zeros elsewhere."""
    flat = rows.new_zeros(padding.count * padding.width, *rows.shape[1:])
    flat[padding.place] = rows  # unlike index_copy_, this does not keep the rows for the backward pass
    return flat.view(padding.count, padding.width, *rows.shape[1:])


def sum_rows(x: Tensor, into: Tensor, count: int) -> Tensor:
    """Rows [R, …] summed into [count, …]."""
    return x.new_zeros(count, *x.shape[1:]).index_add_(0, into, x)


def feature_dtype(weight: Tensor) -> torch.dtype:
    """Precision in which matrix products of features run: autocast's where it is on, else that of the weights."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
