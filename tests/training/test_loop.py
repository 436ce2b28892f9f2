"""Whole runs: interrupted equals uninterrupted, to the bit; ends before the length; files left behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_spawn import finish, launch, run

from jmp_ds.training.metrics_log import read_metrics
from jmp_ds.training.outcome import read_outcome

STAGES = [0, 1, 2, 3]
#: Steps within the first epoch, right after a resumption, across epochs; and in the next validation.
INTERRUPTIONS = [2, 3, -1, 9]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loops")
    run(2, "training_loops:loops", {"out": str(out), "stages": STAGES, "interruptions": INTERRUPTIONS})
    return out


@pytest.fixture(scope="module")
def resumed(loops: Path) -> tuple[Path, list[dict[str, Any]]]:
    return loops, [torch.load(loops / f"resumed_{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_equals_uninterrupted(resumed: tuple, stage: int) -> None:
    for rank, results in enumerate(resumed[1]):
        straight, broken = results[f"{stage}/straight"], results[f"{stage}/broken"]
        for part in straight:
            assert same(straight[part], broken[part]), (rank, part)
        first = results[f"{stage}/straight"]["weights"]["embedding.weight"]
        assert same(first, resumed[1][0][f"{stage}/straight"]["weights"]["embedding.weight"])
    drawn = [r[f"{stage}/straight"]["drawn"] for r in resumed[1]]
    assert not torch.equal(*drawn), "both processes draw the same numbers"


@pytest.mark.parametrize("stage", STAGES)
def test_stops_at_the_boundary_that_follows_the_signal(resumed: tuple, stage: int) -> None:
    for results in resumed[1]:
        straight, *broken = results[f"{stage}/outcomes"]
        assert [o["status"] for o in broken] == ["stopped"] * len(INTERRUPTIONS) + ["finished"]
        # The signal came in the middle of the accumulation of step `at`, counted from 0: that step was finished.
        steps = [o["step"] for o in broken[:-1]]
        assert [s for s, at in zip(steps, INTERRUPTIONS, strict=True) if at >= 0] == [
            at + 1 for at in INTERRUPTIONS if at >= 0
        ]
        assert 4 <= steps[2] < 10, "not in a validation between"
        assert all(o["reason"] == "SIGUSR1" for o in broken[:-1])
        assert (broken[-1]["step"], broken[-1]["consumed"]) == (straight["step"], straight["consumed"])


def test_logs_of_both_runs_agree(resumed: tuple) -> None:
    out, _ = resumed

    def numbers(name: str) -> list[dict[str, Any]]:
        lines = read_metrics(out / name)
        return [{k: v for k, v in line.items() if k != "structures_per_second"} for line in lines]

    straight = numbers("straight_1")
    assert straight == numbers("broken_1")
    assert [line["step"] for line in straight if line["kind"] == "train"] == list(range(1, straight[-1]["step"] + 1))
    validated = [line for line in straight if line["kind"] == "validate"]
    assert len(validated) >= 6
    assert all(line["weights"] == "averaged" for line in validated)
    assert list((out / "straight_1" / "tensorboard").glob("events*"))


def test_run_folder(resumed: tuple) -> None:
    out, results = resumed
    folder = out / "broken_1"
    outcome = read_outcome(folder)
    assert outcome is not None
    assert (outcome.status, outcome.reason) == ("finished", "end of the run")
    checkpoints = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert len(checkpoints) == 3, checkpoints
    assert (folder / "latest").read_text() == f"checkpoints/step_{outcome.step}\n"
    final = torch.load(folder / "final.pt")
    weights = results[0]["1/broken"]["weights"]
    assert final.keys() == weights.keys()
    assert not torch.equal(final["embedding.weight"], weights["embedding.weight"]), "not the averaged weights"
    best = json.loads((folder / "best.json").read_text())
    validated = [line for line in read_metrics(folder) if line["kind"] == "validate"]
    assert best["metrics"]["energy_mae"] == min(line["energy_mae"] for line in validated)


def test_divergence(loops: Path) -> None:
    message = json.loads((loops / "ends.json").read_text())["message"]
    assert "3 steps in a row had a loss that is not finite" in message
    assert "toy-" in message
    events = [line for line in read_metrics(loops / "diverged") if line["kind"] == "event"]
    assert len(events) == 3
    assert all(i.startswith("toy-") for e in events for i in e["ids"])
    outcome = read_outcome(loops / "diverged")
    assert outcome is not None
    assert outcome.status == "failed"


def test_early_stopping_stays_stopped(loops: Path) -> None:
    first, second = json.loads((loops / "ends.json").read_text())["early"]
    assert first[1] == "finished"
    assert "no improvement in 2 validations" in first[2]
    assert first == second


def test_damaged_checkpoints_are_passed_over_together(loops: Path) -> None:
    result = json.loads((loops / "damaged.json").read_text())
    names = result["names"]
    for loaded in result["loaded"]:
        assert loaded[:4] == [names[-1], names[-2], names[-3], names[-4]]
        assert loaded[4:6] == [names[-4], names[-4]]
        assert "none of the checkpoints" in loaded[6]


def test_full_disk_ends_the_run_on_all_and_leaves_the_older_checkpoint(loops: Path) -> None:
    for rank in (0, 1):
        said = json.loads((loops / f"unwritable_{rank}.json").read_text())
        assert len(said) == 4
        for message, left in (said[:2], said[2:]):
            assert "could not be written: process 1: no space left on device" in message
            assert left == "step_0"
    outcome = read_outcome(loops / "unwritable")
    assert outcome is not None
    assert outcome.status == "failed"


@pytest.mark.parametrize("phases", [("commit",), pytest.param(("write", "commit"), marks=pytest.mark.slow)])
def test_killed_while_writing_a_checkpoint(tmp_path: Path, phases: tuple[str, ...]) -> None:

    def start(name: str, phase: str) -> Any:
        return launch(1, "training_loops:killed", {"out": str(tmp_path / name), "phase": phase})[0]

    for code, output in finish([start(phase, phase) for phase in phases]):
        assert code == -signal.SIGKILL, output
    for phase in phases:
        outcome = read_outcome(tmp_path / phase)
        assert outcome is not None
        assert outcome.status == "running", "a killed run must not look ended"
        assert list((tmp_path / phase / "checkpoints").glob("*.tmp"))
    for code, output in finish([start(name, "none") for name in (*phases, "straight")]):
        assert code == 0, output
    straight = torch.load(tmp_path / "straight" / "everything.pt")
    for phase in phases:
        ours = torch.load(tmp_path / phase / "everything.pt")
        assert all(same(ours[part], straight[part]) for part in straight)
        assert not list((tmp_path / phase / "checkpoints").glob("*.tmp"))
