"""Cosines, magnitudes and shares within thresholds against sums over structures in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from jmp_ds.graphs.batch import Batch, Labels
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.tasks.force_metrics import cosines, within_thresholds
from jmp_ds.tasks.metrics import Metrics, error_of, larger_is_better, metric_units, note_on_direction
from jmp_ds.tasks.specs import ClassTarget, EnergyTarget, ForcesTarget, Normalization, ScalarTarget, Task

TASK = Task(
    name="a",
    graph=GraphSettings(),
    energy=EnergyTarget(),
    forces=ForcesTarget(),
    normalization={"energy": Normalization(mean=-7.0, std=0.5), "forces": Normalization(std=0.25)},
)
OTHER = Task(name="b", graph=GraphSettings(), scalars=(ScalarTarget(label="gap"),))
NAMES = ("a/forces_magnitude_mae_free", "a/forces_cosine_free", "a/energy_forces_within_threshold")


class Made:
    """Labelled structures with predictions near them, in physical units; everything as lists over structures."""

    def __init__(self, seed: int, structures: int) -> None:
        rng = np.random.default_rng(seed)
        self.natoms = rng.integers(1, 6, structures)
        self.of_a = rng.random(structures) < 0.8
        self.energy = rng.normal(-7.0, 0.5, structures)
        self.forces = [rng.normal(0.0, 0.3, (n, 3)) for n in self.natoms]
        self.fixed = [rng.random(n) < 0.3 for n in self.natoms]
        self.has_energy, self.has_forces = rng.random((2, structures)) < 0.85
        self.energy_found = self.energy + rng.normal(0.0, 0.02, structures)
        self.forces_found = [f + rng.normal(0.0, 0.02, f.shape) for f in self.forces]
        for k in np.flatnonzero(self.of_a & self.has_forces)[:6]:
            self.forces[k][0] = 0.0  # labels of zero
            self.fixed[k][0] = False
            self.fixed[k][1:] = k % 2 == 0
        for k in np.flatnonzero(self.of_a & self.has_forces)[6:9]:
            self.fixed[k][:] = True  # no atom is free
        for f, fixed in zip(self.forces_found, self.fixed, strict=True):
            f[fixed] += 5.0  # what nobody may look at

    def part(self, chosen: slice, make_batch, dtype: torch.dtype) -> tuple[dict, Batch]:
        """Outputs and batch of some of the structures."""
        own = range(len(self.natoms))[chosen]
        joined = torch.from_numpy(np.concatenate([self.forces[k] for k in own]))
        labels = {
            "energy": Labels(torch.from_numpy(self.energy[chosen]), torch.from_numpy(self.has_energy[chosen])),
            "forces": Labels(joined, torch.from_numpy(self.has_forces[chosen])),
        }
        fixed = np.concatenate([self.fixed[k] for k in own]).tolist()
        task_of = [0 if self.of_a[k] else 1 for k in own]
        batch = make_batch(self.natoms[chosen].tolist(), task_of, ["a", "b"], labels, fixed=fixed)
        energies = (self.energy_found[chosen][self.of_a[chosen]] + 7.0) / 0.5
        forces = np.concatenate([self.forces_found[k] for k in own if self.of_a[k]]) / 0.25
        mine = {"energy": torch.from_numpy(energies).to(dtype), "forces": torch.from_numpy(forces).to(dtype)}
        return {"a": mine, "b": {"gap": torch.zeros(sum(task_of), dtype=dtype)}}, batch

    def expected(self, dtype: torch.dtype) -> dict[str, float]:
        """By plain loops, from what the network's precision leaves of the predictions."""

        def rounded(x):
            return torch.as_tensor(x).to(dtype).double().numpy()

        magnitudes, angles, right = [], [], []
        for k in np.flatnonzero(self.of_a & self.has_forces):
            found = 0.25 * rounded(self.forces_found[k] / 0.25)
            worst = 0.0
            for atom in np.flatnonzero(~self.fixed[k]):
                p, f = found[atom], self.forces[k][atom]
                magnitudes.append(1000.0 * abs(np.sqrt(p @ p) - np.sqrt(f @ f)))
                angles.append(p @ f / np.sqrt(p @ p) / np.sqrt(f @ f) if f.any() else 0.0)
                worst = max(worst, np.abs(p - f).max())
            if self.has_energy[k]:
                energy = 0.5 * float(rounded((self.energy_found[k] + 7.0) / 0.5)) - 7.0
                right.append(abs(energy - self.energy[k]) < 0.02 and worst < 0.03)
        assert 0 < sum(right) < len(right)
        return dict(zip(NAMES, (np.mean(magnitudes), np.mean(angles), np.mean(right)), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_two_ranks_add_up_to_plain_sums(make_batch, dtype: torch.dtype) -> None:
    """Float16 and bfloat16 lose digits of a prediction, and none of a sum."""
    made = Made(0, 300)
    ranks = [Metrics((TASK, OTHER)) for _ in range(2)]
    for number, start in enumerate(range(0, 300, 50)):
        ranks[number % 2].update(*made.part(slice(start, start + 50), make_batch, dtype))
    ranks[0].state += ranks[1].state
    found = ranks[0].compute()
    assert {name: found[name] for name in NAMES} == pytest.approx(made.expected(dtype), rel=1e-12)
    assert 0.9 < found["a/forces_cosine_free"] < 1.0


def test_structures_in_which_no_atom_is_free(make_batch) -> None:
    """Nothing is said of forces; of both together the energy decides."""
    zeros = torch.zeros(2, dtype=torch.float64)
    yes = torch.ones(2, dtype=torch.bool)
    labels = {"energy": Labels(zeros, yes), "forces": Labels(torch.zeros(3, 3, dtype=torch.float64), yes)}
    batch = make_batch([2, 1], [0, 0], ["a"], labels, fixed=[True] * 3)
    outputs = {"energy": torch.tensor([14.03, 14.05]), "forces": torch.ones(3, 3)}  # 15 and 25 meV
    metrics = Metrics((TASK,))
    metrics.update({"a": outputs}, batch)
    found = metrics.compute()
    assert found["a/energy_forces_within_threshold"] == 0.5
    assert not {"a/forces_cosine_free", "a/forces_magnitude_mae_free", "a/forces_mae_free"} & found.keys()


def test_an_energy_that_is_not_trained_is_judged_alone(make_batch) -> None:
    task = replace(TASK, energy=EnergyTarget(weight=0.0))
    metrics = Metrics((task, OTHER))
    metrics.update(*Made(1, 40).part(slice(0, 40), make_batch, torch.float32))
    assert {"a/energy_mae", "a/forces_cosine_free"} < metrics.compute().keys() == metric_units((task,)).keys()


def test_thresholds_belong_to_the_wrong_side() -> None:
    """At the threshold, at the other sign, beyond it on one atom of two, and where a number is none."""
    energies = torch.tensor([0.0199, 0.02, 0.0, 0.0, torch.nan, 0.0], dtype=torch.float64)
    forces = torch.zeros(12, 3, dtype=torch.float64)
    forces[5, 2], forces[7, 0], forces[11, 1] = 0.03, 0.0299, torch.nan
    structure, free = torch.arange(12) // 2, torch.ones(12, dtype=torch.bool)
    assert within_thresholds(energies, forces, free, structure).tolist() == [True, False, False, True, False, False]
    assert within_thresholds(energies, forces, ~free, structure).tolist() == [True, False, True, True, False, True]


def test_cosines_of_nothing_and_of_opposites() -> None:
    x = torch.tensor([[0.0, 0.0, 3.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.bfloat16)
    y = torch.tensor([[0.0, 0.0, -0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = cosines(x, y)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([-1.0, 0.0, 0.0, 0.5**0.5], abs=1e-15)


def test_who_is_told_them_and_which_way_is_better() -> None:
    """No scalar task has them; forces without trained energies have no share of structures that are right."""
    assert set(metric_units((OTHER,))) == {"b/gap_mae"}
    for energy in (None, EnergyTarget(weight=0.0)):
        alone = metric_units((Task(name="a", graph=GraphSettings(), energy=energy, forces=ForcesTarget()),))
        assert [name for name in NAMES if name in alone] == list(NAMES[:2])
    classes = Task(name="c", graph=GraphSettings(), classification=ClassTarget(label="metal"))
    units = metric_units((TASK, OTHER, classes))
    assert {name for name in units if larger_is_better(name)} == {name for name in units if units[name] == ""} - {
        "b/gap_mae"
    }
    assert "a/forces_cosine_free" in units
    assert note_on_direction(["b/gap_mae"]) == ""
    assert note_on_direction(NAMES) == "The larger, the better: energy_forces_within_threshold, forces_cosine_free."
    assert error_of(dict.fromkeys(units, 0.5) | {"a/forces_mae": 9.0}, TASK, "forces") == 9.0
