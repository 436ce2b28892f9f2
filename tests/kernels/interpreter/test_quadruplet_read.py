"""The quadruplet read-out in Triton against its definition in float64: outputs, all gradients, second order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from checks import TOLERANCE, compare, poisoned, relative_rms, repeats, second_order, traced
from jmp_kernels import segment_outer
from jmp_kernels.triton_ops.quadruplet_read import quadruplet_read
from quadruplet_cases import Case, Sizes, case, same_when_recorded
from torch import Tensor

FLOATS = [torch.float64, torch.float32, torch.float16]
NAMES = ["moments", "zonal", "read", "share", "radial", "x", "gate", "weight"]
SMALL = Sizes(in_sizes=[3, 0, 2], out_sizes=[2, 0, 3], edges=4, orders=3, azimuths=3, channels=5, basis=2, gate=3)
SHAPES = {
    "no edge": Sizes([2], []),
    "no out-pair": Sizes([2, 1], [0, 0]),
    "no in-triplet": Sizes([0, 0], [3, 1]),
    "no middle bond": Sizes([], [0, 0]),
    "one of each": Sizes([1], [1], edges=1),
    "tile borders": Sizes([5, 9, 20], [0, 15, 16, 17, 1], edges=9, channels=16, basis=16),
    "one channel": Sizes([3, 4], [2, 3], orders=1, azimuths=1, channels=1, basis=1, gate=1),
    "odd widths, channels beyond a block": Sizes([6, 4], [4, 0, 2], azimuths=9, channels=67, basis=17, gate=17),
    "tiny": Sizes([6, 5, 7], [3, 8], channels=8, orders=4, azimuths=4, basis=8, gate=8),
    "tiny, degenerate channel": Sizes([6, 5], [3, 4], channels=8, orders=4, azimuths=5, basis=8, gate=8),
    "large": Sizes([6, 17], [8, 6], channels=64, azimuths=7, basis=64, gate=16, edges=9),
}
LONG = Sizes([9, 7], [2, 1000], edges=5, orders=4, azimuths=4, channels=8, basis=8, gate=8)


def operator(c: Case) -> Callable[..., Tensor]:
    return lambda *inputs: quadruplet_read(*inputs, *c.read_lists)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_output_and_gradients(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    c = case(sizes, dtype, device)
    compare(operator(c), c.read, c.for_read, TOLERANCE[dtype], NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_thousand_out_pairs(dtype: torch.dtype, device: torch.device) -> None:
    c = case(LONG, dtype, device)
    compare(operator(c), c.read, c.for_read, TOLERANCE[dtype], NAMES)


@pytest.mark.parametrize("found", [False, True], ids=["never", "always the same one"])
def test_the_excluded_in_triplet(found: bool, device: torch.device) -> None:
    """No out-pair has a d = c, or all share one, whose gradient then is a sum."""
    c = case(SHAPES["tiny"], torch.float32, device)
    c = replace(c, same=torch.full_like(c.same, 4 if found else -1))
    compare(operator(c), c.read, c.for_read, TOLERANCE[torch.float32], NAMES)


def test_against_loops(device: torch.device) -> None:
    c = case(SMALL, torch.float64, device)
    moments, zonal, read, share, radial, x, gate, weight = c.for_read
    expected = torch.zeros(3, 2, 5, dtype=torch.float64, device=device)
    for r, edge in enumerate(c.by_edge.index.tolist()):
        middle, same = int(c.out_middle[r]), int(c.same[r])
        for i in range(5):
            y = x[c.in_edge[same], i] * (gate[same] @ weight[i]) if same >= 0 else 0.0
            for h in range(3):
                t = read[r, 2 * h] * moments[middle, 2 * h, i] + read[r, 2 * h + 1] * moments[middle, 2 * h + 1, i]
                t = t - share[r, h] * y
                for k in range(2):
                    for l in range(3):
                        expected[edge, k, i] += radial[edge, k, l * 3 + h] * zonal[r, l] * t
    torch.testing.assert_close(quadruplet_read(*c.for_read, *c.read_lists), expected)


def test_against_the_family(device: torch.device) -> None:
    """The form that the PyTorch path computes: moments and sums as padded products."""
    c = case(SHAPES["large"], torch.float32, torch.device("cpu"))
    moments, zonal, read, share, radial, x, gate, weight = (t.double() for t in c.for_read)
    rows, azimuths = share.shape
    real, imaginary = moments.view(-1, azimuths, 2, 64).index_select(0, c.out_middle).unbind(2)
    powers = read.view(rows, azimuths, 2)
    y = (x.index_select(0, c.in_edge) * (gate @ weight.T)).index_select(0, c.same.clamp_min(0))
    own = share * (c.same >= 0)[:, None]
    t = powers[:, :, :1] * real + powers[:, :, 1:] * imaginary - own[..., None] * y[:, None]
    sums = segment_outer(zonal, t.flatten(1), c.by_edge)
    expected = torch.bmm(radial, sums.view(sums.shape[0], radial.shape[2], 64))
    result = quadruplet_read(*(t.to(device) for t in c.for_read), *(t.to(device) for t in c.read_lists))
    assert relative_rms(result.cpu(), expected) < TOLERANCE[torch.float32]


def test_edges_without_out_pairs_can_be_left_out(device: torch.device) -> None:
    """Segments that have none give zeros; without them, the others give the same bits."""
    c = case(SHAPES["tile borders"], torch.float32, device)
    has_some = torch.tensor([size > 0 for size in c.sizes.out_sizes], device=device)
    inputs, (by_edge, *lists) = c.for_read, c.read_lists
    with poisoned():
        full = quadruplet_read(*inputs, by_edge, *lists)
    assert not full[~has_some].any()
    inputs[4] = inputs[4][has_some]
    active = torch.cat([by_edge[:1], by_edge[1:][has_some]])
    assert torch.equal(quadruplet_read(*inputs, active, *lists), full[has_some])


def test_second_order(device: torch.device) -> None:
    c = case(SMALL, torch.float64, device)
    second_order(operator(c), c.for_read)


def test_recorded_gradients_are_the_fused_ones(device: torch.device) -> None:
    """The composition that takes over where gradients are recorded gives what the fused kernels give."""
    c = case(SHAPES["large"], torch.float64, device)
    same_when_recorded(operator(c), c.for_read, NAMES)


def test_tables_without_gradient(device: torch.device) -> None:
    """Where only features and weights have gradients, these are the same bits and the tables have none."""
    c = case(SMALL, torch.float32, device)
    every = [t.requires_grad_() for t in c.for_read]
    some = [t.detach().clone().requires_grad_(i not in (1, 2, 3)) for i, t in enumerate(every)]
    wanted = [i for i in range(8) if i not in (1, 2, 3)]
    expected = torch.autograd.grad(quadruplet_read(*every, *c.read_lists).square().sum(), every)
    with poisoned():
        output = quadruplet_read(*some, *c.read_lists)
        result = torch.autograd.grad(output.square().sum(), [some[i] for i in wanted])
    assert all(torch.equal(a, expected[i]) for i, a in zip(wanted, result, strict=True))


def test_half_features_with_float32_tables(device: torch.device) -> None:
    """The output comes in the dtype of the features, gradients in the dtype of what they belong to."""
    c = case(SHAPES["tiny"], torch.float32, device)
    inputs = [t.requires_grad_() for t in c.for_read]
    low = [t.detach().half().requires_grad_() if i == 5 else t for i, t in enumerate(inputs)]
    output = quadruplet_read(*low, *c.read_lists)
    assert output.dtype == torch.float16
    assert relative_rms(output, c.read(*inputs)) < TOLERANCE[torch.float16]
    gradients = torch.autograd.grad(output.sum(), low)
    assert [g.dtype for g in gradients] == [t.dtype for t in low]


def test_bit_identical_repeats(device: torch.device) -> None:
    c = case(SHAPES["tiny"], torch.float32, device)
    repeats(operator(c), c.for_read)


def test_contracts_of_an_operator(device: torch.device) -> None:
    """Schema, fake form, derivative and dynamic shapes, as PyTorch checks them."""
    c = case(SMALL, torch.float32, device)
    leaves: list[Tensor] = [t.requires_grad_() for t in c.for_read]
    torch.library.opcheck(torch.ops.jmp.quadruplet_read.default, (*leaves, *c.read_lists))
    plain = [t.detach() for t in leaves]
    grad = quadruplet_read(*plain, *c.read_lists)
    for tables in (True, False):
        arguments = (grad, *plain, *c.read_lists, tables)
        torch.library.opcheck(torch.ops.jmp.quadruplet_read_backward.default, arguments)


def test_in_one_graph(device: torch.device) -> None:
    c = case(SMALL, torch.float32, device)
    traced(operator(c), c.for_read)


@pytest.mark.parametrize(("at", "message"), [(1, "do not fit"), (2, "do not fit"), (4, "radial"), (7, "gate weight")])
def test_wrong_shapes_are_refused(at: int, message: str, device: torch.device) -> None:
    c = case(SMALL, torch.float32, device)
    inputs = c.for_read
    inputs[at] = inputs[at][:-1]
    with pytest.raises(ValueError, match=message):
        quadruplet_read(*inputs, *c.read_lists)
