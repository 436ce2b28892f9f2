"""Whole runs on dipoles and classes: from the store to a prediction; labels that do not fit are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms

from jmp_ds.cli.bundle_work import evaluate_bundle
from jmp_ds.config import load_finetune
from jmp_ds.config.checks import check_finetune
from jmp_ds.data.record import BadRecord, make_record
from jmp_ds.data.store import StoreWriter
from jmp_ds.errors import UserError
from jmp_ds.experiment.session import primary_metric
from jmp_ds.finetune import run_finetune
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.extxyz import frame
from jmp_ds.inference.predictor import Predictor
from jmp_ds.tasks.specs import ClassTarget, EnergyTarget, ForcesTarget, Normalization, StressTarget, Task

NUMBERS = [8, 1, 1]


def positions(k: int) -> np.ndarray:
    rng = np.random.default_rng(k)
    return np.array([[0.0, 0, 0], [0.95, 0, 0], [-0.3, 0.9, 0]]) * (1.0 + 0.02 * k) + 0.02 * rng.normal(size=(3, 3))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("targets") / "water"
    records = []
    for k in range(16):
        pos = positions(k)
        labels = {"dipole": pos[0] - pos[1:].mean(axis=0), "phase": k % 3, "alpha": 5.0 * k}
        records.append(make_record(pos=pos, atomic_numbers=NUMBERS, labels=labels, id=f"s{k}"))
    with StoreWriter(path, {"level_of_theory": "made up"}) as writer:
        writer.append(records)
    return path


def run(folder: Path, store: Path, source: Any = "scratch", **targets: Any) -> dict[str, float]:
    """Metrics on validation structures."""
    task = {"store": str(store), "graph": {"cutoff": 5.0}, "split": {"train": 12, "val": 4}, **targets}
    values = {
        "run": {"dir": str(folder / "run"), "threads": 1},
        "from": source,
        **({"model": {"preset": "tiny"}} if source == "scratch" else {}),
        "tasks": {"water": task},
        "sampling": {"batch": {"structures": 6}},
        "train": {"epochs": 20, "optimizer": {"lr": 2.0e-3}, "ema": None},
        "validate": {"every": 10},
        "checkpoint": {"every": 20},
    }
    file = folder / "tune.yaml"
    file.write_text(yaml.safe_dump(values))
    resolved = load_finetune(file)
    (outcome,) = run_finetune([(resolved, check_finetune(resolved))])
    assert outcome.status == "finished"
    found: dict[str, float] = json.loads((folder / "run" / "report" / "metrics.json").read_text())["metrics"]["val"]
    return found


def test_dipoles_and_classes_together(store: Path, tmp_path: Path) -> None:
    """Two heads on one backbone; the dipole is learned, and both are predicted under readable names."""
    classes = {"label": "phase", "classes": 3, "class_weights": [1.0, 2.0, 1.0], "dropout": 0.2}
    found = run(tmp_path, store, dipole={"atomic": True}, classification=classes)
    lengths = [np.abs(positions(k)[0] - positions(k)[1:].mean(axis=0)).mean() for k in range(16)]
    assert found["water/dipole_mae"] < 0.5 * float(np.mean(lengths))
    assert 0.0 <= found["water/phase_balanced_accuracy"] <= 1.0
    assert "water/phase_roc_auc" not in found
    start = json.loads((tmp_path / "run" / "start.json").read_text())["errors"]["constant"]
    assert start["water/dipole_mae"] == pytest.approx(np.mean(lengths), rel=0.3)
    assert start["water/phase_balanced_accuracy"] == pytest.approx(1 / 3)  # always the first class
    atoms = Atoms(NUMBERS, positions(3))
    (prediction,) = Predictor(tmp_path / "run" / "best").predict([atoms])
    assert set(prediction.scalars) == {"dipole_x", "dipole_y", "dipole_z", "phase", "phase_p0", "phase_p1", "phase_p2"}
    assert sum(prediction.scalars[f"phase_p{k}"] for k in range(3)) == pytest.approx(1.0)
    assert "dipole_x=" in frame(atoms, prediction)
    (tmp_path / "again").mkdir()
    kept = {"bundle": str(tmp_path / "run" / "best"), "heads": "keep"}
    run(tmp_path / "again", store, kept, dipole={"atomic": True})
    now = json.loads((tmp_path / "again" / "run" / "start.json").read_text())["errors"]["before step 1"]
    assert now["water/dipole_mae"] == pytest.approx(found["water/dipole_mae"], rel=1e-4)  # both its heads came along
    with pytest.raises(UserError, match="predicts 'phase' by a head of another kind"):
        run(tmp_path / "again", store, kept, scalar={"label": "phase"})


def test_evaluation_refuses_classes_that_the_model_has_not(store: Path, tmp_path: Path) -> None:
    """Also on a store, where labels are not looked at one by one."""
    two = np.array([k for k in range(16) if k % 3 != 2])
    np.save(tmp_path / "train.npy", two[:8])
    np.save(tmp_path / "val.npy", two[8:])
    files = {part: str(tmp_path / f"{part}.npy") for part in ("train", "val")}
    run(tmp_path, store, classification={"label": "phase"}, split={"files": files})
    with pytest.raises(UserError, match="goes from 0 to 2, but 2 classes"):
        evaluate_bundle(tmp_path / "run" / "best", store, None, None, None, "cpu", "float32", 1000, "auto", "auto")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"dipole": {"norm": True}}, "has 3 numbers per structure, not 1; set dipole.norm to false"),
        ({"dipole": {"label": "alpha"}}, "has 1 numbers per structure, not 3; set dipole.norm to true"),
        ({"classification": {"label": "phase"}}, "goes from 0 to 2, but 2 classes are numbered 0 to 1"),
        ({"classification": {"label": "phase", "classes": 3, "kind": "binary"}}, "binary classification of 3 classes"),
        ({"classification": {"label": "fase"}}, "'fase'; did you mean 'phase'?"),
        ({"scalar": {"label": "alpha"}, "dipole": {"label": "alpha"}}, "the same label twice"),
        ({"scalar": {"label": "stress"}}, "write `stress:` as its own key"),
    ],
)
def test_labels_that_do_not_fit(store: Path, tmp_path: Path, targets: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, store, **targets)
    assert message in str(caught.value)


def test_what_decides_which_checkpoint_is_best() -> None:
    """Of classes 1 - balanced accuracy; of stress the error in eV/Å³ over its scale, unless it is named."""
    graph = GraphSettings()
    phase = Task(name="a", graph=graph, classification=ClassTarget(label="phase"))
    found = {"a/phase_accuracy": 0.9, "a/phase_balanced_accuracy": 0.75, "a/phase_cross_entropy": 0.3}
    assert primary_metric(found, [phase], None) == pytest.approx(0.25)
    assert primary_metric(found, [phase], "a/phase") == pytest.approx(0.25)
    norms = {k: Normalization(std=0.5) for k in ("energy", "forces", "stress")}
    targets = {"energy": EnergyTarget(), "forces": ForcesTarget(kind="gradient"), "stress": StressTarget()}
    salt = Task(name="b", graph=graph, normalization=norms, **targets)
    both = {"b/stress_mae": 20.0, "b/forces_mae": 100.0}
    assert primary_metric(both, [salt], None) == pytest.approx(0.2)
    assert primary_metric({"b/stress_mae": 20.0}, [salt], None) == pytest.approx(0.04)
    with pytest.raises(UserError, match="no validation structure carries b/energy"):
        primary_metric(both, [salt], "b/energy")


def test_only_a_dipole_may_be_a_vector() -> None:
    with pytest.raises(BadRecord, match="'other' has shape"):
        make_record(pos=positions(0)[:2], atomic_numbers=NUMBERS[:2], labels={"other": np.zeros(3)}, id="x")
