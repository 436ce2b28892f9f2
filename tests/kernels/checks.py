"""What the kernel tests share: distances, poisoned memory, random segments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from jmp_kernels import Segments, segments_of
from torch import Tensor

#: Largest relative RMS deviation from float64 that is allowed.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

#: Segment sizes that bite: nothing, one row, tile borders, long ones.
SIZES: list[list[int]] = [[], [0], [0, 0, 0], [1], [3, 0, 2], [15, 16, 0, 17, 1], [33, 0, 1000]]


def relative_rms(result: Tensor, expected: Tensor) -> float:
    """√(Σ(result − expected)² / Σ expected²), in float64; the plain RMS where all of expected is zero.

    NaN or infinity in `result` gives NaN or infinity, which no bound admits.
    """
    if result.shape != expected.shape:
        raise AssertionError(f"shape {tuple(result.shape)} instead of {tuple(expected.shape)}")
    if expected.numel() == 0:
        return 0.0
    a, b = result.detach().double(), expected.detach().double()
    scale = b.square().mean().sqrt()
    return float((a - b).square().mean().sqrt() / (scale if scale > 0 else 1.0))


def assert_close(name: str, result: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Relative RMS within the tolerance of the result's dtype."""
    limit = TOLERANCE[result.dtype] if tolerance is None else tolerance
    found = relative_rms(result, expected)
    assert found <= limit, f"{name}: relative RMS {found:.2e} > {limit:.0e}"


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that torch.empty, empty_like and new_empty hand out is full of NaN (floating dtypes).

    What a kernel forgets to write then shows.
    """

    def filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def function(*arguments: Any, **keywords: Any) -> Tensor:
            tensor = allocate(*arguments, **keywords)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return function

    with (
        mock.patch.object(torch, "empty", filled(torch.empty)),
        mock.patch.object(torch, "empty_like", filled(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", filled(Tensor.new_empty)),
    ):
        yield


def segments_with(sizes: Sequence[int]) -> Segments:
    """Segments of the given sizes."""
    index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
    return segments_of(index, len(sizes))


def transposed(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows by what they point at: (order [rows with index ≥ 0], first [count + 1]), as the gather operators take."""
    order = torch.argsort(index, stable=True)
    order = order[index[order] >= 0]
    size = torch.bincount(index[index >= 0], minlength=count)
    return order, torch.cat([size.new_zeros(1), torch.cumsum(size, 0)])


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    """Normal random numbers that float16 holds exactly, so that all dtypes see the same values."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator).half().to(dtype)
    return values.requires_grad_() if grad else values


def compare(
    operator: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    tolerance: float,
    names: Sequence[str],
) -> None:
    """Output and every gradient of `operator` against those of `oracle` in float64, from poisoned memory."""
    mine = [t.detach().clone().requires_grad_() for t in inputs]
    theirs = [t.detach().double().requires_grad_() for t in inputs]
    with poisoned():
        result = operator(*mine)
    expected = oracle(*theirs)
    assert_close("output", result, expected, tolerance)
    towards = random_tensor(*expected.shape, seed=77)
    with poisoned():
        gradients = torch.autograd.grad(result, mine, towards.to(result.dtype))
    wanted = torch.autograd.grad(expected, theirs, towards)
    for name, gradient, reference, given in zip(names, gradients, wanted, mine, strict=True):
        assert gradient.dtype == given.dtype, f"gradient of {name} is {gradient.dtype}"
        assert_close(f"gradient of {name}", gradient, reference, tolerance)


def second_order(operator: Callable[..., Tensor], inputs: Sequence[Tensor], fast: bool = True) -> None:
    """gradcheck and gradgradcheck in float64."""
    leaves = [t.detach().double().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(operator, leaves, fast_mode=fast)
    assert torch.autograd.gradgradcheck(operator, leaves, fast_mode=fast)


def traced(operator: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """The operator in one graph with symbolic sizes (no fallback) gives what it gives outside, gradients included."""
    compiled = torch.compile(operator, fullgraph=True, dynamic=True, backend="aot_eager")
    plain = [t.detach().clone().requires_grad_() for t in inputs]
    once = [t.detach().clone().requires_grad_() for t in inputs]
    expected, result = operator(*plain), compiled(*once)
    assert torch.equal(result, expected)
    for a, b in zip(torch.autograd.grad(result.sum(), once), torch.autograd.grad(expected.sum(), plain), strict=True):
        assert torch.equal(a, b)


def repeats(operator: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Bit-identical outputs and gradients from run to run."""
    results = []
    for _ in range(2):
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        output = operator(*leaves)
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
