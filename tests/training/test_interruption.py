"""A hung process, a dead one, the end of the wall time, a full disk: the run ends in time and says why."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import same
from training_interruption import HERE, LIMIT

from jmp_ds.training.outcome import Outcome, read_outcome
from jmp_ds.training.processes import explained
from jmp_ds.training.stopping import Deadline, StopRequest
from jmp_ds.training.watchdog import HUNG, PATIENT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("interruption")
    command = [sys.executable, str(HERE / "training_interruption.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, cwd=HERE)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return out


@pytest.fixture(scope="module")
def played(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "played.json").read_text())


def ended(folder: Path) -> Outcome:
    outcome = read_outcome(folder)
    assert outcome is not None
    return outcome


def test_a_hung_process_is_ended_and_says_where_it_was(folder: Path, played: dict) -> None:
    scene = played["hung"]
    assert HUNG in scene["codes"], scene
    assert 0 not in scene["codes"]
    assert scene["seconds"] < 60
    stacks = {p.name: p.read_text() for p in (folder / "hung").glob("hung_process_*.txt")}
    assert any("in asleep" in text for text in stacks.values()) or any("all_reduce" in t for t in stacks.values()), (
        stacks
    )
    outcome = ended(folder / "hung")
    assert outcome.status == "failed"
    assert "no sign of life" in outcome.reason or "lost contact" in outcome.reason
    assert outcome.step == 2


def test_a_process_that_holds_the_interpreter_is_ended_too(folder: Path, played: dict) -> None:
    assert played["locked"]["codes"] == [1]
    assert played["locked"]["seconds"] < 60
    text = (folder / "locked" / "hung_process_0.txt").read_text()
    assert "Timeout" in text
    assert "in asleep_with_the_lock" in text


def test_long_validations_and_checkpoints_are_no_hang(folder: Path, played: dict) -> None:
    assert played["slow"]["codes"] == [0], played["slow"]
    assert ended(folder / "slow").status == "finished"
    assert played["slow"]["seconds"] > 8 * 0.5 * LIMIT, "nothing was slow"
    assert not list((folder / "slow").glob("hung_process_*"))


def test_all_leave_when_one_is_dead(folder: Path, played: dict) -> None:
    scene = played["dead"]
    assert scene["codes"] == [1, -9], scene
    assert scene["spread"] < 30
    outcome = ended(folder / "dead")
    assert outcome.status == "failed"
    assert "lost contact to another process" in outcome.reason
    assert outcome.step == 2


def test_the_run_stops_before_the_wall_time_with_a_checkpoint(folder: Path, played: dict) -> None:
    assert played["late"]["codes"] == [0, 0], played["late"]
    outcome = ended(folder / "late")
    assert (outcome.status, outcome.reason) == ("stopped", "the wall time is nearly over")
    assert outcome.step >= 2
    assert (folder / "late" / "latest").read_text() == f"checkpoints/step_{outcome.step}\n"


def test_a_full_disk_ends_the_run_and_loses_nothing(folder: Path, played: dict) -> None:
    scene = played["disk"]
    if "skipped" in scene:
        pytest.skip(scene["skipped"])
    assert scene["first"]["codes"] == [1], scene
    assert "No space left on device" in scene["first"]["said"][0] or "could not be written" in scene["first"]["said"][0]
    assert scene["left"], "no checkpoint at all fitted; the disk is too small for this test"
    assert not [name for name in scene["left"] if name.endswith(".tmp")]
    assert scene["second"]["codes"] == [0], scene
    ours = torch.load(folder / "disk_everything.pt", weights_only=False)
    straight = torch.load(folder / "straight" / "everything_0.pt", weights_only=False)
    assert same(ours, straight)


def test_the_deadline_follows_what_steps_and_checkpoints_take() -> None:
    assert not Deadline(None, save=1e9).reached
    deadline = Deadline(100.0)
    assert not deadline.reached
    deadline.note_step(10.0)
    deadline.note_save(30.0)
    assert deadline.needed == 65.0
    assert not deadline.reached
    deadline.note_save(60.0)
    assert deadline.reached
    for _ in range(50):
        deadline.note_step(1.0)  # the slow one is long ago
    assert deadline.needed == 92.0


def test_a_checkpoint_may_be_finished_after_a_request_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, aborted = StopRequest(grace=0.05), []
    monkeypatch.setattr(stop, "_abort", lambda *why: aborted.append(why))
    with stop.saving():
        stop._give_grace(15, "SIGTERM")
        time.sleep(0.4)
        assert not aborted
    time.sleep(0.3)
    assert aborted
    stop.reached_boundary()


def test_lost_connections_are_explained() -> None:
    assert "another process" in explained(RuntimeError("[gloo/tcp] Connection closed by peer [127.0.0.1]:1"))
    late = explained(RuntimeError("[gloo] Timed out waiting 60000ms for recv operation to complete"))
    assert "waited in vain for another process" in late
    assert "its message tells why" not in late
    assert explained(ValueError("timed out")) == "ValueError: timed out"
    assert explained(RuntimeError("shapes do not match")) == "RuntimeError: shapes do not match"
    assert PATIENT > 1
