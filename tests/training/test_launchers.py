"""The launchers as users call them: deepspeed and torchrun, to the end and interrupted from the terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_spawn import HERE

from jmp_ds.training.outcome import Outcome, read_outcome


def start(launcher: str, out: Path, pause: float) -> subprocess.Popen:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    program = shutil.which(launcher, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None, f"{launcher} is not installed"
    if launcher == "deepspeed":
        command = [program, "--num_accelerators", "2", "--no_local_rank", "--master_port", port]
    else:
        command = [program, "--nproc_per_node", "2", "--master_port", port]
    arguments = json.dumps({"out": str(out), "pause": pause})
    command += [str(HERE / "training_spawn.py"), "training_loops:launched", arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=HERE, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(what: str, condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_interrupted_from_the_terminal_then_to_the_end(tmp_path: Path, launcher: str) -> None:
    def outcome() -> Outcome:
        return read_outcome(tmp_path) or Outcome("running")

    process = start(launcher, tmp_path, pause=0.7)
    try:
        wait_for("first step", lambda: (tmp_path / "metrics.jsonl").is_file())
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
        process.wait(60)
        wait_for("end of the run", lambda: outcome().status != "running")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (outcome().status, outcome().reason) == ("stopped", "SIGINT")
    stopped_at = outcome().step
    again = start(launcher, tmp_path, pause=0.0)
    try:
        assert again.wait(120) == 0
    finally:
        if again.poll() is None:
            os.killpg(again.pid, signal.SIGKILL)
    assert outcome().status == "finished"
    assert outcome().step > stopped_at > 0
