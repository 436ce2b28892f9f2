"""Spread of a step's cost over ranks (largest over mean), for several ways to share structures out.

All ranks of a step wait for the slowest one, so this ratio is the factor by which a step takes longer than it must.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.bench.cost import CostRequest, Runner
from jmp_ds.bench.population import Population
from jmp_ds.data.costs import COUNTS, CostModel
from jmp_ds.data.packing import BatchRule, EdgeBudget, StepPlan, StructureCount, plan_step

#: Structures drawn, of which a simulation reads as many as it needs.
DRAWN = 400_000
STEPS = 20
WORLDS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Way:
    """One way to share structures out.

    Attributes:
        name: for tables.
        by: cost of a structure, from counts [n, 7].
        counted: the same number of structures in every step, instead of a budget of cost.
    """

    name: str
    by: Callable[[NDArray[np.int64]], NDArray[Any]]
    counted: bool = False


def ways(model: CostModel) -> list[Way]:
    """Without balancing, by atoms as published, by edges, by measured cost."""
    column = {name: i for i, name in enumerate(COUNTS)}
    return [
        Way("none", lambda counts: np.ones(len(counts)), counted=True),
        Way("atoms", lambda counts: counts[:, column["atoms"]], counted=True),
        Way("edges", lambda counts: counts[:, column["main"]]),
        Way("cost", lambda counts: np.rint(model.seconds(counts) / model.per_edge)),
    ]


def simulate(
    drawn_from: Population, model: CostModel, worlds: Sequence[int], budget: int, *, steps: int = STEPS, seed: int = 0
) -> list[dict[str, Any]]:
    """Largest over mean predicted cost of a rank's batch, by way and number of ranks: mean and worst over steps."""
    counts = drawn_from.counts[drawn_from.draw(DRAWN, np.random.default_rng(seed))]
    seconds = model.seconds(counts)
    mean_edges = float(counts[:, COUNTS.index("main")].mean())
    rows = []
    for way in ways(model):
        costs = way.by(counts)
        for world in worlds:
            rule = _rule(way, world, budget, mean_edges)
            plans = _plans(costs, rule, world, steps)
            spread = [_spread(_loads(plan, seconds) + model.fixed) for plan in plans]
            rows.append(
                {
                    "balanced_by": way.name,
                    "ranks": world,
                    "steps": len(spread),
                    "mean": float(np.mean(spread)),
                    "worst": float(np.max(spread)),
                    "structures_per_batch": float(np.mean([(p.stop - p.start) / world for p in plans])),
                }
            )
    return rows


def run(
    drawn_from: Population,
    model: CostModel,
    request: CostRequest,
    world: int,
    budget: int,
    *,
    passes: int = 5,
    seed: int = 1,
) -> list[dict[str, Any]]:
    """The same for a step whose batches are really computed, one rank after the other, on this machine's device.

    The batches are gone through several times and the fastest time of each counts. The way `same` computes one batch over
    and over as if it were many: what it shows is the scatter of the machine.
    """
    runner = Runner(replace(request, repeats=1), drawn_from)
    drawn = drawn_from.draw(4 * DRAWN // 100, np.random.default_rng(seed))
    counts = drawn_from.counts[drawn]
    mean_edges = float(counts[:, COUNTS.index("main")].mean())
    runner.seconds(drawn[:3])  # the first call does not count
    rows = []
    for way in ways(model):
        plan = _plans(way.by(counts), _rule(way, world, budget, mean_edges), world, 1)[0]
        batches = [drawn[plan.start + plan.part(0, rank)] for rank in range(world)]
        rows.append(_computed(way.name, batches, passes, runner, _loads(plan, model.seconds(counts)) + model.fixed))
    same = np.full(world, model.seconds(drawn_from.counts[batches[0]]).sum() + model.fixed)
    return [*rows, _computed("same", batches[:1] * world, passes, runner, same)]


def _computed(
    name: str, batches: Sequence[NDArray[np.int64]], passes: int, runner: Runner, predicted: NDArray[np.float64]
) -> dict[str, Any]:
    """One row of `run`."""
    measured = np.array([[runner.seconds(batch) for batch in batches] for _ in range(passes)]).min(axis=0)
    return {
        "balanced_by": name,
        "ranks": len(batches),
        "measured": _spread(measured),
        "predicted": _spread(predicted),
        "measured_over_predicted": float(measured.sum() / predicted.sum()),
    }


def _rule(way: Way, world: int, budget: int, mean_edges: float) -> BatchRule:
    """Batches of about the same size on average, whichever way."""
    if way.counted:
        return StructureCount(world * max(1, round(budget / mean_edges)))
    return EdgeBudget(budget)


def _plans(costs: NDArray[Any], rule: BatchRule, world: int, steps: int) -> list[StepPlan]:
    """Consecutive steps, as many as the drawn structures allow."""
    plans: list[StepPlan] = []
    position, needed = 0, 0
    while len(plans) < steps and position + 2 * needed < len(costs):
        plans.append(plan_step(lambda a, b: costs[a:b], len(costs), position, rule, world, 1))
        position, needed = plans[-1].stop, plans[-1].stop - plans[-1].start
    return plans


def _loads(plan: StepPlan, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(plan.place, seconds[plan.start : plan.stop], plan.world).astype(np.float64)


def _spread(loads: NDArray[np.float64]) -> float:
    return float(loads.max() / loads.mean())
