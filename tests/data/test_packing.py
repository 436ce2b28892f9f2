"""Windows within the budget, nothing lost, nothing twice, the same for every rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jmp_ds.data.packing import (
    BatchRule,
    EdgeBudget,
    StepPlan,
    StructureCount,
    _one_by_one,
    _round_by_round,
    plan_step,
    share_out,
)
from jmp_ds.errors import UserError


def costs_of(values: list[int] | np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: np.asarray(values)[start:stop]


def whole_epoch(values: list[int] | np.ndarray, rule: BatchRule, world: int, accumulation: int) -> list[StepPlan]:
    plans, position = [], 0
    while position < len(values):
        plans.append(plan_step(costs_of(values), len(values), position, rule, world, accumulation))
        position = plans[-1].stop
    return plans


def positions(plan: StepPlan) -> list[int]:
    return [p for row in plan.parts for part in row for p in part]


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.integers(0, 50), min_size=1, max_size=80),
    budget=st.integers(1, 120),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
)
def test_epoch_by_budget(values: list[int], budget: int, world: int, accumulation: int) -> None:
    plans = whole_epoch(values, EdgeBudget(budget), world, accumulation)
    assert plans[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(plans))
    for plan in plans:
        assert len(plan.parts) == accumulation
        assert all(len(row) == world for row in plan.parts)
        assert sorted(positions(plan)) == list(range(plan.start, plan.stop))
        for row in plan.parts:
            for part in row:
                assert list(part) == sorted(part)
                assert len(part) <= 1 or sum(max(values[p], 1) for p in part) <= budget
    # Only at the end of the epoch may a micro-batch be empty.
    for plan in plans[:-1]:
        assert all(part for row in plan.parts for part in row)


@pytest.mark.parametrize("world", [1, 2, 8])
def test_budgets_are_well_used(world: int) -> None:
    values = np.random.default_rng(0).integers(100, 3000, 4000)
    plans = whole_epoch(values, EdgeBudget(20_000), world, 2)
    loads = np.array([[[values[list(p)].sum() for p in row] for row in plan.parts] for plan in plans[:-1]])
    assert loads.mean() > 0.9 * 20_000
    assert (loads.max(axis=2) / loads.mean(axis=2)).mean() < 1.08  # ranks that run side by side


def test_large_structures_go_alone() -> None:
    plan = plan_step(costs_of([500, 10, 20, 700, 30]), 5, 0, EdgeBudget(100), 3, 1)
    assert set(plan.parts[0]) == {(0,), (3,), (1, 2, 4)}
    assert plan_step(costs_of([500, 600, 1]), 3, 0, EdgeBudget(100), 1, 1).parts == (((0,),),)


def test_fixed_count_is_the_same_for_any_number_of_ranks() -> None:
    values = np.random.default_rng(1).integers(1, 1000, 103)
    windows = {
        (w, a): [(p.start, p.stop, sorted(positions(p))) for p in whole_epoch(values, StructureCount(10), w, a)]
        for w, a in [(1, 1), (2, 1), (1, 2), (4, 3)]
    }
    assert all(w == windows[1, 1] for w in windows.values())
    assert windows[1, 1][-1][:2] == (100, 103)
    assert len(whole_epoch(values, StructureCount(10), 4, 3)[-1].parts) == 3


def test_other_world_goes_on_from_a_position() -> None:
    values = np.random.default_rng(2).integers(1, 1000, 500)
    first = plan_step(costs_of(values), 500, 0, EdgeBudget(3000), 4, 1)
    seen = positions(first)
    position = first.stop
    while position < 500:
        plan = plan_step(costs_of(values), 500, position, EdgeBudget(3000), 3, 2)
        seen += positions(plan)
        position = plan.stop
    assert sorted(seen) == list(range(500))


def test_reads_no_more_costs_than_it_needs() -> None:
    asked = 0

    def costs(start: int, stop: int) -> np.ndarray:
        nonlocal asked
        asked += stop - start
        return np.full(stop - start, 10)

    plan = plan_step(costs, 10**9, 5 * 10**8, EdgeBudget(1000), 4, 2)
    assert plan.stop - plan.start == 800
    assert asked < 3000


def test_sharing_out_agrees_with_the_published_one(golden: Path) -> None:
    """The published greedy partition gives the same loads; its order of parts is an accident of a heap."""
    cases = json.loads((golden / "misc.json").read_text())["balanced_partition"]
    assert len(cases) == 3
    for case in cases:
        sizes = np.array(case["sizes"])
        owner, loads = share_out(sizes, case["num_parts"])
        assert sorted(loads.tolist()) == sorted(sizes[p].sum() for p in case["parts"])
        assert np.array_equal(loads, np.bincount(owner, weights=sizes, minlength=case["num_parts"]))


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.one_of(st.integers(1, 4), st.integers(1, 30_000)), min_size=0, max_size=120),
    count=st.integers(1, 40),
)
def test_many_at_a_time_is_one_at_a_time(values: list[int], count: int) -> None:
    """The fast form is the greedy rule, item by item: the largest first, to the least loaded, ties by number."""
    costs = -np.sort(-np.array(values, dtype=np.int64))
    slow, fast = _one_by_one(costs, count), _round_by_round(costs, count)
    assert np.array_equal(slow[0], fast[0])
    assert np.array_equal(slow[1], fast[1])


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least 1 edge"):
        EdgeBudget(0)
    with pytest.raises(UserError, match="at least 1 structure"):
        StructureCount(0)
    with pytest.raises(IndexError):
        plan_step(costs_of([1]), 1, 1, EdgeBudget(5), 1, 1)
