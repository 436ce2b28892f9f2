"""Splits: exact sizes, no group on two sides, the same for the same seed; files are checked."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jmp_ds.data.splits import read_indices, split, split_from_files
from jmp_ds.data.store import group_hash
from jmp_ds.errors import UserError

ALONE = np.zeros(1000, dtype=np.uint64)


def hashes(groups: list[str]) -> np.ndarray:
    return np.array([group_hash(g) for g in groups], dtype=np.uint64)


def test_counts_are_exact() -> None:
    parts = split(ALONE, {"train": 900, "val": 50, "test": 50}, seed=3)
    assert {k: len(v) for k, v in parts.items()} == {"train": 900, "val": 50, "test": 50}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1000))
    assert all(np.array_equal(v, np.sort(v)) for v in parts.values())
    again = split(ALONE, {"train": 900, "val": 50, "test": 50}, seed=3)
    other = split(ALONE, {"train": 900, "val": 50, "test": 50}, seed=4)
    assert all(np.array_equal(parts[k], again[k]) for k in parts)
    assert not np.array_equal(parts["val"], other["val"])


def test_fractions_use_every_structure() -> None:
    for n in (10, 11, 999):
        parts = split(ALONE[:n], {"train": 0.8, "val": 0.1, "test": 0.1})
        assert sum(map(len, parts.values())) == n
        assert abs(len(parts["train"]) - 0.8 * n) <= 1
    assert sum(map(len, split(ALONE, {"train": 0.1, "val": 0.05}).values())) == 150


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.sampled_from([*"abcdefghij", ""]), min_size=30, max_size=120),
    seed=st.integers(0, 100),
    counts=st.booleans(),
)
def test_groups_stay_together(groups: list[str], seed: int, counts: bool) -> None:
    n = len(groups)
    shares: dict[str, float | int] = {"train": n // 2, "val": n // 4} if counts else {"train": 0.6, "val": 0.3}
    try:
        parts = split(hashes(groups), shares, seed=seed)
    except UserError:
        return  # few large groups may leave nothing for a split, and that is told (tests below)
    owners: dict[str, set[str]] = {}
    for name, indices in parts.items():
        assert len(indices) > 0
        for i in indices:
            owners.setdefault(groups[i] or f"alone {i}", set()).add(name)
    assert all(len(o) == 1 for o in owners.values())
    assert len(np.unique(np.concatenate(list(parts.values())))) == sum(map(len, parts.values()))
    if counts:
        assert all(len(parts[k]) <= shares[k] for k in parts)


def test_a_group_keeps_its_place_when_others_are_relabelled() -> None:
    """The place of a group in the order depends on its own key and the seed."""
    groups = [f"m{i}" for i in range(100) for _ in range(3)]
    first = split(hashes(groups), {"train": 0.5, "val": 0.5}, seed=1)
    shuffled = np.random.default_rng(0).permutation(300)
    second = split(hashes([groups[i] for i in shuffled]), {"train": 0.5, "val": 0.5}, seed=1)
    assert {groups[i] for i in first["train"]} == {groups[shuffled[i]] for i in second["train"]}


def test_one_trajectory_cannot_be_split_by_group() -> None:
    groups = hashes(["md"] * 100)
    with pytest.raises(UserError, match="by: structure"):
        split(groups, {"train": 0.9, "val": 0.1})
    parts = split(groups, {"train": 90, "val": 10}, by="structure")
    assert [len(p) for p in parts.values()] == [90, 10]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "negative"),
        ({"train": -0.1}, "negative"),
        ({"train": 0}, "zero"),
        ({"train": 0.9, "val": 0.2}, "add up to 1.1"),
        ({"train": 1000, "val": 1}, "there are 1000"),
        ({"train": 900, "val": 0.1}, "add up to"),
    ],
)
def test_mistakes(shares: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split(ALONE, shares)


def test_a_split_that_groups_leave_empty() -> None:
    with pytest.raises(UserError, match="val would be empty"):
        split(hashes(["a"] * 5 + ["b"] * 5), {"train": 5, "val": 4})


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("3\n1\n4\n")
    (tmp_path / "b.json").write_text(json.dumps([0, 2]))
    np.save(tmp_path / "c.npy", np.array([9], dtype=np.int32))
    files = {"train": tmp_path / "a.csv", "val": tmp_path / "b.json", "test": tmp_path / "c.npy"}
    parts = split_from_files(files, 10)
    assert {k: v.tolist() for k, v in parts.items()} == {"train": [1, 3, 4], "val": [0, 2], "test": [9]}
    assert read_indices(tmp_path / "a.csv").tolist() == [3, 1, 4]
    with pytest.raises(UserError, match="index 9; the store has 0 to 8"):
        split_from_files(files, 9)
    with pytest.raises(UserError, match="is also in train"):
        split_from_files({"train": tmp_path / "a.csv", "val": tmp_path / "a.csv"}, 10)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "1\ntwo\n", "cannot be read"),
        ("a.txt", "1\n1\n", "twice"),
        ("a.txt", "-1\n", "index -1"),
        ("a.txt", "", "no indices"),
        ("a.json", "[[1, 2]]", "one list"),
        ("a.json", "[1.5]", "whole numbers"),
        ("a.npy", "not numpy", "cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        split_from_files({"train": tmp_path / name}, 5)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        split_from_files({"train": tmp_path / "none.txt"}, 5)
