"""Many short runs of several processes from one parent that has imported everything: a start costs a fork, not seconds.

`python training_fork.py JOBS.json` runs the jobs [world, "module:function", arguments] one after the other.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def warm_up() -> None:
    """Import what children need. Nothing may compute here: threads do not survive a fork."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    libraries = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer", "torch._dynamo", "torch.utils.tensorboard")
    for name in (*libraries, "training_loops", "training_resharding"):
        importlib.import_module(name)


def fork(world: int, body: Callable[[], None], output: Path) -> list[int]:
    """Start `world` processes that call `body`, their place in the environment; output goes into OUTPUT_rank.txt."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            started.append(pid)
            continue
        code = 1
        try:
            with Path(f"{output}_{rank}.txt").open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if world > 1:
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
                os.environ.update(LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # nothing of the parent's is to be tidied up by a child
    return started


def wait(started: list[int], patience: float) -> tuple[list[int], list[float]]:
    """Exit codes (negative: signals) and times of death in seconds; what is left after the patience is killed."""
    codes: dict[int, int] = {}
    times: dict[int, float] = {}
    left, before = patience, time.monotonic()
    while len(codes) < len(started):
        for pid in started:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid], times[pid] = os.waitstatus_to_exitcode(status), time.monotonic()
        now = time.monotonic()
        left, before = left - min(now - before, 1.0), now  # time in which everything was suspended does not count
        if left < 0:
            for pid in started:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
            left = float("inf")
        time.sleep(0.005)
    return [codes[p] for p in started], [times[p] for p in started]


def run_jobs(jobs: list[tuple[int, str, dict[str, Any]]], folder: Path, timeout: float = 540.0) -> None:
    """For tests: run jobs in one subprocess; a failure shows the output of its processes."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, str(HERE / "training_fork.py"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=HERE)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


def main(file: Path) -> int:
    """Run the jobs of a file."""
    warm_up()
    for number, (world, target, arguments) in enumerate(json.loads(file.read_text())):
        module, function = target.split(":")
        call = getattr(importlib.import_module(module), function)
        output = file.parent / f"job_{number}"
        codes, _ = wait(fork(world, lambda call=call, arguments=arguments: call(**arguments), output), 300.0)
        if any(codes):
            for rank, code in enumerate(codes):
                sys.stdout.write(
                    f"{target}, process {rank} ended with {code}:\n{Path(f'{output}_{rank}.txt').read_text()[-3000:]}"
                )
            return 1
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main(Path(sys.argv[1])))
