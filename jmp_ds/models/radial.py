"""Lengths to numbers: envelope and Gaussian grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jmp_ds.graphs.settings import RADIAL_SPAN


def envelope(scaled: Tensor) -> Tensor:
    """Polynomial envelope with exponent 5: 1 - 21x⁵ + 35x⁶ - 15x⁷ for x < 1, then 0 (specification section 4)."""
    inside = 1.0 + scaled**5 * (-21.0 + scaled * (35.0 - 15.0 * scaled))
    return torch.where(scaled < 1.0, inside, torch.zeros_like(inside))


class RadialBasis(nn.Module):
    """Gaussians on a grid over 0 … 12 Å, times the envelope (specification section 4).

    One distance has one encoding whatever the cutoff; only the end of the envelope moves.
    """

    offset: Tensor

    def __init__(self, num_radial: int) -> None:
        super().__init__()
        # the published grid was made in float32
        self.register_buffer("offset", torch.linspace(0, 1, num_radial), persistent=False)
        self._precision = 0.5 * (num_radial - 1) ** 2

    def forward(self, length: Tensor, end: Tensor) -> Tensor:
        """[E] lengths and [E] envelope ends in Å to [E, num_radial]."""
        scaled = length / RADIAL_SPAN
        gauss = torch.exp(-self._precision * (scaled[:, None] - self.offset.to(length.dtype)) ** 2)
        return envelope(length / end)[:, None] * gauss
