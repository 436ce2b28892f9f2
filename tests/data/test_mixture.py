"""Temperature sampling: published sizes, every structure exactly once, an order that is a function of its position."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jmp_ds.data.mixture import Items, Mixture, expanded_sizes
from jmp_ds.data.order import permute
from jmp_ds.errors import UserError


def stacked(items: Items) -> np.ndarray:
    return np.stack([items.dataset, items.repetition, items.index])


def test_published_sizes(golden: Path) -> None:
    cases = json.loads((golden / "misc.json").read_text())["merged_dataset"]
    assert len(cases) == 6
    for case in cases:
        temperature = math.inf if case["T"] == "uniform" else case["T"]
        assert expanded_sizes(case["sizes"], temperature) == case["expanded"]


def test_roots_without_rounding_noise() -> None:
    assert expanded_sizes([25, 100], 2.0) == [50, 100]
    assert expanded_sizes([9_000_000, 100_000_000], 2.0) == [30_000_000, 100_000_000]
    assert expanded_sizes([3, 7, 11], 1.0) == [3, 7, 11]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    temperature=st.sampled_from([0.5, 1.0, 1.5, 2.0, 5.0, math.inf]),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_every_item_exactly_once(sizes: list[int], temperature: float, seed: int, epoch: int) -> None:
    mixture = Mixture(sizes, temperature, seed)
    items = mixture.items(epoch, 0, len(mixture))
    seen = list(zip(*stacked(items).tolist(), strict=True))
    assert len(seen) == len(set(seen)) == len(mixture) == sum(expanded_sizes(sizes, temperature))
    for d, (n, expanded) in enumerate(zip(sizes, mixture.expanded, strict=True)):
        per_repetition = Counter(r for e, r, _ in seen if e == d)
        assert per_repetition == {
            r: min(n, expanded - r * n) for r in range(-(-expanded // n))
        }  # full repetitions hold every index, as indices are distinct within one
        assert all(0 <= i < n for e, _, i in seen if e == d)


def test_over_epochs_all_are_drawn_equally_often() -> None:
    mixture = Mixture([50, 100], 2.0, seed=3)  # 71 of 50 per epoch
    drawn: Counter[int] = Counter()
    for epoch in range(7):
        items = mixture.items(epoch, 0, len(mixture))
        drawn.update(items.index[items.dataset == 0].tolist())
    assert max(drawn.values()) - min(drawn.values()) <= 1
    assert len(drawn) == 50


def test_any_range_is_a_slice_of_the_epoch() -> None:
    mixture = Mixture([31, 17, 4], 2.0, seed=5)
    whole = stacked(mixture.items(2, 0, len(mixture)))
    for start, stop in [(0, 1), (3, 29), (len(mixture) - 2, len(mixture) + 50)]:
        assert np.array_equal(stacked(mixture.items(2, start, stop)), whole[:, start:stop])
    assert mixture.item(2, 7) == tuple(whole[:, 7])
    with pytest.raises(IndexError):
        mixture.item(0, len(mixture))


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {
        tuple(Mixture([1000], 1.0, seed).items(epoch, 0, 1000).index.tolist()) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 3000), st.text(max_size=5))
def test_permute_is_a_bijection(length: int, key: str) -> None:
    out = permute(np.arange(length), length, key)
    assert np.array_equal(np.sort(out), np.arange(length))


def test_permutation_mixes_well() -> None:
    n = 100_000
    out = permute(np.arange(n), n, "k")
    counts = np.histogram2d(np.arange(n), out, bins=20)[0]  # expected 250 per cell
    chi2 = ((counts - 250.0) ** 2 / 250.0).sum()
    assert 250 < chi2 < 500  # 361 degrees of freedom, standard deviation 27
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.02


def test_large_epochs_need_no_memory_and_are_distinct() -> None:
    mixture = Mixture([100_000_000, 8_000_000, 1_000_000], 2.0, seed=1)
    items = mixture.items(1, 90_000_000, 90_200_000)
    keys = (items.dataset * 1000 + items.repetition) * 200_000_000 + items.index
    assert len(np.unique(keys)) == 200_000
    share = np.bincount(items.dataset, minlength=3) / 200_000
    assert np.allclose(share, np.array(mixture.expanded) / len(mixture), atol=5e-3)


@pytest.mark.parametrize(
    ("sizes", "temperature", "message"),
    [([], 1.0, "no set"), ([3, 0], 1.0, "set number 2"), ([3], 0.0, "temperature"), ([3], math.nan, "temperature")],
)
def test_mistakes(sizes: list[int], temperature: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture(sizes, temperature, 0)
