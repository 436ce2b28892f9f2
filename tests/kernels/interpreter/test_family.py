"""The trilinear family in Triton against float64 loops and the PyTorch twins, with derivatives of every order."""

from __future__ import annotations

import jmp_kernels
import pytest
import torch
from checks import SIZES, TOLERANCE, compare, random_tensor, repeats, second_order, segments_with, traced
from jmp_kernels.triton_ops import family
from jmp_kernels.triton_ops.family import expand_basis, expand_feature, segment_outer
from torch import Tensor

FLOATS = [torch.float64, torch.float32, torch.float16]


def outer_oracle(index: Tensor, count: int) -> object:
    """Row by row: O[seg(r)] += u[r] ⊗ x[r]."""

    def oracle(u: Tensor, x: Tensor) -> Tensor:
        products = torch.einsum("rkp,rkc->rpc", u, x) if u.dim() == 3 else torch.einsum("rp,rc->rpc", u, x)
        return u.new_zeros(count, u.shape[-1], x.shape[-1]).index_add(0, index, products)

    return oracle


def feature_oracle(index: Tensor) -> object:
    return lambda u, outer: torch.einsum("r...p,rpc->r...c", u, outer[index])


def basis_oracle(index: Tensor) -> object:
    return lambda x, outer: torch.einsum("r...c,rpc->r...p", x, outer[index])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sizes", SIZES)
def test_against_loops(sizes: list[int], dtype: torch.dtype, device: torch.device) -> None:
    """Each member, output and gradients, from poisoned memory; odd channels, L = 4."""
    segments = segments_with(sizes)
    first, index, count = segments.first.to(device), segments.index.to(device), segments.count
    u = random_tensor(segments.num_rows, 16, dtype=dtype).to(device)
    x = random_tensor(segments.num_rows, 5, seed=1, dtype=dtype).to(device)
    outer = random_tensor(count, 16, 5, seed=2, dtype=dtype).to(device)
    limit = TOLERANCE[dtype]
    compare(lambda a, b: segment_outer(a, b, first), outer_oracle(index, count), [u, x], limit, ["u", "x"])
    compare(lambda a, b: expand_feature(a, b, first), feature_oracle(index), [u, outer], limit, ["u", "O"])
    compare(lambda a, b: expand_basis(a, b, first), basis_oracle(index), [x, outer], limit, ["x", "O"])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("k", "p", "c"), [(3, 49, 17), (1, 70, 1), (16, 1, 130)])
def test_several_bases_per_row_and_several_blocks(
    k: int, p: int, c: int, dtype: torch.dtype, device: torch.device
) -> None:
    """u [R,K,P] with sides below, at and beyond a block; against loops."""
    segments = segments_with([4, 0, 7])
    first, index = segments.first.to(device), segments.index.to(device)
    u = random_tensor(11, k, p, dtype=dtype).to(device)
    x = random_tensor(11, k, c, seed=1, dtype=dtype).to(device)
    outer = random_tensor(3, p, c, seed=2, dtype=dtype).to(device)
    limit = TOLERANCE[dtype]
    compare(lambda a, b: segment_outer(a, b, first), outer_oracle(index, 3), [u, x], limit, ["u", "x"])
    compare(lambda a, b: expand_feature(a, b, first), feature_oracle(index), [u, outer], limit, ["u", "O"])
    compare(lambda a, b: expand_basis(a, b, first), basis_oracle(index), [x, outer], limit, ["x", "O"])


def test_against_the_twins(device: torch.device) -> None:
    segments = segments_with([15, 16, 0, 17, 1])
    first = segments.first.to(device)
    u, x = random_tensor(49, 16, dtype=torch.float32), random_tensor(49, 8, seed=1, dtype=torch.float32)
    outer = random_tensor(5, 16, 8, seed=2, dtype=torch.float32)
    a, b, o = u.to(device), x.to(device), outer.to(device)
    for mine, twin in (
        (segment_outer(a, b, first), jmp_kernels.segment_outer(u, x, segments)),
        (expand_feature(a, o, first), jmp_kernels.expand_feature(u, outer, segments)),
        (expand_basis(b, o, first), jmp_kernels.expand_basis(x, outer, segments)),
    ):
        torch.testing.assert_close(mine.cpu(), twin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_sixteen_bit_features_keep_float32_moments(low: torch.dtype, device: torch.device) -> None:
    """Geometry float32, features 16 bits: moments come in float32, gradients in the dtype of what they belong to."""
    segments = segments_with([3, 20])
    first, index = segments.first.to(device), segments.index.to(device)
    u = random_tensor(23, 16, dtype=torch.float32).to(device)
    x = random_tensor(23, 8, seed=1).to(low).to(device)
    outer = segment_outer(u, x, first)
    assert outer.dtype == torch.float32
    assert expand_feature(u, outer, first, low).dtype == low
    # the products are exact in float32 and the inputs are the same numbers, so only tf32 on a GPU needs more room
    limit = TOLERANCE[torch.float32] if device.type == "cpu" else TOLERANCE[torch.float16]
    expected = outer_oracle(index, 2)(u.double(), x.double())
    assert (outer.double() - expected).norm() <= limit * expected.norm()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(segment_outer(u, leaf, first).sum(), leaf)
    assert gradient.dtype == low


def test_sharing_out_long_segments_changes_nothing(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Few long segments in several programs each, some without rows, against one program each."""
    segments = segments_with([3, 0, 700])
    first = segments.first.to(device)
    u, x = random_tensor(703, 4).to(device), random_tensor(703, 3, seed=1).to(device)
    assert family.shares_of(703, 3, 1, 128) > 1
    shared = segment_outer(u, x, first), expand_basis(x, segment_outer(u, x, first), first)
    monkeypatch.setattr(family, "shares_of", lambda *sizes: 1)
    alone = segment_outer(u, x, first), expand_basis(x, segment_outer(u, x, first), first)
    torch.testing.assert_close(shared, alone, rtol=1e-12, atol=1e-10)


CASES = {
    "segment_outer": (lambda first: lambda a, b: segment_outer(a, b, first), (5, 4), (5, 3)),
    "segment_outer/K": (lambda first: lambda a, b: segment_outer(a, b, first), (5, 2, 4), (5, 2, 3)),
    "expand_feature": (lambda first: lambda a, b: expand_feature(a, b, first), (5, 2, 4), (3, 4, 3)),
    "expand_basis": (lambda first: lambda a, b: expand_basis(a, b, first), (5, 3), (3, 4, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, device: torch.device) -> None:
    make, a, b = CASES[name]
    operator = make(segments_with([3, 0, 2]).first.to(device))
    second_order(operator, [random_tensor(*a).to(device), random_tensor(*b, seed=1).to(device)])


@pytest.mark.parametrize("name", CASES)
def test_traced_and_repeated(name: str, device: torch.device) -> None:
    make, a, b = CASES[name]
    operator = make(segments_with([3, 0, 2]).first.to(device))
    inputs = [
        random_tensor(*a, dtype=torch.float32).to(device),
        random_tensor(*b, seed=1, dtype=torch.float32).to(device),
    ]
    traced(operator, inputs)
    repeats(operator, inputs)


def test_third_derivative(device: torch.device) -> None:
    """The family is closed: a third derivative exists and is the one of the loops."""
    segments = segments_with([3, 0, 2])
    first, index = segments.first.to(device), segments.index.to(device)

    def third(form: object, u: Tensor, x: Tensor) -> Tensor:
        u, x = u.clone().requires_grad_(), x.clone().requires_grad_()
        value = form(u, x).pow(3).sum()
        for leaf in (u, x, u):
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
            value = gradient.square().sum()
        return value

    u, x = random_tensor(5, 4).to(device), random_tensor(5, 3, seed=1).to(device)
    mine = third(lambda a, b: segment_outer(a, b, first), u, x)
    torch.testing.assert_close(mine, third(outer_oracle(index, 3), u, x), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["segment_outer", "expand_feature", "expand_basis"])
def test_opcheck(name: str, device: torch.device) -> None:
    first = segments_with([3, 0, 2]).first.to(device)
    _, a, b = CASES[name]
    for dtype in (None, torch.float64):
        inputs = (
            random_tensor(*a, dtype=torch.float32, grad=True).to(device),
            random_tensor(*b, seed=1, dtype=torch.float32, grad=True).to(device),
            first,
            dtype,
        )
        torch.library.opcheck(getattr(torch.ops.jmp, name).default, inputs)


def test_wrong_shapes_are_refused(device: torch.device) -> None:
    first = segments_with([3, 0, 2]).first.to(device)
    u, x = random_tensor(5, 4).to(device), random_tensor(4, 3).to(device)
    with pytest.raises(ValueError, match="do not fit together"):
        segment_outer(u, x, first)
    with pytest.raises(ValueError, match="do not fit together"):
        expand_feature(u, random_tensor(2, 4, 3).to(device), first)
