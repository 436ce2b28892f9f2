"""Pre-training from a file to a bundle with a report; resuming; two processes through the launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_stores import write_pretrain

from jmp_ds.bundle import load_bundle
from jmp_ds.config import load_pretrain
from jmp_ds.config.checks import check_pretrain
from jmp_ds.errors import UserError
from jmp_ds.experiment import recompute, session
from jmp_ds.experiment.resume import differences
from jmp_ds.experiment.session import primary_metric
from jmp_ds.graphs import unbuilt
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models import backbone
from jmp_ds.pretrain import run_pretrain
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, Task
from jmp_ds.training.metrics_log import read_metrics
from jmp_ds.training.outcome import Outcome, read_outcome


def pretrain(file: Path, *overrides: str) -> Outcome:
    """One run in this process."""
    resolved = load_pretrain(file, overrides)
    return run_pretrain(resolved, check_pretrain(resolved))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one epoch over two small stores."""
    folder = tmp_path_factory.mktemp("pretrain")
    outcome = pretrain(write_pretrain(folder), "train.epochs=2")
    assert outcome.status == "finished"
    return folder


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    run = finished / "run"
    assert read_outcome(run) is not None
    bundle = load_bundle(run / "final")  # refuses unfitted scale factors
    assert [t.name for t in bundle.tasks] == ["molecules", "crystals"]
    assert bundle.tasks[0].normalize_by("energy").references
    assert bundle.tasks[0].level_of_theory == "made up"
    assert bundle.provenance["training"]["weights"] == "averaged"
    assert bundle.provenance["data"]["molecules"]["level_of_theory"] == "made up"
    for name in ("config.yaml", "metrics.jsonl", "latest", "best/bundle.json", "statistics/molecules.json"):
        assert (run / name).exists(), name
    for name in ("report.md", "loss.png", "parity_val.png", "metrics.json"):
        assert (run / "report" / name).stat().st_size > 0, name
    assert "![parity on val](parity_val.png)" in (run / "report" / "report.md").read_text()
    metrics = json.loads((run / "report" / "metrics.json").read_text())["metrics"]["val"]
    assert set(metrics) >= {"molecules/energy_mae", "crystals/forces_mae"}
    assert [row["step"] for row in read_metrics(run) if row["kind"] == "validate"]
    # whoever may look at a run may go on from it
    assert len({file.stat().st_mode for file in run.rglob("*") if file.is_file()}) == 1


def test_the_report_evaluates_the_exported_bundle(finished: Path) -> None:
    """The last validation (averaged weights, inside the loop) and the report (the bundle, read back) agree."""
    run = finished / "run"
    reported = json.loads((run / "report" / "metrics.json").read_text())["metrics"]["val"]
    last = [row for row in read_metrics(run) if row["kind"] == "validate"][-1]
    for name, value in reported.items():
        assert last[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(
    ("memory", "word", "story"),
    [
        (2**20, "auto", "activations are recomputed: keeping them takes about 0.0 GiB of 0.0 GiB for 150 edges"),
        (2**40, "auto", "activations are kept: keeping them takes about 0.0 GiB of 1024.0 GiB for 150 edges"),
        (2**20, "off", "activations are kept, as configured"),
        (2**40, "on", "activations are recomputed, as configured"),
    ],
)
def test_recomputation_follows_memory_unless_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    memory: int,
    word: str,
    story: str,
) -> None:
    """The line says it, the training does it, and the bundle knows nothing of it."""
    calls: list[object] = []
    monkeypatch.setattr(recompute, "available", lambda _: memory)
    monkeypatch.setattr(backbone, "checkpoint", lambda f, *args, **_: calls.append(f) or f(*args))
    pretrain(write_pretrain(tmp_path), f"model.recompute={word}", "train={steps: 1}")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("message passing")]
    assert lines == [f"message passing: torch on cpu; {story}"]
    assert bool(calls) == ("recomputed" in story)
    assert not load_bundle(tmp_path / "run" / "final").config.recompute


def test_recomputation_is_not_chosen_where_it_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With gradient forces, a batch that may not fit is told as such."""
    monkeypatch.setattr(recompute, "available", lambda _: 2**20)
    kinds = [f"tasks.{name}.forces={{kind: gradient, weight: 5}}" for name in ("molecules", "crystals")]
    pretrain(write_pretrain(tmp_path), *kinds, "train={steps: 1}")
    told = capfd.readouterr().err
    assert "activations are kept: keeping them takes about" in told
    assert "make batches smaller" in told


def test_zero_three_trains_and_exports(tmp_path: Path) -> None:
    """Parameters in pieces, bfloat16: what leaves the run is whole and float32."""
    file, engine = write_pretrain(tmp_path), "engine.deepspeed=zero3_bf16_weights"
    assert pretrain(file, engine, "train={steps: 2}").status == "finished"
    state = load_bundle(tmp_path / "run" / "final").state
    assert all(tensor.numel() and tensor.dtype == torch.float32 for tensor in state.values())
    rounded = [name for name, t in state.items() if t.dim() > 1 and torch.equal(t, t.bfloat16().float())]
    assert not rounded
    assert (tmp_path / "run" / "report" / "metrics.json").exists()


def test_a_finished_run_started_again_trains_nothing(finished: Path) -> None:
    before = (finished / "run" / "final" / "model.safetensors").read_bytes()
    outcome = pretrain(finished / "pretrain.yaml", "train.epochs=2")
    assert outcome.status == "finished"
    assert (finished / "run" / "final" / "model.safetensors").read_bytes() == before


def test_a_resume_refuses_what_changes_its_meaning(finished: Path) -> None:
    with pytest.raises(UserError, match=r"train\.optimizer\.lr"):
        pretrain(finished / "pretrain.yaml", "train.epochs=2", "train.optimizer.lr=1e-5")
    with pytest.raises(UserError, match="holds a checkpoint"):
        pretrain(finished / "pretrain.yaml", "train.epochs=2", "run.resume=false")
    free = ["checkpoint.keep=1", "sampling.graphs=device"]
    assert pretrain(finished / "pretrain.yaml", "train.epochs=2", *free).status == "finished"


def test_a_run_of_an_older_version_goes_on(finished: Path) -> None:
    """Settings that did not exist then are at their defaults."""
    file = finished / "run" / "config.yaml"
    values = yaml.safe_load(file.read_text())
    del values["tasks"]["molecules"]["weight"], values["run"]["hung_after"]
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    assert pretrain(finished / "pretrain.yaml", "train.epochs=2").status == "finished"


def test_differences_name_dotted_keys() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "e": None, "d": [1]}
    assert list(differences(old, new)) == [("a.c", 2, 3)]
    assert list(differences({"a": {"b": 1}}, {"a": {}})) == [("a.b", 1, None)]


def test_a_run_in_steps_ends_after_them(tmp_path: Path) -> None:
    outcome = pretrain(write_pretrain(tmp_path), "train.steps=3", "train.ema=null")
    assert (outcome.status, outcome.step) == ("finished", 3)
    assert load_bundle(tmp_path / "run" / "final").provenance["training"]["weights"] == "current"


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    states = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        folder = tmp_path / name
        folder.mkdir()
        pretrain(write_pretrain(folder), "train.steps=2", f"run.seed={seed}")
        states.append(load_bundle(folder / "run" / "final").state)
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_graphs_built_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With dropout, two workers, accumulation, batches that lack a task, scale factors and a report, the run is the one
    with graphs from the host. Shifts along the axes of a cubic cell are not rounded, so it is so to the last bit.
    """
    tasks: set[frozenset[int]] = set()
    count = session.count_labels
    monkeypatch.setattr(session, "count_labels", lambda b, t: tasks.add(frozenset(b.task.tolist())) or count(b, t))
    options = ["train.edge_dropout=0.2", "train.steps=10", "model.recompute=off"]
    options.append("sampling={batch: {edges: 44}, workers: 2, accumulation: 2}")
    told, found = [], []
    for place in ("host", "device"):
        folder = tmp_path / place
        folder.mkdir()
        pretrain(write_pretrain(folder), *options, f"sampling.graphs={place}")
        told += [line for line in capfd.readouterr().err.splitlines() if line.startswith("graphs: ")]
        report = json.loads((folder / "run" / "report" / "metrics.json").read_text())["metrics"]
        losses = [row["loss"] for row in read_metrics(folder / "run") if row["kind"] == "train"]
        found.append((load_bundle(folder / "run" / "final").state, report, losses))
        monkeypatch.setattr(unbuilt, "build_edges", None)  # the second run must do without
    assert told == ["graphs: built on the host", "graphs: built on the device"]
    (weights, *numbers), (other_weights, *other_numbers) = found
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert numbers == other_numbers
    assert numbers[1]
    assert tasks == {frozenset({0, 1}), frozenset({0}), frozenset({1})}


def test_two_processes_through_the_launcher(tmp_path: Path) -> None:
    """The launcher starts two processes that agree, and the exit code is right both when it works and when it does not."""
    file = write_pretrain(tmp_path)
    command = [sys.executable, "-m", "jmp_ds.cli", "pretrain", str(file), "--processes", "2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "deepspeed.launcher.runner" in run.stderr
    outcome = read_outcome(tmp_path / "run")
    assert outcome is not None
    assert outcome.status == "finished"
    assert json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["metrics"]["val"]
    failed = subprocess.run([*command, "run.resume=false"], capture_output=True, text=True, timeout=300)
    assert failed.returncode == 2
    assert failed.stderr.count("holds a checkpoint") == 1


def test_processes_without_work_are_told(tmp_path: Path) -> None:
    """The published recipe has four structures per step, over all processes."""
    file = write_pretrain(tmp_path)
    four = load_pretrain(file, ["sampling.batch={structures: 4}"]).config
    assert "leave 60 of 64 processes without work" in session._idle(four, 64)
    assert session._idle(four, 4) == session._idle(load_pretrain(file).config, 64) == ""


def test_the_primary_metric_is_in_units_of_the_scale() -> None:
    graph = GraphSettings()
    norms = {"energy": Normalization(std=2.0), "forces": Normalization(std=0.5)}
    both = Task(name="a", graph=graph, energy=EnergyTarget(), forces=ForcesTarget(), normalization=norms)
    energy = Task(name="b", graph=graph, energy=EnergyTarget())
    metrics = {"a/energy_mae": 4.0, "a/forces_mae": 100.0, "b/energy_mae": 3.0}
    assert primary_metric(metrics, [both, energy], None) == pytest.approx(0.1 / 0.5)
    assert primary_metric(metrics, [energy], None) == pytest.approx(3.0)
    assert primary_metric(metrics, [both], "a/energy") == 4.0
    with pytest.raises(UserError, match="no validation structure"):
        primary_metric({}, [both], None)
