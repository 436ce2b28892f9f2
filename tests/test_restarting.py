"""Runs that start again by themselves, and runs that go on with other processes than they began with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_stores import write_pretrain

from jmp_ds.cli.base import MISTAKE
from jmp_ds.cli.launching import free_port
from jmp_ds.cli.restarting import Attempts, remaining_wall_time
from jmp_ds.config import load_pretrain
from jmp_ds.config.checks import check_pretrain
from jmp_ds.pretrain import run_pretrain
from jmp_ds.training.loop import Loop
from jmp_ds.training.outcome import NewOutcomes, Outcome, read_outcome


class Script:
    """A command that ends as it is told, start after start: (exit code, status it leaves, step of its checkpoint)."""

    def __init__(self, folder: Path, *ends: tuple[int, str | None, int | None]) -> None:
        self.folder, self.ends, self.starts = folder, list(ends), 0

    def __call__(self, again: bool) -> int:
        assert again == (self.starts > 0)
        code, status, step = self.ends[min(self.starts, len(self.ends) - 1)]
        self.starts += 1
        if step is not None:
            (self.folder / "latest").write_text(f"checkpoints/step_{step}\n")
        if status is not None:
            time.sleep(0.002)  # another time stamp
            Outcome(status, "made up").write(self.folder)  # type: ignore[arg-type]
        return code


FAILS = (1, "failed", None)


@pytest.mark.parametrize(
    ("ends", "restarts", "starts", "code"),
    [
        ([FAILS, FAILS, (0, "finished", 9)], 2, 3, 0),
        ([FAILS], 2, 3, 1),
        ([FAILS], 0, 1, 1),
        ([FAILS, (3, "stopped", 1)], 5, 2, 3),
        ([(MISTAKE, "failed", None)], 5, 1, MISTAKE),
        # a killed one leaves `running`; one that dies before the loop leaves nothing
        ([(-9, "running", None), (1, None, None), (0, "finished", 1)], 2, 3, 0),
        # progress makes the count begin anew
        ([FAILS, (1, "failed", 1), FAILS, (1, "failed", 2), FAILS, (1, "failed", 3), (0, "finished", 4)], 2, 7, 0),
        # the launcher's exit code says nothing
        ([(0, "failed", None), (0, "finished", None)], 1, 2, 0),
    ],
)
def test_restarts(tmp_path: Path, ends: list, restarts: int, starts: int, code: int) -> None:
    script = Script(tmp_path, *ends)
    assert Attempts(script, [tmp_path], restarts, pause=0.001).run() == code
    assert script.starts == starts


def test_an_outcome_of_an_earlier_start_does_not_count(tmp_path: Path) -> None:
    Outcome("finished").write(tmp_path)
    script = Script(tmp_path, (1, None, None), (0, "finished", 1))
    assert Attempts(script, [tmp_path], 1, pause=0.001).run() == 0
    assert script.starts == 2
    later = NewOutcomes([tmp_path])
    assert list(later) == [(tmp_path, None)]
    script(True)
    assert [(folder, found.status) for folder, found in later if found] == [(tmp_path, "finished")]


def test_a_run_that_was_cut_off_without_a_request_has_failed(tmp_path: Path) -> None:
    """A launcher ends the processes that are left with the signal that also asks them to stop."""

    def start(again: bool) -> int:
        time.sleep(0.002)
        Outcome("finished" if again else "stopped", "SIGTERM, and no boundary", cut_off=not again).write(tmp_path)
        return 0 if again else 1

    assert Attempts(start, [tmp_path], 1, pause=0.001).run() == 0
    assert Attempts(start, [tmp_path], 1, only_here=False, pause=0.001).run() == 1  # Slurm may have asked
    asked = Attempts(start, [tmp_path], 1, pause=0.001)
    asked.asked_to_stop.set()
    assert asked.run() == 1
    found = read_outcome(tmp_path)
    assert found is not None
    assert found.cut_off


def test_pauses_double(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Attempts(Script(tmp_path, FAILS), [tmp_path], 3, pause=0.5).run()
    told = [line for line in capfd.readouterr().err.splitlines() if "starting again in" in line]
    assert [line.split("starting again in ")[1].split(" s")[0] for line in told] == ["0", "1", "2"]  # 0.5, 1, 2
    assert "made up" in told[0]
    assert "restart 1 of 3" in told[0]


def test_a_request_to_stop_ends_the_pause(tmp_path: Path) -> None:
    attempts = Attempts(Script(tmp_path, FAILS), [tmp_path], 3, pause=60.0)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    assert attempts.run() == 1
    signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 30


def test_restarts_keep_to_the_wall_time_of_the_job() -> None:
    assert remaining_wall_time(None, 0.0) == []
    (word,) = remaining_wall_time(2.0, time.monotonic() - 3600.0)
    assert float(word.removeprefix("run.wall_time=")) == pytest.approx(1.0, abs=0.01)


def trainers(process: psutil.Process) -> list[psutil.Process]:
    """Processes below this one that train: those without children of this program."""
    below = [child for child in process.children(recursive=True) if "jmp_ds.cli" in child.cmdline()]
    return [child for child in below if not any("jmp_ds.cli" in c.cmdline() for c in child.children())]


#: One command for each machine.
WAYS = {
    "alone": [["pretrain", "FILE", "--auto-restart", "2"]],
    "processes": [["pretrain", "FILE", "--processes", "2", "--auto-restart", "2"]],
    "local": [["launch", "--with", "local", "--per-node", "2", "--auto-restart", "2", "pretrain", "FILE"]],
    "torchrun": [
        [
            *("launch", "--with", "torchrun", "--nodes", "2", "--node-rank", node, "--per-node", "1"),
            *("--master", "127.0.0.1:PORT", "--auto-restart", "2", "pretrain", "FILE"),
        ]
        for node in "01"
    ],
}


@pytest.mark.parametrize("way", [pytest.param(w, marks=[] if w == "local" else [pytest.mark.slow], id=w) for w in WAYS])
def test_a_killed_run_starts_again_and_finishes(tmp_path: Path, way: str) -> None:
    """The last process of the last machine is killed; torchrun's two machines are two agents on this one."""
    file, log = write_pretrain(tmp_path), tmp_path / "log.txt"
    values = {"FILE": str(file), "127.0.0.1:PORT": f"127.0.0.1:{free_port()}"}
    started: list[subprocess.Popen[bytes]] = []
    with log.open("w") as output:
        try:
            for words in WAYS[way]:
                words = [*(values.get(word, word) for word in words), "train.epochs=12", "checkpoint.every=1"]
                command = [sys.executable, "-m", "jmp_ds.cli", *words]
                started.append(subprocess.Popen(command, stdout=output, stderr=output))
            end = time.monotonic() + 200
            while not (tmp_path / "run" / "latest").exists():
                assert time.monotonic() < end, log.read_text()
                assert started[-1].poll() is None, log.read_text()
                time.sleep(0.02)
            trainers(psutil.Process(started[-1].pid))[-1].send_signal(signal.SIGKILL)
            codes = [process.wait(300) for process in started]
        finally:
            for process in started:
                for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                    child.kill()
                process.kill()
    assert codes == [0] * len(started), log.read_text()
    assert log.read_text().count("starting again in 10 s, restart 1 of 2") == len(started)
    assert "resumed from" in log.read_text()
    outcome = read_outcome(tmp_path / "run")
    assert outcome is not None
    assert outcome.status == "finished"


def test_one_process_then_two_at_another_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainers' own resume: other processes, other ZeRO stage, the same structures in the same order."""
    file = write_pretrain(tmp_path)
    monkeypatch.setattr(Loop, "_look_at_the_clock", lambda loop: loop.position.step >= 3 and loop.stop.ask("enough"))
    resolved = load_pretrain(file, ["train.ema=0.9"])
    stopped = run_pretrain(resolved, check_pretrain(resolved))
    assert (stopped.status, stopped.step) == ("stopped", 3)
    words = ["train.ema=0.9", "engine.deepspeed=zero2_fp32", "--processes", "2"]
    command = [sys.executable, "-m", "jmp_ds.cli", "pretrain", str(file), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.split())
    assert "engine.deepspeed: zero1_fp32 -> zero2_fp32" in told
    assert "was written by 1 processes at ZeRO stage 1, now there are 2 at stage 2" in told
    outcome = read_outcome(tmp_path / "run")
    assert outcome is not None
    assert outcome.status == "finished"
    assert outcome.step > 3
    assert outcome.consumed > stopped.consumed
