"""Runs a function of a test helper in several processes that talk over gloo on this machine, with a time limit."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def launch(world: int, target: str, arguments: dict[str, Any], environment: dict[str, str] | None = None) -> list[Any]:
    """Start `world` processes that call `module:function(**arguments)`; the processes, for whoever wants to signal them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for rank in range(world):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            env.pop(name, None)
        if world > 1:
            env.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
            env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        command = [sys.executable, str(HERE / "training_spawn.py"), target, json.dumps(arguments)]
        started.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE)
        )
    return started


def finish(started: list[Any], timeout: float = 300.0) -> list[tuple[int, str]]:
    """Exit codes and output of all; those still there after the time limit are ended."""
    results = []
    try:
        for process in started:
            output, _ = process.communicate(timeout=timeout)
            results.append((process.returncode, output))
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    return results


def run(world: int, target: str, arguments: dict[str, Any], timeout: float = 300.0) -> None:
    """Run to the end; a failure shows the output of the processes."""
    results = finish(launch(world, target, arguments), timeout)
    for rank, (code, output) in enumerate(results):
        assert code == 0, f"process {rank} ended with {code}:\n{output[-6000:]}"


if __name__ == "__main__":
    module, function = sys.argv[1].split(":")
    sys.path.insert(0, str(HERE))
    getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # what is tested has ended; now and then a library's thread aborts a process that is shutting its interpreter down
    os._exit(0)
