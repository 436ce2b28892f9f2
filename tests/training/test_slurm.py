"""Slurm's srun and a job that is stopped, put back into the queue, and finished, on a cluster made for the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Hosts, skip_unless_possible, wait_for
from slurm_cluster import SlurmCluster
from small_stores import write_pretrain
from test_two_hosts import PYTHONPATH, ROOT, STEPS, outcome, small_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    skip_unless_possible("slurmctld", "slurmd", "munged", "srun", "sbatch")
    folder = tmp_path_factory.mktemp("slurm")
    with Hosts(folder) as hosts:
        hosts.variables = {"PYTHONPATH": PYTHONPATH}
        yield SlurmCluster(hosts, folder / "slurm")


def test_srun(cluster: SlurmCluster, tmp_path: Path) -> None:
    """As users type it, without our launch verb."""
    words = [sys.executable, "-m", "jmp_ds.cli", "pretrain", str(small_run(tmp_path))]
    said = cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", "sh", "-c", '"$0" "$@" 2>&1', *words)
    assert outcome(tmp_path).status == "finished"
    assert "2 processes on 2 machines, started by srun" in said


def submit(cluster: SlurmCluster, folder: Path, file: Path) -> str:
    """Submit the job that comes with the package, in size for the cluster; its number."""
    size = ["--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--time=10", "--signal=USR1@60"]
    words = [
        "--parsable",
        f"--output={folder / 'log'}",
        f"--chdir={folder}",
        *size,
        str(ROOT / "launch" / "job.sbatch"),
    ]
    return cluster.run("sbatch", *words, "pretrain", str(file)).strip()


def wait_for_state(cluster: SlurmCluster, job: str, state: str, log: Path) -> None:
    try:
        wait_for(state, lambda: cluster.state(job) == state, 400)
    except AssertionError as error:
        raise AssertionError(f"{error}; {cluster.state(job)}: {log.read_text()[-5000:]}") from None


def test_a_job_is_stopped_put_back_and_finished(cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit(cluster, tmp_path, small_run(tmp_path, steps=STEPS))
    wait_for("first steps", lambda: (tmp_path / "run" / "metrics.jsonl").is_file(), 400)
    cluster.run("scancel", "--signal=USR1", job)  # what Slurm does before the time is over
    wait_for("end of the first part", lambda: outcome(tmp_path).status != "running", 400)
    stopped = outcome(tmp_path)
    assert (stopped.status, stopped.reason) == ("stopped", "SIGUSR1")
    wait_for_state(cluster, job, "COMPLETED", log)
    assert (outcome(tmp_path).status, outcome(tmp_path).step) == ("finished", STEPS)
    said = log.read_text()
    assert said.count("2 processes on 2 machines, started by srun") == 2
    assert said.count("goes back into the queue") == 1
    assert f"resumed from {tmp_path / 'run'}" in said.replace("\n", "")
    assert stopped.step < STEPS


def test_a_killed_process_is_started_again_inside_the_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    """And the job is not put back for it."""
    log = tmp_path / "log"
    job = submit(cluster, tmp_path, small_run(tmp_path, steps=STEPS, checkpoint={"every": 1}))
    wait_for("first checkpoint", lambda: (tmp_path / "run" / "latest").is_file(), 400)
    cluster.hosts.kill_trainer("node2")
    wait_for_state(cluster, job, "COMPLETED", log)
    said = log.read_text()
    assert (outcome(tmp_path).status, outcome(tmp_path).step) == ("finished", STEPS), said
    assert said.count("starting again in 10 s, restart 1 of 3") == 1, said
    assert f"resumed from {tmp_path / 'run'}" in said.replace("\n", "")
    assert "goes back into the queue" not in said


def test_a_job_that_fails_is_not_put_back(cluster: SlurmCluster, tmp_path: Path) -> None:
    file = write_pretrain(tmp_path, train={"steps": 2}, engine={"deepspeed": "nothing_like_it"})
    job = submit(cluster, tmp_path, file)
    wait_for_state(cluster, job, "FAILED", tmp_path / "log")
    assert "nothing_like_it" in (tmp_path / "log").read_text()
    assert "queue" not in (tmp_path / "log").read_text()


def test_a_job_that_is_cancelled_is_not_put_back(cluster: SlurmCluster, tmp_path: Path) -> None:
    """And yet leaves a checkpoint."""
    job = submit(cluster, tmp_path, small_run(tmp_path, steps=STEPS))
    wait_for("first steps", lambda: (tmp_path / "run" / "metrics.jsonl").is_file(), 400)
    cluster.run("scancel", job)
    wait_for("end of the run", lambda: outcome(tmp_path).status != "running", 400)
    assert outcome(tmp_path).status == "stopped"
    wait_for_state(cluster, job, "CANCELLED", tmp_path / "log")
    assert "queue" not in (tmp_path / "log").read_text()
