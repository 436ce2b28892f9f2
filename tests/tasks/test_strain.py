"""Stress as a derivative of the energy: against finite differences, in mixed batches, in training and in a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from small_models import structure, tiny_model

from jmp_ds.bundle import load_bundle
from jmp_ds.config import load_finetune
from jmp_ds.config.checks import check_finetune
from jmp_ds.data.record import make_record
from jmp_ds.data.store import StoreWriter
from jmp_ds.errors import UserError
from jmp_ds.finetune import run_finetune
from jmp_ds.graphs.assemble import assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.presets import preset
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.metrics import Metrics
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, StressTarget, Task
from jmp_ds.tasks.strain import VOIGT

TASK = Task(
    name="a",
    graph=GraphSettings(cutoff=5.0, max_neighbors=30),
    energy=EnergyTarget(weight=0.0),
    forces=ForcesTarget(kind="gradient"),
    stress=StressTarget(weight=2.0),
    normalization={k: Normalization(std=0.5) for k in ("energy", "forces", "stress")},
)


def crystal() -> Atoms:
    """Sheared and rattled, so that no component vanishes."""
    atoms = bulk("NaCl", "rocksalt", a=5.2)
    shear = np.array([[0.02, 0.01, 0.0], [0.03, -0.01, 0.02], [0.0, 0.01, 0.0]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + shear), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def batch_of(*atoms: Atoms, labels: list[dict] | None = None) -> Batch:
    return assemble([structure(a) for a in atoms], [0] * len(atoms), [("a", TASK.graph)], labels)


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    return tiny_model(TASK).double().eval()


def test_it_is_the_derivative_by_strain(model) -> None:
    """Central differences of the energy under each of the six symmetric strains, over the volume; ASE's sign and order."""
    atoms, h = crystal(), 1e-5
    found = model(batch_of(atoms))["a"]["stress"][0]
    expected = []
    for i, j in VOIGT:
        energies = []
        for sign in (1.0, -1.0):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5 * sign * h
            strain[j, i] += 0.5 * sign * h
            other = atoms.copy()
            other.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(model(batch_of(other))["a"]["energy"].item())
        expected.append((energies[0] - energies[1]) / (2 * h * atoms.get_volume()))
    assert min(abs(x) for x in expected) > 1e-7
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_it_changes_neither_energies_nor_forces(model) -> None:
    plain = MultiTaskModel(preset("tiny"), [Task(**{**vars(TASK), "stress": None})]).double().eval()
    plain.load_state_dict(model.state_dict())
    batch = batch_of(crystal(), molecule("H2O"))
    with_stress, without = model(batch)["a"], plain(batch)["a"]
    assert set(with_stress) - set(without) == {"stress"}
    for label, values in without.items():
        torch.testing.assert_close(with_stress[label], values, rtol=1e-12, atol=1e-12)


def test_molecules_and_single_atoms_beside_crystals() -> None:
    """What has no volume carries no stress: nothing that is not a number gets into the gradients."""
    model = tiny_model(TASK).train()
    label = {"forces": np.zeros((2, 3)), "stress": np.full(6, 0.01)}
    batch = batch_of(crystal(), molecule("H2O"), Atoms("O"), labels=[label, {}, {}])
    out = model(batch)
    assert out["a"]["stress"].shape == (3, 6)
    assert bool(torch.isfinite(out["a"]["stress"]).all())
    sums, counts = loss_sums(out, batch, [TASK]), count_labels(batch, [TASK])
    assert counts["stress"] == 1
    own = out["a"]["stress"][0].detach() - 0.01 / 0.5
    assert float(sums["stress"].detach()) == pytest.approx(2.0 * float(own.abs().mean()), rel=1e-5)
    metrics = Metrics([TASK])
    metrics.update(out, batch)
    assert metrics.compute()["a/stress_mae"] == pytest.approx(1000.0 * 0.5 * float(own.abs().mean()), rel=1e-5)
    sums["stress"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert any(bool((g != 0).any()) for g in gradients)


def test_json_form_and_scales() -> None:
    assert Task.from_dict(json.loads(json.dumps(TASK.to_dict()))) == TASK
    with pytest.raises(ValueError, match="derivative of the energy"):
        Task(**{**vars(TASK), "normalization": {"energy": Normalization(std=2.0), "forces": Normalization(std=2.0)}})


def write_crystals(path: Path) -> Path:
    """Sixteen strained cells of two atoms: energy V (trace of strain)² · 0.5, its stress, and no forces."""
    rng, records = np.random.default_rng(0), []
    for k in range(16):
        trace = 0.01 * (k - 8)
        atoms = bulk("NaCl", "rocksalt", a=5.2)
        atoms.set_cell(atoms.cell.array * (1.0 + trace / 3.0), scale_atoms=True)
        pressure = [trace] * 3 + [0.0] * 3
        labels = {"energy": 0.5 * trace**2, "forces": 0.01 * rng.normal(size=(2, 3)), "stress": pressure}
        records.append(
            make_record(
                pos=atoms.positions,
                atomic_numbers=atoms.numbers,
                cell=atoms.cell.array,
                pbc=[True] * 3,
                labels=labels,
                id=f"s{k}",
            )
        )
    with StoreWriter(path, {"level_of_theory": "made up"}) as writer:
        writer.append(records)
    return path


def config(folder: Path, kind: str) -> Path:
    values = {
        "run": {"dir": str(folder / "run"), "threads": 1},
        "from": "scratch",
        "model": {"preset": "tiny"},
        "tasks": {
            "salt": {
                "store": str(folder / "salt"),
                "graph": {"cutoff": 4.0, "max_neighbors": 20},
                "forces": {"kind": kind, "weight": 0.0 if kind == "gradient" else 1.0},
                "stress": {"weight": 1.0},
                "split": {"train": 10, "val": 6},
            }
        },
        "sampling": {"batch": {"structures": 5}},
        "train": {"epochs": 15, "optimizer": {"lr": 2.0e-3}, "ema": None},
        "checkpoint": {"every": 15},
        "validate": {"every": 5, "metric": "salt/stress"},
    }
    file = folder / "tune.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_run_learns_it(tmp_path: Path) -> None:
    """From the file to the report: thirty steps bring the error below that of predicting no stress."""
    write_crystals(tmp_path / "salt")
    resolved = load_finetune(config(tmp_path, "gradient"))
    (outcome,) = run_finetune([(resolved, check_finetune(resolved))])
    assert outcome.status == "finished"
    found = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["metrics"]["val"]
    (task,) = load_bundle(tmp_path / "run" / "final").tasks
    assert task.stress == StressTarget(weight=1.0)
    assert task.scale("stress") == task.scale("energy")
    nothing = 1000.0 * np.mean([abs(0.01 * (k - 8)) / 2.0 for k in range(16)])
    assert found["salt/stress_mae"] < 0.7 * nothing


def test_direct_forces_have_no_stress(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"`stress` is a derivative of the energy: it needs `forces: \{kind: gradient\}`"
    ):
        load_finetune(config(tmp_path, "direct"))
