"""Orders: bijections of any length, local ones that keep neighbours together, and both as random as they claim."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jmp_ds.bench.reading import randomness
from jmp_ds.data.mixture import Mixture
from jmp_ds.data.order import CHAPTER, LONGEST, RUN, permute, permute_locally
from jmp_ds.errors import UserError

#: Slabs, oxides, molecules, reactions.
LARGE = (100_000_000, 8_000_000, 2_000_000, 10_000_000)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.text(max_size=5))
def test_a_local_order_is_a_bijection(length: int, key: str) -> None:
    out = permute_locally(np.arange(length), length, key)
    assert np.array_equal(np.sort(out), np.arange(length))


@pytest.mark.parametrize("length", [CHAPTER - 1, CHAPTER, CHAPTER + RUN + 3, 3 * CHAPTER + 5])
def test_over_several_chapters(length: int) -> None:
    out = permute_locally(np.arange(length), length, "k")
    assert np.array_equal(np.sort(out), np.arange(length))
    backwards = permute_locally(np.arange(length)[::-1].copy(), length, "k")
    assert np.array_equal(backwards[::-1], out)  # a function of the position, whatever else is asked for


def test_a_chapter_reads_whole_runs() -> None:
    length = 100 * CHAPTER
    slots = permute_locally(np.arange(3 * CHAPTER, 4 * CHAPTER), length, "k")
    runs, sizes = np.unique(slots // RUN, return_counts=True)
    assert len(runs) == CHAPTER // RUN
    assert (sizes == RUN).all()
    assert runs.max() - runs.min() > 0.9 * length / RUN  # from everywhere
    assert abs(np.corrcoef(slots[:-1], slots[1:])[0, 1]) < 0.02  # in random order


def test_short_orders_come_up_equally_often() -> None:
    length, keys = 8, 4000
    seen = np.zeros((length, length))
    for key in range(keys):
        seen[np.arange(length), permute(np.arange(length), length, str(key))] += 1
    chi2 = ((seen - keys / length) ** 2 / (keys / length)).sum()
    assert 20 < chi2 < 90  # 49 degrees of freedom, standard deviation 10


@pytest.mark.parametrize("order", ["random", "local"])
def test_large_orders_hold_every_item_once(order: str) -> None:
    """Sampled: slots of far-apart stretches are distinct and inside; what they stand for follows from them alone."""
    mixture = Mixture(LARGE, 2.0, seed=5, order="local" if order == "local" else "random")
    n = len(mixture)
    starts = [0, n // 3, n // 2, n - 70_000]
    slots = np.concatenate([mixture.slots(1, s, s + 70_000) for s in starts])
    assert len(np.unique(slots)) == len(slots) == 280_000
    assert slots.min() >= 0
    assert slots.max() < n
    items = mixture.items(1, n // 2, n // 2 + 70_000)
    key = (items.dataset * 8 + items.repetition) * 200_000_000 + items.index
    assert len(np.unique(key)) == 70_000
    for number, size in enumerate(LARGE):
        own = items.index[items.dataset == number]
        assert own.min() >= 0
        assert own.max() < size


def test_randomness_figures() -> None:
    uniform, local = (randomness(LARGE, 2.0, order) for order in ("random", "local"))
    for found in (uniform, local):
        assert abs(found["displacement"] - 1 / 3) < 0.02
        assert abs(found["neighbours"]) < 0.03
    assert uniform["same_run"] < 1e-4
    assert 3e-4 < local["same_run"] < 3e-3  # 1 / 1024, by construction
    assert uniform["share_spread"] < 1.5


def test_too_long() -> None:
    with pytest.raises(UserError, match="is the most"):
        permute(np.arange(3), LONGEST + 1, "k")
