"""The trilinear family against plain loops, with its derivatives of first and second order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jmp_kernels import Segments, expand_basis, expand_feature, segment_outer, segment_sum, segments_of
from torch import Tensor

SIZES = [[], [0], [0, 0, 0], [1], [3, 0, 2], [0, 5, 0, 0, 1], [16, 17, 1], [33, 0]]


def segments_with(sizes: list[int]) -> Segments:
    return segments_of(
        torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64)), len(sizes)
    )


def tensors(segments: Segments, p: int, c: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    rows = segments.num_rows
    u = torch.randn(rows, p, generator=g, dtype=torch.float64)
    x = torch.randn(rows, c, generator=g, dtype=torch.float64)
    return u, x, torch.randn(segments.count, p, c, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("p", "c"), [(1, 1), (4, 3), (49, 7)])
def test_against_loops(sizes: list[int], p: int, c: int) -> None:
    segments = segments_with(sizes)
    u, x, outer = tensors(segments, p, c)
    expected_outer = torch.zeros(len(sizes), p, c, dtype=torch.float64)
    expected_sum = torch.zeros(len(sizes), c, dtype=torch.float64)
    expected_x, expected_u = torch.zeros_like(x), torch.zeros_like(u)
    for r, s in enumerate(segments.index.tolist()):
        expected_outer[s] += torch.outer(u[r], x[r])
        expected_sum[s] += x[r]
        expected_x[r] = u[r] @ outer[s]
        expected_u[r] = outer[s] @ x[r]
    torch.testing.assert_close(segment_outer(u, x, segments), expected_outer)
    torch.testing.assert_close(segment_sum(x, segments), expected_sum)
    torch.testing.assert_close(expand_feature(u, outer, segments), expected_x)
    torch.testing.assert_close(expand_basis(x, outer, segments), expected_u)


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), k=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_several_bases_per_row_are_several_calls(sizes: list[int], k: int, seed: int) -> None:
    segments = segments_with(sizes)
    u, _, outer = tensors(segments, 4, 3, seed)
    several = torch.stack([u * (i + 1) for i in range(k)], dim=1)
    expected = torch.stack([expand_feature(u * (i + 1), outer, segments) for i in range(k)], dim=1)
    torch.testing.assert_close(expand_feature(several, outer, segments), expected)


@pytest.mark.parametrize("sizes", [[3, 0, 2], [1], [0, 4]])
def test_first_and_second_derivatives(sizes: list[int]) -> None:
    segments = segments_with(sizes)
    u, x, outer = (t.requires_grad_() for t in tensors(segments, 3, 2))
    for function, inputs in (
        (lambda a, b: segment_outer(a, b, segments), (u, x)),
        (lambda a, b: expand_feature(a, b, segments), (u, outer)),
        (lambda a, b: expand_basis(a, b, segments), (x, outer)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_the_family_is_one_form() -> None:
    """The derivatives of T(u, x, O) with respect to its arguments are the three members."""
    segments = segments_with([3, 0, 5, 1])
    u, x, outer = (t.requires_grad_() for t in tensors(segments, 4, 3))
    form = (segment_outer(u, x, segments) * outer).sum()
    by_u, by_x, by_outer = torch.autograd.grad(form, (u, x, outer))
    torch.testing.assert_close(by_u, expand_basis(x, outer, segments))
    torch.testing.assert_close(by_x, expand_feature(u, outer, segments))
    torch.testing.assert_close(by_outer, segment_outer(u, x, segments))


def test_wrong_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="sorted"):
        segments_of(torch.tensor([1, 0]), 2)
    with pytest.raises(ValueError, match=r"0 … 1"):
        segments_of(torch.tensor([0, 2]), 2)
