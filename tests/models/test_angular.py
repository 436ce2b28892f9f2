"""Harmonics against their definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.special import eval_legendre

from jmp_ds.models.angular import (
    addition_factors,
    azimuth_powers,
    fourier_coefficients,
    perpendicular_frame,
    spherical_harmonics,
    zonal_harmonics,
)
from jmp_ds.models.polynomials import powers
from jmp_ds.models.radial import RadialBasis, envelope


def units(count: int, seed: int = 0) -> torch.Tensor:
    v = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / v.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("orders", [1, 4, 7])
def test_zonal_harmonics_are_scaled_legendre_polynomials(orders: int) -> None:
    c = torch.linspace(-1, 1, 41, dtype=torch.float64)
    for l, column in enumerate(zonal_harmonics(c, orders).T):
        expected = math.sqrt((2 * l + 1) / (4 * math.pi)) * torch.as_tensor(eval_legendre(l, c.numpy()))
        torch.testing.assert_close(column, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("orders", [4, 7])
def test_addition_theorem(orders: int) -> None:
    a, b = units(50, 1), units(50, 2)
    products = spherical_harmonics(a, orders) * spherical_harmonics(b, orders)
    expected = zonal_harmonics((a * b).sum(-1), orders)
    torch.testing.assert_close(products @ addition_factors(orders).T, expected, rtol=0, atol=1e-13)


def test_spherical_harmonics_are_orthonormal() -> None:
    """Gauss-Legendre times equidistant azimuths integrates these polynomials exactly."""
    import numpy as np

    z, w = np.polynomial.legendre.leggauss(16)
    phi = np.arange(32) * 2 * np.pi / 32
    zz, pp = np.meshgrid(z, phi, indexing="ij")
    r = np.sqrt(1 - zz**2)
    v = torch.as_tensor(np.stack([r * np.cos(pp), r * np.sin(pp), zz], -1).reshape(-1, 3))
    weight = torch.as_tensor(np.repeat(w, 32) * 2 * np.pi / 32)
    y = spherical_harmonics(v, 7)
    torch.testing.assert_close((y * weight[:, None]).T @ y, torch.eye(49, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("orders", [4, 7])
def test_fourier_series_of_legendre(orders: int) -> None:
    theta = torch.linspace(0, math.pi, 33, dtype=torch.float64)
    cosines = torch.stack([torch.cos(n * theta) for n in range(orders)], -1)
    expected = zonal_harmonics(torch.cos(theta), orders)
    torch.testing.assert_close(cosines @ fourier_coefficients(orders, "smooth").T, expected, rtol=0, atol=1e-13)
    at_zero = fourier_coefficients(orders, "jmp")[:, -1]
    torch.testing.assert_close(at_zero, zonal_harmonics(torch.zeros((), dtype=torch.float64), orders))


def test_powers() -> None:
    z = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    values = powers(z.real, z.imag, 6)
    for n in range(6):
        torch.testing.assert_close(torch.complex(values[:, n, 0], values[:, n, 1]), z**n)


def test_frame_is_orthonormal_everywhere() -> None:
    axis = torch.cat(
        [units(100), torch.tensor([[0, 0, 1.0], [0, 0, -1.0], [1, 0, 0], [0, -1, 0]], dtype=torch.float64)]
    )
    first, second = perpendicular_frame(axis)
    basis = torch.stack([axis, first, second], 1)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3, dtype=torch.float64).expand(104, 3, 3))


def dihedral_terms(c: torch.Tensor, d: torch.Tensor, axis: torch.Tensor, rule: str) -> torch.Tensor:
    """Σ_n a[l,n] Re[z_c^n conj(z_d^n)] through the two sides of the interaction."""
    frame = perpendicular_frame(axis)
    read = azimuth_powers(c, *frame, 7, rule, reads=True)
    write = azimuth_powers(d, *frame, 7, rule, reads=False)
    return (read * write).sum(-1) @ fourier_coefficients(7, rule).T


def test_azimuths_give_the_published_dihedral() -> None:
    c, d, axis = units(60, 3), units(60, 4), units(60, 5)
    n1, n2 = torch.linalg.cross(c, axis), torch.linalg.cross(d, axis)
    theta = torch.atan2(torch.linalg.cross(n1, n2).norm(dim=-1).clamp(min=1e-9), (n1 * n2).sum(-1))
    expected = zonal_harmonics(torch.cos(theta), 7)
    torch.testing.assert_close(dihedral_terms(c, d, axis, "jmp"), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("which", ["c", "d", "both"])
def test_collinear_bonds_read_a_right_angle_in_the_published_rule(which: str) -> None:
    c, d, axis = units(10, 3), units(10, 4), units(10, 5)
    c = axis if which in ("c", "both") else c
    d = -axis if which in ("d", "both") else d
    expected = zonal_harmonics(torch.zeros(10, dtype=torch.float64), 7)
    torch.testing.assert_close(dihedral_terms(c, d, axis, "jmp"), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rule", "smooth"), [("smooth", True), ("jmp", False)])
def test_only_the_smooth_dihedral_is_smooth_through_collinearity(rule: str, smooth: bool) -> None:
    """A bond swings through the axis: the smooth rule's terms change in proportion to the step, the published ones jump."""
    axis = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    d = units(1, 7)

    def at(x: float) -> torch.Tensor:
        c = torch.tensor([[x, 0.3 * x, 1.0]], dtype=torch.float64)
        return dihedral_terms(c / c.norm(), d, axis, rule)

    steps = [float((at(h) - at(-h)).abs().max()) for h in (1e-2, 1e-3, 1e-4)]
    if smooth:
        assert steps[1] < 0.2 * steps[0]
        assert steps[2] < 0.2 * steps[1]
    else:
        assert steps[2] > 0.5 * steps[0] > 1e-3


@pytest.mark.parametrize("rule", ["smooth", "jmp"])
def test_azimuth_gradients_are_finite_on_the_axis(rule: str) -> None:
    axis = units(1)
    c = axis.clone().requires_grad_()
    dihedral_terms(c, units(1, 2), axis, rule).sum().backward()
    assert torch.isfinite(c.grad).all()


def test_envelope_and_gaussians_equal_the_recorded_ones() -> None:
    recorded = json.loads((Path(__file__).parent.parent / "golden" / "misc.json").read_text())
    d = torch.tensor(recorded["envelope_p5"]["d"], dtype=torch.float64)
    u = torch.tensor(recorded["envelope_p5"]["u"], dtype=torch.float64)
    torch.testing.assert_close(envelope(d), u, rtol=0, atol=1e-6)
    basis = RadialBasis(128)
    # the key says 0_37, the numbers are those at a scaled distance of 0.037
    at = basis(torch.tensor([0.037 * 12]), torch.tensor([1e9]))[0, :8]
    torch.testing.assert_close(at, torch.tensor(recorded["gaussian128"]["at_0_37_first8"]), rtol=1e-4, atol=1e-12)


def test_the_envelope_ends_at_the_given_length() -> None:
    basis = RadialBasis(16)
    length = torch.tensor([5.999, 6.0, 6.5])
    values = basis(length, torch.tensor([6.0, 6.0, 6.0]))
    assert values[0].abs().max() < 1e-5
    assert (values[1:] == 0).all()
