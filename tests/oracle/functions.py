"""Radial and angular functions as the specification states them (section 4), in the precision of their arguments."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SPAN = 12.0  # Å, the length that the Gaussian grid covers


def radial_functions(length: Tensor, end: Tensor, number: int) -> Tensor:
    """Gaussians on a grid over 0 … 12 Å times the envelope that ends at `end`; [E] and [E] in Å to [E, number]."""
    centres = torch.linspace(0, 1, number, dtype=torch.float32).to(length.dtype)
    sharpness = 0.5 / (1.0 / (number - 1)) ** 2
    gauss = torch.exp(-sharpness * (length[:, None] / SPAN - centres) ** 2)
    x = length / end
    envelope = torch.where(x < 1, 1 - 21 * x**5 + 35 * x**6 - 15 * x**7, torch.zeros_like(x))
    return envelope[:, None] * gauss


def zonal(cosine: Tensor, orders: int) -> Tensor:
    """Y_l0 = sqrt((2l+1)/4π) P_l(cos), l = 0 … orders - 1; [T] to [T, orders]."""
    legendre = [torch.ones_like(cosine), cosine]
    for l in range(1, orders - 1):
        legendre.append(((2 * l + 1) * cosine * legendre[l] - l * legendre[l - 1]) / (l + 1))
    return torch.stack([math.sqrt((2 * l + 1) / (4 * math.pi)) * legendre[l] for l in range(orders)], 1)


def published_dihedral(c_a: Tensor, b_a: Tensor, d_b: Tensor, orders: int) -> Tensor:
    """Y_l0(cos θ) of the angle between the planes (c, a, b) and (a, b, d); unit vectors [Q, 3] to [Q, orders]."""
    first, second = torch.linalg.cross(c_a, b_a), torch.linalg.cross(d_b, b_a)
    sine = torch.linalg.norm(torch.linalg.cross(first, second), dim=1).clamp(min=1e-9)
    return zonal(torch.cos(torch.atan2(sine, (first * second).sum(1))), orders)


def smooth_dihedral(c_a: Tensor, b_a: Tensor, d_b: Tensor, orders: int) -> Tensor:
    """Σ_n a[l,n] Re[w_c^n conj(w_d)^n], w the component perpendicular to b→a, not normalised; [Q, 3] to [Q, orders].

    With w_c conj(w_d) = p + iq, the powers need only p = w_c·w_d and the squared modulus r = |w_c|² |w_d|²:
    C_0 = 1, C_1 = p, C_{n+1} = 2 p C_n - r C_{n-1}. No frame is chosen.
    """
    along_c, along_d = (c_a * b_a).sum(1), (d_b * b_a).sum(1)
    perpendicular_c, perpendicular_d = c_a - along_c[:, None] * b_a, d_b - along_d[:, None] * b_a
    p = (perpendicular_c * perpendicular_d).sum(1)
    r = (perpendicular_c**2).sum(1) * (perpendicular_d**2).sum(1)
    powers = [torch.ones_like(p), p]
    for _ in range(orders - 2):
        powers.append(2 * p * powers[-1] - r * powers[-2])
    return torch.stack(powers[:orders], 1) @ fourier(orders).to(p.dtype).T


def fourier(orders: int) -> Tensor:
    """a[l, n] with Y_l0(cos θ) = Σ_n a[l, n] cos(nθ): Legendre as Chebyshev series; float64 [orders, orders]."""
    table = np.zeros((orders, orders))
    for l in range(orders):
        series = np.polynomial.chebyshev.poly2cheb(np.polynomial.legendre.leg2poly(np.eye(orders)[l]))
        table[l, : len(series)] = math.sqrt((2 * l + 1) / (4 * math.pi)) * series
    return torch.from_numpy(table)
