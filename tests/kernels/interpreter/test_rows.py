"""Segment sums and gathers in Triton against float64 PyTorch, with derivatives of every order."""

from __future__ import annotations

import pytest
import torch
from checks import SIZES, TOLERANCE, compare, random_tensor, repeats, second_order, segments_with, traced, transposed
from jmp_kernels.triton_ops import rows
from jmp_kernels.triton_ops.rows import gather_rows, segment_sum
from torch import Tensor

FLOATS = [torch.float64, torch.float32, torch.float16]
#: Where rows belong when they are in no order; -1 is nowhere.
SCATTERED = torch.tensor([2, 0, -1, 2, 4, 0, 2, -1, 1])


def sum_oracle(index: Tensor, count: int) -> object:
    """Row by row, those that belong nowhere left out."""
    kept = index >= 0
    return lambda x: x.new_zeros(count, *x.shape[1:]).index_add(0, index[kept], x[kept])


def gather_oracle(index: Tensor) -> object:
    return lambda y: y[index.clamp_min(0)] * (index >= 0).view(-1, *[1] * (y.dim() - 1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [(1,), (17,), (3, 50)])
@pytest.mark.parametrize("sizes", SIZES)
def test_sorted_rows(sizes: list[int], channels: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    segments = segments_with(sizes)
    first, index, count = segments.first.to(device), segments.index.to(device), segments.count
    x = random_tensor(segments.num_rows, *channels, dtype=dtype).to(device)
    y = random_tensor(count, *channels, seed=1, dtype=dtype).to(device)
    limit = TOLERANCE[dtype]
    if count:
        compare(lambda a: segment_sum(a, first, index), sum_oracle(index, count), [x], limit, ["x"])
        compare(lambda a: gather_rows(a, first, index), gather_oracle(index), [y], limit, ["y"])
    else:
        assert segment_sum(x, first, index).shape == (0, *channels)
        assert gather_rows(y, first, index).shape == (0, *channels)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_in_any_order(dtype: torch.dtype, device: torch.device) -> None:
    """With the transpose of the index; rows that belong nowhere add nothing and receive zero."""
    order, first = (t.to(device) for t in transposed(SCATTERED, 5))
    index = SCATTERED.to(device)
    x, y = random_tensor(9, 7, dtype=dtype).to(device), random_tensor(5, 7, seed=1, dtype=dtype).to(device)
    limit = TOLERANCE[dtype]
    compare(lambda a: segment_sum(a, first, index, order), sum_oracle(index, 5), [x], limit, ["x"])
    compare(lambda a: gather_rows(a, first, index, order), gather_oracle(index), [y], limit, ["y"])


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_long_sums_of_sixteen_bits(low: torch.dtype, device: torch.device) -> None:
    """A thousand ones and small parts: a 16-bit accumulator would stall, a float32 one does not."""
    segments = segments_with([1000])
    first, index = segments.first.to(device), segments.index.to(device)
    x = torch.full((1000, 2), 1.125, dtype=low, device=device)
    assert torch.equal(segment_sum(x, first, index, None, torch.float32), x.new_full((1, 2), 1125, dtype=torch.float32))
    assert segment_sum(x, first, index).dtype == low


def test_sharing_out_long_segments_changes_nothing(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    segments = segments_with([3, 0, 700])
    first, index = segments.first.to(device), segments.index.to(device)
    x = random_tensor(703, 3).to(device)
    assert rows.shares_of(703, 3, 1, 128) > 1
    shared = segment_sum(x, first, index)
    monkeypatch.setattr(rows, "shares_of", lambda *sizes: 1)
    torch.testing.assert_close(shared, segment_sum(x, first, index), rtol=1e-12, atol=1e-10)


def operators(device: torch.device) -> dict[str, tuple[object, Tensor]]:
    order, first = (t.to(device) for t in transposed(SCATTERED, 5))
    index = SCATTERED.to(device)
    return {
        "segment_sum": (lambda a: segment_sum(a, first, index, order), random_tensor(9, 3).to(device)),
        "gather_rows": (lambda a: gather_rows(a, first, index, order), random_tensor(5, 3).to(device)),
    }


@pytest.mark.parametrize("name", ["segment_sum", "gather_rows"])
def test_derivatives_tracing_and_repetition(name: str, device: torch.device) -> None:
    operator, given = operators(device)[name]
    second_order(operator, [given])
    traced(operator, [given.float()])
    repeats(operator, [given.float()])


@pytest.mark.parametrize("name", ["segment_sum", "gather_rows"])
def test_opcheck(name: str, device: torch.device) -> None:
    order, first = (t.to(device) for t in transposed(SCATTERED, 5))
    x = random_tensor(9 if name == "segment_sum" else 5, 3, dtype=torch.float32, grad=True).to(device)
    inputs = (x, first, SCATTERED.to(device), order, torch.float32)
    torch.library.opcheck(getattr(torch.ops.jmp, name).default, inputs)


def test_wrong_shapes_are_refused(device: torch.device) -> None:
    order, first = (t.to(device) for t in transposed(SCATTERED, 5))
    with pytest.raises(ValueError, match="8 rows, but index has 9"):
        segment_sum(random_tensor(8, 3).to(device), first, SCATTERED.to(device), order)
    with pytest.raises(ValueError, match="4 rows to gather from"):
        gather_rows(random_tensor(4, 3).to(device), first, SCATTERED.to(device), order)
