"""Calibration: known coefficients are found again; what a fit cannot be made of is refused; balance by cost is better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jmp_ds.bench import balance, cost, feeding
from jmp_ds.bench.population import Population, population
from jmp_ds.data.costs import COUNTS, CostModel
from jmp_ds.errors import UserError


@pytest.fixture(scope="module")
def few() -> Population:
    return population(slabs=6, molecules=10)


def test_known_costs_are_found_again(few: Population) -> None:
    rng = np.random.default_rng(1)
    counts = np.array([few.counts[few.draw(int(rng.integers(1, 40)), rng)].sum(axis=0) for _ in range(60)], np.float64)
    truth = CostModel({"main": 5e-4, "in_triplets": 2e-5}, per_edge=6e-4, fixed=0.1)
    seconds = (truth.seconds(counts) + truth.fixed) * (1.0 + 0.01 * rng.normal(size=60))
    fitted = cost.fit(cost.Timings(counts, seconds), cost.CostRequest())
    assert all(c > 0.0 for c in fitted.coefficients.values())
    assert np.allclose(fitted.seconds(counts) + fitted.fixed, truth.seconds(counts) + truth.fixed, rtol=0.02)
    assert fitted.about["relative_error_rms"] < 0.012
    assert fitted.about["unseen_relative_error_rms"] < 0.02
    assert set(fitted.coefficients) <= set(COUNTS)


def test_negative_coefficients_are_not_given() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 100, (40, len(COUNTS))).astype(float)
    seconds = counts[:, 1] + 200.0 - 0.5 * counts[:, 2]
    fitted = cost.fit(cost.Timings(counts, seconds), cost.CostRequest())
    assert "a2a" not in fitted.coefficients
    assert fitted.fixed > 0.0


def test_a_real_calibration_of_a_small_network(few: Population, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "FEWEST", 3)  # whatever else the machine does
    monkeypatch.setattr(cost, "population", lambda: few)
    request = cost.CostRequest(model="tiny", edges=300, seconds=6.0, repeats=1)
    fitted = cost.fit(cost.measure(request), request)
    assert fitted.per_edge > 0.0
    assert fitted.about["batches"] >= cost.FEWEST


def test_too_little_time(few: Population, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "population", lambda: few)
    with pytest.raises(UserError, match="12 are needed"):
        cost.measure(cost.CostRequest(model="tiny", edges=2000, seconds=0.01))


def test_balance(few: Population) -> None:
    model = CostModel({"main": 5e-4, "in_triplets": 4e-5}, per_edge=6e-4)
    rows = balance.simulate(few, model, (8, 256), 20_000, steps=4)
    worst = {(row["balanced_by"], row["ranks"]): row["worst"] for row in rows}
    for ranks in (8, 256):
        assert worst["cost", ranks] <= 1.02 <= 1.1 < worst["none", ranks]
        # so few kinds of structures are shared out about as well by edges
        assert worst["cost", ranks] <= worst["edges", ranks] + 2e-3
        assert worst["cost", ranks] <= worst["atoms", ranks] + 2e-3


def test_feeding(few: Population, tmp_path: Path) -> None:
    sources = feeding.write_sources(tmp_path, few)
    for workers in (0, 1):
        found = feeding.feed(sources, workers, 2000, 0.5)
        assert found["batches"] > 0
        assert found["edges_per_s"] > found["structures_per_s"] > 0.0
