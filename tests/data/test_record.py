"""What a record accepts, and what it makes of cells."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_ds.data.record import OPEN_LENGTH, BadRecord, Record, make_record, validate

H2 = {"pos": [[0.0, 0, 0], [0, 0, 0.74]], "atomic_numbers": [1, 1], "id": "h2"}


def refused(**changes: object) -> str:
    with pytest.raises(BadRecord) as caught:
        make_record(**{**H2, **changes})  # type: ignore[arg-type]
    return caught.value.code


def test_defaults() -> None:
    record = make_record(**H2, labels={"energy": -31.0, "forces": np.zeros((2, 3))})
    assert record.pos.dtype == np.float64
    assert record.atomic_numbers.dtype == np.uint8
    assert record.tags.tolist() == [2, 2]
    assert record.fixed.tolist() == [False, False]
    assert not record.pbc.any()
    assert record.labels["energy"].shape == ()
    assert record.natoms == 2
    validate(record)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pos": np.zeros((0, 3)), "atomic_numbers": []}, "no_atoms"),
        ({"pos": [[0, 0, 0.0]]}, "shape"),
        ({"pos": [[0, 0], [1, 1]]}, "shape"),
        ({"pos": [["a", 0, 0], [0, 0, 1]]}, "shape"),
        ({"pos": [[0, 0, np.nan], [0, 0, 1]]}, "not_finite"),
        ({"atomic_numbers": [1, 0]}, "unknown_element"),
        ({"atomic_numbers": [1, 119]}, "unknown_element"),
        ({"atomic_numbers": [1, 1.5]}, "unknown_element"),
        ({"labels": {"energy": np.nan}}, "not_finite"),
        ({"labels": {"energy": [1.0]}}, "shape"),
        ({"labels": {"forces": np.zeros((3, 3))}}, "shape"),
        ({"labels": {"stress": np.zeros((3, 3))}}, "shape"),
        ({"labels": {"gap": np.zeros(5)}}, "shape"),
        ({"tags": [0, 3]}, "bad_tag"),
        ({"tags": [0]}, "shape"),
        ({"pbc": True}, "degenerate_cell"),
        ({"pbc": True, "cell": [[3, 0, 0], [0, 3, 0], [3, 3, 0]]}, "degenerate_cell"),
        ({"pbc": True, "cell": np.diag([3, 3, 0.15])}, "degenerate_cell"),
        ({"pbc": [True, True, False], "cell": [[3, 0, 0], [6, 0, 0], [0, 0, 9]]}, "degenerate_cell"),
        ({"pos": [[0, 0, 0], [0, 0, 0.05]]}, "coincident_atoms"),
        ({"pos": [[0, 0, 0.02], [0, 0, 3.98]], "cell": np.eye(3) * 4, "pbc": True}, "coincident_atoms"),
    ],
)
def test_refusals(changes: dict[str, object], code: str) -> None:
    assert refused(**changes) == code


def test_images_along_open_axes_do_not_coincide() -> None:
    pos = [[0, 0, 0.02], [0, 0, 3.98]]
    record = make_record(pos=pos, atomic_numbers=[1, 1], id="x", cell=np.eye(3) * 4, pbc=[True, True, False])
    assert record.pbc.tolist() == [True, True, False]


def test_zero_row_with_pbc_off_is_made_harmless() -> None:
    cell = np.array([[3.0, 0, 0], [1.5, 2.6, 0], [0, 0, 0]])
    record = make_record(**H2, cell=cell, pbc=[True, True, False])
    np.testing.assert_array_equal(record.cell[:2], cell[:2])
    np.testing.assert_allclose(np.abs(record.cell[2]), [0, 0, OPEN_LENGTH], atol=1e-9)
    assert record.pbc.tolist() == [True, True, False]
    validate(record)


def test_no_cell_becomes_a_large_cube_and_a_given_box_stays() -> None:
    np.testing.assert_allclose(make_record(**H2).cell, np.eye(3) * OPEN_LENGTH)
    box = np.eye(3) * 50.0
    np.testing.assert_array_equal(make_record(**H2, cell=box).cell, box)


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
def test_every_pattern_of_open_axes_gives_an_invertible_cell(pbc: tuple[bool, bool, bool]) -> None:
    full = np.array([[4.0, 1.0, 0.2], [0.3, 5.0, -1.0], [0.5, 0.1, 6.0]])
    cell = np.where(np.array(pbc)[:, None], full, 0.0)
    record = make_record(**H2, cell=cell, pbc=pbc)
    assert np.linalg.cond(record.cell) < 1e4
    np.testing.assert_array_equal(record.cell[list(pbc)], full[list(pbc)])
    opened = record.cell[~np.array(pbc)]
    np.testing.assert_allclose(opened @ record.cell[list(pbc)].T, 0.0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.tuples(*[st.integers(-2, 2)] * 3))
def test_coincidence_sees_every_image_in_skewed_cells(seed: int, shift: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.0, 8.0, 3)) + np.tril(rng.uniform(-4, 4, (3, 3)), -1)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    base = rng.uniform(0, 1, 3) @ cell
    other = base + np.array(shift) @ cell
    common = {"atomic_numbers": [6, 6], "id": "x", "cell": cell, "pbc": True}
    with pytest.raises(BadRecord, match="lie"):
        make_record(pos=[base, other + 0.09 * direction], **common)
    make_record(pos=[base, other + 0.11 * direction], **common)


def test_coincidence_is_found_across_chunks() -> None:
    grid = np.array(list(itertools.product(range(11), repeat=3)), dtype=float)
    numbers = np.full(len(grid), 6)
    make_record(pos=grid, atomic_numbers=numbers, id="grid")
    grid[-1] = grid[3] + [0.01, 0, 0]
    with pytest.raises(BadRecord, match="atoms 3 and 1330"):
        make_record(pos=grid, atomic_numbers=numbers, id="grid")


def test_the_plain_constructor_can_be_validated_later() -> None:
    good = make_record(**H2)
    bad = Record(**{**vars(good), "labels": {"energy": np.array(np.inf)}})
    with pytest.raises(BadRecord, match="not finite"):
        validate(bad)


def test_small_molecules_are_made_quickly() -> None:
    pos = np.random.default_rng(0).uniform(0, 8, (21, 3))
    start = time.perf_counter()
    for _ in range(200):
        make_record(pos=pos, atomic_numbers=np.full(21, 6), id="m", labels={"energy": 1.0, "forces": pos})
    assert time.perf_counter() - start < 1.0
