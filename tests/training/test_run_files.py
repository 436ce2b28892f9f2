"""Random states, stop requests, the outcome and the log: the small parts that a run leaves or relies on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from jmp_ds.training.metrics_log import MetricsLog, read_metrics
from jmp_ds.training.outcome import Outcome, read_outcome
from jmp_ds.training.progress import RunProgress
from jmp_ds.training.randomness import preserved_random_state, random_state, seed_all, set_random_state
from jmp_ds.training.stopping import StopRequest


def draw() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(()))  # noqa: NPY002


def test_random_state_goes_through_a_file(tmp_path: Path) -> None:
    seed_all(3, 0)
    draw()  # leaves halves of Gaussian pairs behind
    torch.save(random_state(), tmp_path / "state.pt")
    expected = [draw() for _ in range(3)]
    seed_all(4, 0)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_seeds_differ_by_rank_and_repeat() -> None:
    drawn = {}
    for rank in (0, 1, 0):
        seed_all(7, rank)
        values = draw()
        assert drawn.setdefault(rank, values) == values
    assert not set(drawn[0]) & set(drawn[1])


def test_validation_draws_leave_no_trace() -> None:
    seed_all(1, 0)
    state = random_state()
    expected = draw()
    set_random_state(state)
    with preserved_random_state():
        draw()
    assert draw() == expected


@pytest.mark.parametrize("pause", [0.0, 0.4])
def test_first_signal_asks_second_ends(pause: float) -> None:
    pid = os.fork()
    if pid == 0:  # the child is the one that is ended
        stop = StopRequest(grace=60.0, burst=0.2)
        with stop.listening():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(5 if stop.reason == "SIGINT" else 6)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (128 + signal.SIGTERM if pause else 5)


@pytest.mark.parametrize("boundary", [False, True])
def test_without_a_boundary_the_process_ends(tmp_path: Path, boundary: bool) -> None:
    pid = os.fork()
    if pid == 0:
        stop = StopRequest(grace=0.2, on_abort=lambda reason: (tmp_path / "reason").write_text(reason) and None)
        with stop.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            if boundary:
                stop.reached_boundary()
            time.sleep(2.0)
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (7 if boundary else 128 + signal.SIGTERM)
    if not boundary:
        assert "no step boundary within 0.2 s" in (tmp_path / "reason").read_text()


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_outcome(tmp_path: Path) -> None:
    assert read_outcome(tmp_path) is None
    outcome = Outcome("stopped", "SIGTERM", 5, 100)
    outcome.write(tmp_path / "run")
    assert read_outcome(tmp_path / "run") == outcome
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["outcome.json"]


def test_log_continues_where_the_run_does(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": 1.0 / step, "grad_norm": float("inf"), "weights": "averaged"})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"kind": "tra')  # cut off by a crash
    log = MetricsLog(tmp_path, step=2)
    log.write("train", 3, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert lines[0]["grad_norm"] is None
    assert read_metrics(tmp_path) == lines
    assert read_metrics(tmp_path / "nowhere") == []


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run", enabled=False)
    log.write("train", 1, {"loss": 1.0})
    log.close()
    assert not (tmp_path / "run").exists()


def test_progress_tells_rate_and_time_left() -> None:
    console = Console(record=True, force_terminal=True, width=120)
    with RunProgress(100, done=50, console=console) as progress:
        time.sleep(0.05)
        progress.advance(75, 25, "lr 1e-3")
        assert 0 < progress.rate <= 25 / 0.05
        progress.say("validation")
    text = console.export_text()
    assert "75/100" in text
    assert "structures/s" in text
    assert "lr 1e-3" in text
    assert "validation" in text
