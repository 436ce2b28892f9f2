"""Launches over two hosts, which are namespaces on this machine, by the command that users type; each trains to the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Hosts, skip_unless_possible, wait_for
from small_stores import write_pretrain

from jmp_ds.training.outcome import Outcome, read_outcome

ROOT = Path(__file__).resolve().parents[2]
PYTHONPATH = f"{ROOT}:{ROOT / 'kernels'}"
#: Of a run that is interrupted: long enough to be.
STEPS = 200


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    skip_unless_possible()
    (tmp_path / "machines").mkdir()
    with Hosts(tmp_path / "machines") as hosts:
        yield hosts


def small_run(folder: Path, steps: int = 2, **more: Any) -> Path:
    """A configuration of a few steps on a CPU."""
    return write_pretrain(folder, train={"steps": steps, "ema": None}, validate={"every": 1000}, **more)


def launch(hosts: Hosts, name: str, log: Path, file: Path, *options: str) -> subprocess.Popen[str]:
    """`jmp-ds launch` on a host."""
    command = [sys.executable, "-m", "jmp_ds.cli", "launch", *options, "--", "pretrain", str(file)]
    return hosts.start(name, command, log, {"PYTHONPATH": PYTHONPATH})


def interrupt(hosts: Hosts, process: subprocess.Popen[str], folder: Path, log: Path) -> None:
    """What Ctrl-C does, once steps have been made."""

    def begun() -> bool:
        assert process.poll() is None, log.read_text()[-5000:]
        return (folder / "run" / "metrics.jsonl").is_file()

    wait_for("first steps", begun, 400)
    hosts.signal(process, signal.SIGINT)


def outcome(folder: Path) -> Outcome:
    return read_outcome(folder / "run") or Outcome("running")


def check_finished(folder: Path, log: Path, start: str) -> None:
    """The run ended, with as many processes on as many machines as it should."""
    said = log.read_text()
    assert outcome(folder).status == "finished", said[-5000:]
    assert start in said


def test_no_ssh(hosts: Hosts, tmp_path: Path) -> None:
    file, logs = small_run(tmp_path), [tmp_path / "0.log", tmp_path / "1.log"]
    options = ("--with", "no-ssh", "--nodes", "2", "--per-node", "1", "--master", "node1")
    started = [
        launch(hosts, n, log, file, *options, "--node-rank", str(i))
        for i, (n, log) in enumerate(zip(hosts.names, logs, strict=True))
    ]
    codes = [hosts.wait(process) for process in started]
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    check_finished(tmp_path, logs[0], "2 processes on 2 machines, started by deepspeed")


@pytest.mark.slow
def test_hostfile_through_ssh_stopped_and_continued(hosts: Hosts, tmp_path: Path) -> None:
    """The request to stop ends this run's processes on both hosts, and spares another deepspeed job of the same user."""
    skip_unless_possible("pdsh", "ssh", "sshd", "ssh-keygen")
    hosts.serve_ssh()
    file, log = small_run(tmp_path, steps=STEPS), tmp_path / "log"
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=2  # the bigger one\n")
    options = ("--with", "hostfile", "--hostfile", str(tmp_path / "hostfile"))
    other = hosts.start(
        "node2",
        [
            "bash",
            "-c",
            "exec -a 'python -u -m deepspeed.launcher.launch --master_addr=node1 --master_port=1' sleep 500",
        ],
        tmp_path / "other",
    )
    process = launch(hosts, "node1", log, file, *options)
    interrupt(hosts, process, tmp_path, log)
    assert hosts.wait(process) == 3, log.read_text()[-5000:]
    stopped = outcome(tmp_path)
    assert (stopped.status, stopped.reason) == ("stopped", "SIGTERM")
    assert stopped.step < STEPS
    assert other.poll() is None
    again = launch(hosts, "node1", log, file, *options)
    assert hosts.wait(again) == 0, log.read_text()[-5000:]
    check_finished(tmp_path, log, "3 processes on 2 machines, started by deepspeed")
    assert outcome(tmp_path).step == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["hostfile", "mpirun", "no-ssh"])
def test_killed_on_the_second_host_and_started_again(hosts: Hosts, tmp_path: Path, launcher: str) -> None:
    """By the launch itself; where it runs on both hosts, each of them starts its own processes again."""
    if launcher != "no-ssh":
        skip_unless_possible("ssh", "sshd", "ssh-keygen", *(["pdsh"] if launcher == "hostfile" else ["mpirun"]))
        hosts.serve_ssh()
    file = small_run(tmp_path, steps=STEPS, checkpoint={"every": 1})
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    hosts.variables = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    options = ["--with", launcher, "--auto-restart", "2", "--hostfile", str(tmp_path / "hostfile")]
    machines = [["--node-rank", "0"], ["--node-rank", "1"]] if launcher == "no-ssh" else [[]]
    logs = [tmp_path / f"{number}.log" for number in range(len(machines))]
    started = [
        launch(hosts, name, log, file, *options, *own)
        for name, log, own in zip(hosts.names, logs, machines, strict=False)
    ]
    wait_for("first checkpoint", lambda: (tmp_path / "run" / "latest").is_file(), 400)
    hosts.kill_trainer("node2")
    codes = [hosts.wait(process) for process in started]
    said = "\n".join(log.read_text()[-5000:] for log in logs)
    assert codes == [0] * len(machines), said
    assert [log.read_text().count("starting again in 10 s, restart 1 of 2") for log in logs] == [1] * len(machines), (
        said
    )
    assert "resumed from" in said
    assert (outcome(tmp_path).status, outcome(tmp_path).step) == ("finished", STEPS)


@pytest.mark.slow
def test_torchrun(hosts: Hosts, tmp_path: Path) -> None:
    file, logs = small_run(tmp_path), [tmp_path / "0.log", tmp_path / "1.log"]
    options = ("--with", "torchrun", "--nodes", "2", "--per-node", "1", "--master", "node1:23456")
    started = [
        launch(hosts, n, log, file, *options, "--node-rank", str(i))
        for i, (n, log) in enumerate(zip(hosts.names, logs, strict=True))
    ]
    assert [hosts.wait(process) for process in started] == [0, 0], logs[0].read_text()[-5000:]
    check_finished(tmp_path, logs[0], "2 processes on 2 machines, started by torchrun")


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["openmpi", "mpich"])
def test_mpirun_stopped_and_continued(hosts: Hosts, tmp_path: Path, flavour: str) -> None:
    skip_unless_possible("ssh", "sshd", "ssh-keygen", f"mpirun.{flavour}")
    hosts.serve_ssh()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mpirun"
    program.write_text(f'#!/bin/sh\nexec mpirun.{flavour} "$@"\n')
    program.chmod(0o755)
    file, log = small_run(tmp_path, steps=STEPS), tmp_path / "log"
    (tmp_path / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    options = ("--with", "mpirun", "--hostfile", str(tmp_path / "hostfile"))
    hosts.variables = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    process = launch(hosts, "node1", log, file, *options)
    interrupt(hosts, process, tmp_path, log)
    assert hosts.wait(process) == 3, log.read_text()[-5000:]
    stopped = outcome(tmp_path)
    assert (stopped.status, stopped.reason) == ("stopped", "SIGUSR1")
    again = launch(hosts, "node1", log, file, *options)
    assert hosts.wait(again) == 0, log.read_text()[-5000:]
    check_finished(tmp_path, log, "2 processes on 2 machines, started by mpirun")
