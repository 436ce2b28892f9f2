"""Angles without angles: harmonics of unit vectors, and azimuths about an axis as complex powers.

Symbols follow linear message passing: P̃_l the zonal harmonics, Y_p real spherical harmonics with p = (l, m), z and w the
azimuth about a middle bond as a complex number. Everything is a polynomial in the vectors' components, differentiable any
number of times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jmp_ds.graphs.settings import Dihedral
from jmp_ds.models.polynomials import legendre, powers


def zonal_harmonics(cosine: Tensor, num_spherical: int) -> Tensor:
    """P̃_l(c) = sqrt((2l+1)/4π) P_l(c) for l < num_spherical: […] to […, L] (specification section 4, circular basis)."""
    return legendre(cosine, [[math.sqrt((2 * l + 1) / (4 * math.pi)) for l in range(num_spherical)]]).squeeze(-2)


def spherical_harmonics(unit: Tensor, num_spherical: int) -> Tensor:
    """Real orthonormal spherical harmonics of unit vectors: […, 3] to […, L²], index l² + l + m."""
    x, y, z = unit.unbind(-1)
    orders = range(num_spherical)
    by_height = legendre(z, [[_harmonic_scale(l, m) for l in orders] for m in orders])
    every = by_height[..., :, None, :] * powers(x, y, num_spherical)[..., None]  # […, |m|, cosine or sine, l]
    p = torch.arange(num_spherical**2, device=unit.device)
    l = (p + 0.5).sqrt().floor().to(torch.int64)  # the half keeps squares clear of rounding
    m = p - l * l - l
    place = (2 * m.abs() + (m < 0)) * num_spherical + l
    return every.flatten(-3).index_select(-1, place)


def _harmonic_scale(l: int, m: int) -> float:
    """Norm of dᵐP_l/dzᵐ Re or Im (x + iy)ᵐ on the sphere, inverted; 0 where m > l."""
    if m > l:
        return 0.0
    norm = (2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m)
    return math.sqrt(norm if m == 0 else 2 * norm)


def addition_factors(num_spherical: int) -> Tensor:
    """sqrt(4π/(2l+1)) where l is the order of p, else 0: float64 [L, L²] (addition theorem)."""
    factors = torch.zeros(num_spherical, num_spherical**2, dtype=torch.float64)
    for l in range(num_spherical):
        factors[l, l * l : (l + 1) ** 2] = math.sqrt(4 * math.pi / (2 * l + 1))
    return factors


def fourier_coefficients(num_spherical: int, dihedral: Dihedral) -> Tensor:
    """a[l, n] with P̃_l(cos θ) = Σ_n a[l, n] cos nθ: float64 [L, H] (linear message passing, section 2).

    H is L for `smooth`. For `jmp` a last column holds P̃_l(0), which pairs with an undefined azimuth read.
    """
    g = [1.0]
    for k in range(1, num_spherical):
        g.append(g[-1] * (2 * k - 1) / (2 * k))
    a = torch.zeros(num_spherical, num_spherical, dtype=torch.float64)
    for l in range(num_spherical):
        for k in range(l + 1):
            a[l, abs(l - 2 * k)] += math.sqrt((2 * l + 1) / (4 * math.pi)) * g[k] * g[l - k]
    if dihedral == "smooth":
        return a
    return torch.cat([a, zonal_harmonics(torch.zeros(1, dtype=torch.float64), num_spherical).T], dim=1)


def perpendicular_frame(axis: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors perpendicular to each unit axis and to each other: [Q, 3] to two [Q, 3].

    Which two does not matter (results depend on differences of azimuths only), but they must not be detached: the
    derivative of a difference needs both.
    """
    x, y, z = axis.unbind(-1)
    sign = torch.where(z >= 0, 1.0, -1.0).to(axis.dtype)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = torch.stack([1.0 + sign * x * x * a, sign * b, -sign * x], dim=-1)
    return first, torch.stack([b, sign + y * y * a, -y], dim=-1)


def azimuth_powers(
    bond: Tensor, first: Tensor, second: Tensor, num_spherical: int, dihedral: Dihedral, *, reads: bool
) -> Tensor:
    """Powers of a bond's azimuth about an axis, such that products of two sum to P̃(cos θ): [R, 3] to [R, H, 2].

    `smooth` uses w = v·e1 + i v·e2 as it is, so |w| = sin φ and the powers vanish for bonds along the axis. `jmp` uses
    z = w/|w|; where |w| vanishes there is no azimuth, and a last pair of channels takes its place: an in-triplet writes
    (degenerate, regular), an out-pair reads (always, if degenerate), which yields P̃(0) whenever either is degenerate,
    as the published clamp does.

    Args:
        bond: unit vectors.
        first, second: the perpendicular frame of the axis, per row.
        num_spherical: L.
        dihedral: the rule.
        reads: whether the rows are out-pairs (they read) or in-triplets (they write).
    """
    x, y = (bond * first).sum(-1), (bond * second).sum(-1)
    if dihedral == "smooth":
        return powers(x, y, num_spherical)
    square = x * x + y * y
    # the published clamp acts on |n1 × n2| < 1e-9; in float64 a bond 1e-7 off the axis still has its azimuth there
    regular = square >= (1e-18 if bond.dtype == torch.float64 else 1e-10)
    # the root is guarded before it is taken: gradients stay finite
    inverse = torch.where(regular, square, torch.ones_like(square)).rsqrt()
    table = powers(x * inverse, y * inverse, num_spherical) * regular[:, None, None]
    last = (torch.ones_like(regular), ~regular) if reads else (~regular, regular)
    return torch.cat([table, torch.stack(last, -1)[:, None, :].to(table.dtype)], dim=1)
