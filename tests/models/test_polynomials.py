"""Families of polynomials against their definitions and their own derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial import Legendre

from jmp_ds.models.polynomials import legendre, powers


def test_legendre_derivatives_are_those_of_numpy() -> None:
    z = torch.linspace(-1, 1, 41, dtype=torch.float64)
    scales = [[1.0 + l + 10 * m for l in range(7)] for m in range(3)]
    values = legendre(z, scales)
    assert values.shape == (41, 3, 7)
    for m in range(3):
        for l in range(7):
            series = Legendre.basis(l)
            expected = scales[m][l] * (series.deriv(m) if m else series)(z.numpy())
            np.testing.assert_allclose(values[:, m, l].numpy(), expected, rtol=1e-13, atol=1e-11)


@pytest.mark.parametrize("orders", [1, 2, 4, 7])
def test_legendre_differentiates_twice(orders: int) -> None:
    z = torch.tensor([-1.0, -0.3, 0.0, 0.8, 1.0], dtype=torch.float64, requires_grad=True)
    scales = [[1.0 + 0.1 * l] * orders for l in range(2)]
    assert torch.autograd.gradcheck(lambda z: legendre(z, scales), z)
    assert torch.autograd.gradgradcheck(lambda z: legendre(z, scales), z)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_powers_differentiate_twice(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 4, generator=generator, dtype=torch.float64).unbind()
    x[0] = y[0] = 0.0  # the origin: an azimuth that is not defined
    inputs = (x.requires_grad_(), y.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: powers(x, y, count), inputs)
    assert torch.autograd.gradgradcheck(lambda x, y: powers(x, y, count), inputs)
