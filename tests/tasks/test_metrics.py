"""Errors in physical units."""

from __future__ import annotations

import pytest
import torch

from jmp_ds.graphs.batch import Labels
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.tasks.metrics import Metrics, metric_units
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, ScalarTarget, Task

TASKS = (
    Task(
        name="a",
        graph=GraphSettings(),
        energy=EnergyTarget(),
        forces=ForcesTarget(),
        normalization={"energy": Normalization(mean=1.0, std=2.0), "forces": Normalization(std=0.5)},
    ),
    Task(name="b", graph=GraphSettings(), scalars=(ScalarTarget(label="gap", unit="eV"),)),
)


@pytest.fixture
def batch(make_batch):
    yes = torch.ones(3, dtype=torch.bool)
    labels = {
        "energy": Labels(torch.zeros(3, dtype=torch.float64), yes),
        "forces": Labels(torch.zeros(6, 3, dtype=torch.float64), torch.tensor([True, True, False])),
        "gap": Labels(torch.full((3,), 0.25, dtype=torch.float64), yes),
    }
    fixed = [True, False, False, False, False, False]
    return make_batch([2, 3, 1], [0, 1, 0], ["a", "b"], labels, fixed=fixed)


def outputs():
    forces = torch.tensor([[3.0] * 3, [1.0] * 3, [100.0] * 3])
    return {"a": {"energy": torch.tensor([0.5, -1.0]), "forces": forces}, "b": {"gap": torch.tensor([1.0])}}


def test_values_and_units(batch) -> None:
    metrics = Metrics(TASKS)
    metrics.update(outputs(), batch)
    assert metrics.compute() == pytest.approx(
        {
            "a/energy_mae": (2.0 + 1.0) / 2,
            "a/energy_mae_per_atom": 1000 * (2.0 / 2 + 1.0 / 1) / 2,
            "a/forces_mae": 1000 * (1.5 + 0.5) / 2,  # the third atom's structure has no forces
            "a/forces_mae_free": 1000 * 0.5,  # the first atom is held fixed
            "a/forces_magnitude_mae_free": 1000 * 0.5 * 3**0.5,
            "a/forces_cosine_free": 0.0,  # labels of zero have no direction
            "a/energy_forces_within_threshold": 0.0,
            "b/gap_mae": 0.75,
        }
    )
    assert metric_units(TASKS)["a/energy_mae_per_atom"] == "meV/atom"
    assert set(metric_units(TASKS)) == set(metrics.compute())


def test_states_add_up_over_ranks(batch) -> None:
    once, twice = Metrics(TASKS), Metrics(TASKS)
    once.update(outputs(), batch)
    twice.update(outputs(), batch)
    twice.state += once.state
    assert twice.compute() == pytest.approx(once.compute())
    assert float(twice.state[1, 0]) == 4


def test_what_has_no_label_is_left_out(make_batch) -> None:
    metrics = Metrics(TASKS)
    empty = {"a": {"energy": torch.zeros(0), "forces": torch.zeros(0, 3)}, "b": {"gap": torch.zeros(0)}}
    metrics.update(empty, make_batch([], [], ["a", "b"]))
    assert metrics.compute() == {}
