"""`jmp::triplet` against the sum over enumerated triplets in float64, with every gradient and every order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from checks import (
    TOLERANCE,
    assert_close,
    compare,
    poisoned,
    random_tensor,
    repeats,
    second_order,
    segments_with,
    traced,
)
from jmp_kernels import LookUp
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from jmp_kernels.triton_ops.triplet import triplet
from jmp_kernels.triton_ops.triplet_backward import composed_gradients, triplet_backward

NAMES = ("x", "y_in", "radial", "y_out")

#: Input rows and output edges per atom. None: one edge list, every edge its own twin.
GRAPHS: dict[str, tuple[list[int], list[int] | None]] = {
    "no atoms": ([], None),
    "no edges": ([0, 0], None),
    "one edge": ([1], None),
    "one list": ([3, 0, 2, 17], None),
    "tile borders": ([15, 16, 0, 17, 33], None),
    "two lists": ([4, 0, 5, 16], [7, 3, 0, 18]),
    "few": ([2, 0, 3], [3, 1, 2]),
    "nothing comes in": ([0, 0], [3, 1]),
    "nothing goes out": ([3, 1], [0, 0]),
}


@dataclass(frozen=True)
class Case:
    """Integer arguments, and the device on which the kernels run; everything else stays on the CPU."""

    first_in: Tensor
    first_out: Tensor
    twin: Tensor
    inverse: Tensor
    device: torch.device

    def operator(self, x: Tensor, y_in: Tensor, radial: Tensor, y_out: Tensor) -> Tensor:
        return triplet(*self.arguments(x, y_in, radial, y_out)).cpu()

    def arguments(self, x: Tensor, y_in: Tensor, radial: Tensor, y_out: Tensor) -> tuple[Tensor, ...]:
        """What `jmp::triplet` takes, on its device."""
        given = (x, y_in, self.first_in, radial, y_out, self.first_out, self.twin, self.inverse)
        return tuple(t.to(self.device) for t in given)

    def oracle(self, x: Tensor, y_in: Tensor, radial: Tensor, y_out: Tensor) -> Tensor:
        """One term per (output edge, input row of the same atom) but the twin: zonal harmonics, then the radial part."""
        orders = radial.shape[2]
        degrees = torch.tensor([2 * l + 1 for l in range(orders)])
        order = torch.repeat_interleave(torch.arange(orders), degrees)
        factor = (4 * torch.pi / degrees.double()).sqrt()
        atom = torch.repeat_interleave(torch.arange(self.first_in.shape[0] - 1), self.first_out.diff())
        shares = []
        for e, a in enumerate(atom.tolist()):
            rows = slice(int(self.first_in[a]), int(self.first_in[a + 1]))
            zonal = torch.zeros(rows.stop - rows.start, orders, dtype=torch.float64)
            zonal = zonal.index_add(1, order, y_in[rows] * y_out[e]) * factor
            share = radial[e] @ zonal.T @ x[rows]
            if self.twin[e] >= 0:
                share = share - (radial[e] / factor).sum(1)[:, None] * x[self.twin[e]]
            shares.append(share)
        empty = radial.new_zeros(0, radial.shape[1], x.shape[1]) + 0 * (
            x.sum() + y_in.sum() + radial.sum() + y_out.sum()
        )
        return torch.stack(shares) + empty.sum() if shares else empty


def case(name: str, device: torch.device) -> Case:
    sizes_in, sizes_out = GRAPHS[name]
    first_in = segments_with(sizes_in).first
    rows = int(first_in[-1])
    if sizes_out is None:
        twin = torch.arange(rows)
        return Case(first_in, first_in, twin, twin, device)
    first_out = segments_with(sizes_out).first
    # within every atom, output edge j + 1 and input row j are one edge, but for some
    twins = []
    for a, size in enumerate(sizes_out):
        for j in range(size):
            exists = 1 <= j <= sizes_in[a] and j % 3 != 2
            twins.append(int(first_in[a]) + j - 1 if exists else -1)
    twin = torch.tensor(twins, dtype=torch.int64)
    return Case(first_in, first_out, twin, LookUp(twin.clamp_min(0), twin >= 0, rows).inverse, device)


def inputs(given: Case, k: int, orders: int, c: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x in `dtype`; geometry in float32 at least."""
    rows, edges = given.inverse.shape[0], given.twin.shape[0]
    geometry = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        random_tensor(rows, c, seed=1, dtype=dtype),
        random_tensor(rows, orders**2, seed=2, dtype=geometry),
        random_tensor(edges, k, orders, seed=3, dtype=geometry),
        random_tensor(edges, orders**2, seed=4, dtype=geometry),
    ]


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph(name: str, device: torch.device) -> None:
    given = case(name, device)
    compare(given.operator, given.oracle, inputs(given, 8, 4, 16, torch.float32), 2e-6, NAMES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("k", "orders", "c"), [(16, 7, 64), (16, 4, 16), (8, 7, 5), (3, 2, 33), (1, 1, 1)])
def test_sizes_and_dtypes(dtype: torch.dtype, k: int, orders: int, c: int, device: torch.device) -> None:
    given = case("two lists", device)
    compare(given.operator, given.oracle, inputs(given, k, orders, c, dtype), TOLERANCE[dtype], NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_several_blocks_of_channels(dtype: torch.dtype, device: torch.device) -> None:
    given = case("one list", device)
    compare(given.operator, given.oracle, inputs(given, 8, 4, 70, dtype), TOLERANCE[dtype], NAMES)


def test_long_atom(device: torch.device) -> None:
    first = segments_with([1000, 0]).first
    twin = torch.arange(1000)
    given = Case(first, first, twin, twin, device)
    tensors = inputs(given, 2, 2, 8, torch.float32)
    compare(given.operator, given.oracle, tensors, 2e-6, NAMES)


def test_second_order(device: torch.device) -> None:
    given = case("few", device)
    second_order(given.operator, inputs(given, 2, 2, 3))


@pytest.mark.parametrize("name", ["no edges", "one edge", "two lists", "nothing comes in", "nothing goes out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_composition_gives_the_fused_gradients(name: str, dtype: torch.dtype, device: torch.device) -> None:
    given = case(name, device)
    arguments = given.arguments(*inputs(given, 8, 4, 20, dtype))
    grad = random_tensor(given.twin.shape[0], 8, 20, seed=5, dtype=dtype).to(device)
    with poisoned():
        fused = triplet_backward(grad, *arguments, True)
        composed = composed_gradients(grad, *arguments[:-1])
    for name_, a, b in zip(NAMES, composed, fused, strict=True):
        assert a.dtype == b.dtype
        assert_close(name_, a, b, TOLERANCE[dtype])


def test_second_order_of_half_precision_features(device: torch.device) -> None:
    given = case("two lists", device)
    x, y_in, radial, y_out = (t.requires_grad_() for t in inputs(given, 8, 4, 16, torch.float16))
    exact = [t.detach().double().requires_grad_() for t in (x, y_in, radial, y_out)]
    results = []
    for operator, tensors in ((given.operator, (x, y_in, radial, y_out)), (given.oracle, exact)):
        out = operator(*tensors)
        towards = random_tensor(*out.shape, seed=6).to(out.dtype)
        (force,) = torch.autograd.grad(out, tensors[3], towards, create_graph=True)
        results.append(torch.autograd.grad(1e-4 * force.square().sum(), (tensors[0], tensors[2])))
    for name, a, b in zip(("x", "radial"), *results, strict=True):
        assert_close(name, a, b, TOLERANCE[torch.float16])


def test_harmonics_without_gradient(device: torch.device) -> None:
    given = case("two lists", device)
    x, y_in, radial, y_out = inputs(given, 8, 4, 16, torch.float32)
    grad = random_tensor(given.twin.shape[0], 8, 16, seed=5, dtype=torch.float32)
    dx, _, dradial, _ = triplet_backward(grad.to(device), *given.arguments(x, y_in, radial, y_out), True)
    leaves = x.requires_grad_(), radial.requires_grad_()
    some = torch.autograd.grad(given.operator(x, y_in, radial, y_out), leaves, grad)
    assert_close("x", some[0], dx.cpu())
    assert_close("radial", some[1], dradial.cpu())


def test_operator_contract(device: torch.device) -> None:
    given = case("two lists", device)
    arguments = given.arguments(*inputs(given, 2, 2, 3, torch.float32))
    grad = random_tensor(given.twin.shape[0], 2, 3, dtype=torch.float32).to(device)
    for harmonics in (True, False):
        torch.library.opcheck(torch.ops.jmp.triplet_backward, (grad, *arguments, harmonics))
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in arguments]
    torch.library.opcheck(torch.ops.jmp.triplet, tuple(leaves))


def test_traced(device: torch.device) -> None:
    given = case("two lists", device)
    traced(given.operator, inputs(given, 4, 2, 5, torch.float32))


def test_repeats(device: torch.device) -> None:
    given = case("tile borders", device)
    repeats(given.operator, inputs(given, 8, 4, 16, torch.float32))


def test_sizes_must_fit(device: torch.device) -> None:
    given = case("two lists", device)
    x, y_in, radial, y_out = inputs(given, 2, 3, 4, torch.float32)
    with pytest.raises(ValueError, match=r"triplet: with 3 orders, harmonics are \[25, 9\] and \[28, 9\]"):
        given.operator(x, y_in[:, :4], radial, y_out)
    arguments = given.arguments(x, y_in, radial, y_out)
    with pytest.raises(ValueError, match="one twin per edge"):
        triplet(*arguments[:6], arguments[6][:-1], arguments[7])
