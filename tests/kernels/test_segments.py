"""Indices between lists of rows, the other way round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from jmp_kernels import Gather, LookUp, segments_of


def look_up(rows: list[int], count: int) -> LookUp:
    """From the row, or -1."""
    index = torch.tensor(rows, dtype=torch.int64)
    return LookUp(index.clamp_min(0), index >= 0, count)


@pytest.mark.parametrize(
    ("rows", "count", "inverse"), [([2, -1, 0, -1], 4, [2, -1, 0, -1]), ([-1, -1], 0, []), ([], 2, [-1, -1])]
)
def test_inverse_of_a_look_up(rows: list[int], count: int, inverse: list[int]) -> None:
    assert look_up(rows, count).inverse.tolist() == inverse


def test_transpose_of_a_look_up() -> None:
    """Several rows may have the same match; those that have none come last."""
    found = look_up([2, -1, 0, 2, -1], 4).transposed
    assert found.first.tolist() == [0, 1, 1, 3, 3]
    assert found.order.tolist() == [2, 0, 3, 1, 4]


def test_nothing_is_made_twice() -> None:
    """Every block of a network asks again."""
    twin, edges = look_up([1, -1, 0], 2), segments_of(torch.tensor([0, 0, 1]), 2)
    assert twin.transposed is twin.transposed
    assert twin.inverse is twin.inverse
    assert edges.rows is edges.rows
    assert edges.rows.tolist() == [0, 1, 2]


def test_a_changed_copy_makes_its_own() -> None:
    """As batches do on their way to another device."""
    twin = look_up([1, -1, 0], 2)
    assert twin.inverse.tolist() == [2, 0]
    assert replace(twin, count=3).inverse.tolist() == [2, 0, -1]


def test_indices_first_asked_for_in_inference_mode_can_be_trained_on() -> None:
    taken = Gather(torch.tensor([2, 0, 2]), 3)
    found = LookUp(torch.tensor([1, 0]), torch.tensor([True, False]), 2)
    with torch.inference_mode():
        made = [taken.transposed.order, taken.transposed.first, found.signed, found.transposed.order, found.inverse]
    assert not any(index.is_inference() for index in made)
