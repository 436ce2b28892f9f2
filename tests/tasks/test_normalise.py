"""Normalisation and back, in float64."""

from __future__ import annotations

import pytest
import torch

from jmp_ds.graphs.batch import Labels
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.tasks.normalise import denormalize, normalized_target, present
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, Task

REFERENCES = (0.0, -13.6, 0.0, 0.0, 0.0, 0.0, -1035.25)
TASK = Task(
    name="a",
    graph=GraphSettings(),
    energy=EnergyTarget(),
    forces=ForcesTarget(),
    normalization={
        "energy": Normalization(mean=0.25, std=2.0, references=REFERENCES),
        "forces": Normalization(std=0.5),
    },
)


@pytest.fixture
def batch(make_batch):
    energies = torch.tensor([-10365.1234567, -2.0, 7.0], dtype=torch.float64)
    forces = torch.arange(18, dtype=torch.float64).view(6, 3)
    labels = {
        "energy": Labels(energies, torch.tensor([True, True, False])),
        "forces": Labels(forces, torch.tensor([True, False, True])),
    }
    return make_batch([2, 3, 1], [0, 1, 0], ["a", "b"], labels, numbers=[6, 1, 1, 1, 1, 99])


def test_target_is_the_formula(batch) -> None:
    got = normalized_target(TASK, "energy", batch, torch.float64)
    expected = [(-10365.1234567 - 0.25 - (-13.6 - 1035.25)) / 2.0, (7.0 - 0.25) / 2.0]  # element 99 has no reference
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0.0)
    forces = normalized_target(TASK, "forces", batch, torch.float32)
    assert forces.dtype == torch.float32
    torch.testing.assert_close(forces, (batch.labels["forces"].values[[0, 1, 5]] / 0.5).float())


def test_round_trip_keeps_millielectronvolts_of_large_energies(batch) -> None:
    target = normalized_target(TASK, "energy", batch, torch.float64)
    back = denormalize(TASK, {"energy": target}, batch)["energy"]
    assert back.dtype == torch.float64
    torch.testing.assert_close(back, batch.labels["energy"].values[[0, 2]], rtol=0.0, atol=1e-11)
    narrow = denormalize(TASK, {"energy": torch.zeros(2)}, batch)["energy"]
    torch.testing.assert_close(narrow, torch.tensor([0.25 - 1048.85, 0.25], dtype=torch.float64), rtol=1e-15, atol=0.0)


def test_presence_follows_the_rows(batch) -> None:
    assert present(TASK, "energy", batch).tolist() == [True, False]
    assert present(TASK, "forces", batch).tolist() == [True, True]
    assert present(TASK, "band_gap", batch).tolist() == [False, False]
