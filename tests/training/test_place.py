"""Launchers are recognised by what they set; half of it, or two that disagree, is told as a mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_ds.errors import UserError
from jmp_ds.training.place import Place, recognise
from jmp_ds.training.sharing import Tenant, refuse_shared_gpus, threads
from jmp_ds.training.slurm_lists import expand_counts, expand_hosts

VARIABLES = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
#: What a batch script sees, as Slurm 22.05 sets it.
BATCH = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "3"}
#: The third process of three on two nodes.
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[009-010]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_no_launcher() -> None:
    assert recognise({}) == recognise(BATCH) == Place()
    assert not Place().launched
    assert Place().variables() == {}


@pytest.mark.parametrize(
    ("more", "launcher"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}, "torchrun"),
        ({"CROSS_RANK": "1", "LOCAL_SIZE": "2"}, "deepspeed"),
    ],
)
def test_torchrun_and_deepspeed(more: dict[str, str], launcher: str) -> None:
    place = recognise({**VARIABLES, **more})
    assert place == Place(3, 4, 1, 2, launcher, "h", 1)
    assert {**place.variables(), "LOCAL_WORLD_SIZE": "2"} == {**VARIABLES, "LOCAL_WORLD_SIZE": "2"}


def test_srun() -> None:
    place = recognise(STEP)
    assert place == Place(2, 3, 0, 1, "srun", "gpu009", 15000 + 77 + 4099)
    assert recognise({**STEP, "MASTER_ADDR": "other", "MASTER_PORT": "5"}) == Place(2, 3, 0, 1, "srun", "other", 5)
    one_node = {**STEP, "SLURM_STEP_NODELIST": "gpu009", "SLURM_STEP_TASKS_PER_NODE": "3", "SLURM_NODEID": "0"}
    assert recognise(one_node).master == "127.0.0.1"
    # what this process tells DeepSpeed does not disturb a second look
    assert recognise({**STEP, **place.variables()}).rank == 2


@pytest.mark.parametrize("step", ["4294967290", "4294967291", "4294967292"])
def test_steps_that_srun_did_not_start_and_single_tasks_are_no_launch(step: str) -> None:
    assert recognise({**STEP, "SLURM_STEP_ID": step}) == Place()
    single = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert recognise({**STEP, **single}) == Place()


def test_mpirun() -> None:
    with pytest.raises(UserError, match="-x MASTER_ADDR=HOST"):
        recognise(OPEN_MPI)
    assert recognise({**OPEN_MPI, "MASTER_ADDR": "a"}) == Place(2, 4, 0, 2, "mpirun", "a", 29500)
    one = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_MCA_ess_base_jobid": "1042939905"}
    assert recognise(one) == Place(2, 4, 0, 4, "mpirun", "127.0.0.1", 15000 + 1042939905 % 14000)
    assert recognise(MPICH) == Place(1, 2, 1, 2, "mpirun", "127.0.0.1", 29500)
    # mpirun may start its daemons through srun
    assert recognise({**STEP, **MPICH}).launcher == "mpirun"
    # and srun may speak the protocol of MPICH
    assert recognise({**STEP, "PMI_RANK": "2", "PMI_SIZE": "3"}).launcher == "srun"


def test_the_launcher_nearest_to_the_process_counts() -> None:
    assert recognise({**STEP, **VARIABLES, "TORCHELASTIC_RUN_ID": "x"}).launcher == "torchrun"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "1"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"),
        ({**VARIABLES, "RANK": "first"}, "RANK must be a number, got 'first'"),
        ({**VARIABLES, "RANK": "4"}, "process 4 of 4"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE must be a number"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "a process of mpirun, but OMPI_COMM_WORLD_SIZE, "),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID, MPI_LOCALNRANKS not set"),
        ({k: v for k, v in STEP.items() if k != "SLURM_PROCID"}, "a process of srun, but SLURM_PROCID not set"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "3"}, "do not fit"),
        ({**STEP, "SLURM_STEP_NODELIST": "gpu[1"}, "'gpu\\[1' is not a list of hosts"),
        ({**STEP, **VARIABLES, "RANK": "0", "WORLD_SIZE": "2"}, "srun says process 2 of 3; unset RANK"),
        ({**STEP, **VARIABLES, "RANK": "0", "WORLD_SIZE": "3"}, "srun says process 2 of 3; unset RANK"),
    ],
)
def test_mistakes(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recognise(environ)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("one", ["one"]),
        ("node[01-03,07],gpu5", ["node01", "node02", "node03", "node07", "gpu5"]),
        ("r[1-2]n[9-10]-ib,x", ["r1n9-ib", "r1n10-ib", "r2n9-ib", "r2n10-ib", "x"]),
        ("a[098-101]", ["a098", "a099", "a100", "a101"]),
    ],
)
def test_lists_of_hosts(text: str, names: list[str]) -> None:
    assert expand_hosts(text) == names


@pytest.mark.parametrize("text", ["", "a[1", "a]", "a[2-1]", "a[x]", "a,,b", "a[]", ",a"])
def test_what_is_no_list_of_hosts(text: str) -> None:
    with pytest.raises(ValueError, match="Slurm's way"):
        expand_hosts(text)


def test_counts() -> None:
    assert expand_counts("2(x3),1,4(x1)") == [2, 2, 2, 1, 4]
    for bad in ("", "2(x)", "a"):
        with pytest.raises(ValueError, match="Slurm's way"):
            expand_counts(bad)


def test_threads_are_a_share_of_the_cores_one_may_use() -> None:
    everywhere, own = frozenset(range(8)), [frozenset(range(4 * i, 4 * i + 4)) for i in range(2)]
    assert threads(3, 0, [Tenant("a", everywhere)]) == 3
    assert threads(0, 0, [Tenant("a", everywhere)]) == 8
    assert [threads(0, r, [Tenant("a", everywhere)] * 3 + [Tenant("b", everywhere)]) for r in (0, 3)] == [2, 8]
    assert [threads(0, r, [Tenant("a", cores) for cores in own]) for r in (0, 1)] == [4, 4]
    assert threads(0, 0, [Tenant("a", frozenset({5}))] * 9) == 1


@given(st.integers(1, 16), st.integers(1, 16))
def test_shares_never_exceed_the_cores(cores: int, processes: int) -> None:
    total = sum(threads(0, r, [Tenant("a", frozenset(range(cores)))] * processes) for r in range(processes))
    assert total <= max(cores, processes)


def test_one_gpu_for_two_processes_is_refused() -> None:
    cores = frozenset({0})
    refuse_shared_gpus([Tenant("a", cores)] * 2)
    refuse_shared_gpus([Tenant("a", cores, "GPU-1"), Tenant("a", cores, "GPU-2")])
    with pytest.raises(UserError, match="processes 0 and 2 have the same GPU"):
        refuse_shared_gpus([Tenant("a", cores, gpu) for gpu in ("GPU-1", "GPU-2", "GPU-1")])
