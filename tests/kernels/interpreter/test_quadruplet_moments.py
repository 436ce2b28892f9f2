"""Quadruplet moments in Triton against their definition in float64: outputs, all gradients, second order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checks import TOLERANCE, compare, poisoned, relative_rms, repeats, second_order, traced
from jmp_kernels.triton_ops.quadruplet_moments import quadruplet_moments
from quadruplet_cases import Case, Sizes, case, same_when_recorded
from torch import Tensor

FLOATS = [torch.float64, torch.float32, torch.float16]
NAMES = ["x", "gate", "weight", "write"]
SMALL = Sizes(in_sizes=[3, 0, 2], out_sizes=[], edges=4, azimuths=4, channels=5, gate=3)
SHAPES = {
    "no middle bond": Sizes([], [], edges=3),
    "no in-triplet": Sizes([0, 0], [], edges=3),
    "one in-triplet": Sizes([1], [], edges=1),
    "degrees at the borders of a tile": Sizes([0, 15, 16, 17, 33, 1], [], edges=40),
    "a thousand": Sizes([2, 1000], [], edges=30),
    "one channel": Sizes([3, 4], [], channels=1, gate=1, azimuths=1),
    "odd channels, more than a block": Sizes([18, 4], [], channels=67, gate=17, azimuths=9),
    "tiny": Sizes([6, 5, 7], [], channels=8, azimuths=4, gate=8),
    "large": Sizes([6, 17], [], channels=64, azimuths=7, gate=16, edges=9),
}


def operator(c: Case) -> Callable[..., Tensor]:
    return lambda *inputs: quadruplet_moments(*inputs, *c.moment_lists)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_output_and_gradients(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    c = case(sizes, dtype, device)
    compare(operator(c), c.moments, c.for_moments, TOLERANCE[dtype], NAMES)


def test_against_loops(device: torch.device) -> None:
    c = case(SMALL, torch.float64, device)
    x, gate, weight, write = c.for_moments
    expected = torch.zeros(3, 8, 5, dtype=torch.float64, device=device)
    for r, middle in enumerate(c.by_middle.index.tolist()):
        for i in range(5):
            y = x[c.in_edge[r], i] * sum(gate[r, g] * weight[i, g] for g in range(3))
            for p in range(8):
                expected[middle, p, i] += write[r, p] * y
    torch.testing.assert_close(quadruplet_moments(*c.for_moments, *c.moment_lists), expected)


def test_second_order(device: torch.device) -> None:
    c = case(SMALL, torch.float64, device)
    second_order(operator(c), c.for_moments)


def test_recorded_gradients_are_the_fused_ones(device: torch.device) -> None:
    """The composition that takes over where gradients are recorded gives what the fused kernels give."""
    c = case(SHAPES["large"], torch.float64, device)
    same_when_recorded(operator(c), c.for_moments, NAMES)


def test_tables_without_gradient(device: torch.device) -> None:
    """Where only features and weights have gradients, these are the same bits and the table has none."""
    c = case(SMALL, torch.float32, device)
    every = [t.requires_grad_() for t in c.for_moments]
    some = [*(t.detach().clone().requires_grad_() for t in every[:3]), every[3].detach()]
    expected = torch.autograd.grad(quadruplet_moments(*every, *c.moment_lists).square().sum(), every)[:3]
    with poisoned():
        result = torch.autograd.grad(quadruplet_moments(*some, *c.moment_lists).square().sum(), some[:3])
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_half_features_with_float32_tables(device: torch.device) -> None:
    """Moments are float32 whatever the features are; gradients come in the dtype of what they belong to."""
    c = case(SHAPES["tiny"], torch.float32, device)
    x, *tables = (t.requires_grad_() for t in c.for_moments)
    low = x.detach().half().requires_grad_()
    output = quadruplet_moments(low, *tables, *c.moment_lists)
    assert output.dtype == torch.float32
    assert relative_rms(output, c.moments(x, *tables)) < (2e-6 if device.type == "cpu" else 1e-3)
    gradients = torch.autograd.grad(output.sum(), [low, *tables])
    assert [g.dtype for g in gradients] == [torch.float16, *[torch.float32] * 3]


def test_bit_identical_repeats(device: torch.device) -> None:
    c = case(SHAPES["degrees at the borders of a tile"], torch.float32, device)
    repeats(operator(c), c.for_moments)


def test_contracts_of_an_operator(device: torch.device) -> None:
    """Schema, fake form, derivative and dynamic shapes, as PyTorch checks them."""
    c = case(SMALL, torch.float32, device)
    leaves: list[Tensor] = [t.requires_grad_() for t in c.for_moments]
    torch.library.opcheck(torch.ops.jmp.quadruplet_moments.default, (*leaves, *c.moment_lists))
    plain = [t.detach() for t in leaves]
    grad = quadruplet_moments(*plain, *c.moment_lists)
    for tables in (True, False):
        arguments = (grad, *plain, *c.moment_lists, tables)
        torch.library.opcheck(torch.ops.jmp.quadruplet_moments_backward.default, arguments)


def test_in_one_graph(device: torch.device) -> None:
    c = case(SMALL, torch.float32, device)
    traced(operator(c), c.for_moments)


def test_wrong_shapes_are_refused(device: torch.device) -> None:
    c = case(SMALL, torch.float32, device)
    x, gate, weight, write = c.for_moments
    with pytest.raises(ValueError, match="gate weight"):
        quadruplet_moments(x, gate, weight.T.contiguous(), write, *c.moment_lists)
    with pytest.raises(ValueError, match="in-triplets"):
        quadruplet_moments(x, gate[:-1], weight, write[:-1], *c.moment_lists)
