"""Low-rank adaptation of dense layers: W + (α/r) B A, with W frozen and A, B trained (LoRA, arXiv 2106.09685).

A starts random and B at zero, so the network computes the same at first. What is trained is merged into W before weights
leave the run: bundles never hold low-rank factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from jmp_ds.models.layers import Dense

_ADDED, _ORIGINAL = ".parametrizations.weight.0.", ".parametrizations.weight.original"


class LowRank(nn.Module):
    """W ↦ W + (α/r) B A."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        """Args: weight: [out, in], for its shape and device; rank: r; alpha: α."""
        super().__init__()
        out, inputs = weight.shape
        self.a = nn.Parameter(torch.randn(rank, inputs, device=weight.device, dtype=weight.dtype) * inputs**-0.5)
        self.b = nn.Parameter(torch.zeros(out, rank, device=weight.device, dtype=weight.dtype))
        self.factor = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        return torch.addmm(weight, self.b, self.a, alpha=self.factor)


def dense_layers_of(model: nn.Module) -> dict[str, Dense]:
    """The dense layers of the trunk by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Dense)}


def add_low_rank(model: nn.Module, names: Iterable[str], rank: int, alpha: float) -> None:
    """Freeze the named dense layers' weights and train low-rank changes of them instead.

    Args:
        model: with its weights in place.
        names: of `dense_layers_of`.
        rank: r; where a layer is narrower it cannot be reached, but nothing breaks.
        alpha: α.
    """
    layers = dense_layers_of(model)
    for name in names:
        linear = layers[name].linear
        linear.weight.requires_grad_(False)
        parametrize.register_parametrization(linear, "weight", LowRank(linear.weight, rank, alpha))


def merged(state: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """A state in which low-rank changes are part of the weights, with the names that it had without them.

    Args:
        state: of a model after `add_low_rank`; others come back as they are.
        factor: α/r.
    """
    result = {name: x for name, x in state.items() if ".parametrizations." not in name}
    for name, weight in state.items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            b, a = state[f"{layer}{_ADDED}b"], state[f"{layer}{_ADDED}a"]
            result[f"{layer}.weight"] = torch.addmm(weight, b, a, alpha=factor)
    return result
