"""Which process of a run this one is, read from what its launcher has set. Needs neither torch nor DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jmp_ds.errors import UserError
from jmp_ds.training.slurm_lists import expand_counts, expand_hosts

#: What torchrun and the deepspeed launcher set, and torch and DeepSpeed read.
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_DEFAULT_PORT = 29500
#: Step numbers from here on are Slurm's own: batch script, interactive shell, container of foreign processes.
_PSEUDO_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class Place:
    """Where one process stands among all.

    Attributes:
        rank, world: among all processes.
        local_rank, local_world: among those of this machine.
        launcher: `deepspeed`, `torchrun`, `srun`, `mpirun`, or `environment` where somebody else set RANK and the like;
            empty: this is the only process.
        master, port: where the first process is reached.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launcher: str = ""
    master: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world and 0 <= self.local_rank < self.local_world):
            raise UserError(
                f"launch: process {self.rank} of {self.world}, {self.local_rank} of {self.local_world} on this machine "
                f"(told by {self.launcher or 'the caller'}) cannot be; counting starts at 0"
            )

    @property
    def launched(self) -> bool:
        """Whether a launcher started this process."""
        return bool(self.launcher)

    def variables(self) -> dict[str, str]:
        """The same in the words of torchrun, which torch and DeepSpeed read; nothing where there is no launcher."""
        if not self.launched:
            return {}
        values = (self.rank, self.world, self.local_rank, self.master, self.port)
        return {**dict(zip(NEEDED, map(str, values), strict=True)), "LOCAL_WORLD_SIZE": str(self.local_world)}


def recognise(environ: Mapping[str, str]) -> Place:
    """Read the place of this process from what deepspeed, torchrun, mpirun or srun set.

    The launcher nearest to the process counts: torchrun or deepspeed started by srun or mpirun before these, and mpirun,
    which may start its daemons through srun, before srun. A step of a single task is no launch, nor is a batch script.

    Raises:
        UserError: some of the variables are there and others are not, or they contradict one another.
    """
    outer = _from_openmpi(environ) or _from_hydra(environ) or _from_srun(environ) or Place()
    inner = _from_variables(environ)
    if inner is None:
        return outer if outer.world > 1 else Place()
    # Launchers nest as they like; variables of unknown origin must not hide processes from one another.
    hidden = inner.world < outer.world or (inner.world == outer.world > 1 and inner.rank != outer.rank)
    if inner.launcher == "environment" and hidden:
        raise UserError(
            f"launch: RANK={inner.rank} and WORLD_SIZE={inner.world} are set, but {outer.launcher} says process "
            f"{outer.rank} of {outer.world}; unset RANK and WORLD_SIZE (a start script or a profile exports them)"
        )
    return inner


def _from_variables(environ: Mapping[str, str]) -> Place | None:
    """What torchrun and the deepspeed launcher set."""
    if not {"RANK", "WORLD_SIZE"} & set(environ):
        return None
    missing = [name for name in NEEDED if name not in environ]
    if missing:
        raise UserError(
            f"launch: {', '.join(missing)} not set although RANK or WORLD_SIZE is; start through `jmp-ds launch`, "
            "deepspeed, torchrun, srun or mpirun, or unset RANK and WORLD_SIZE for a single process"
        )
    known = {"TORCHELASTIC_RUN_ID": "torchrun", "CROSS_RANK": "deepspeed"}
    launcher = next((name for variable, name in known.items() if variable in environ), "environment")
    local = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if environ.get(name)), "WORLD_SIZE")
    rank, world, local_rank, local_world, port = _numbers(
        environ, ("RANK", "WORLD_SIZE", "LOCAL_RANK", local, "MASTER_PORT"), launcher
    )
    return Place(rank, world, local_rank, local_world, launcher, environ["MASTER_ADDR"], port)


def _from_openmpi(environ: Mapping[str, str]) -> Place | None:
    """What Open MPI's mpirun sets."""
    if "OMPI_COMM_WORLD_RANK" not in environ:
        return None
    names = [f"OMPI_COMM_WORLD_{what}" for what in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    job = environ.get("OMPI_MCA_ess_base_jobid", "")
    return _of_mpirun(environ, names, int(job) if job.isdigit() else None)


def _from_hydra(environ: Mapping[str, str]) -> Place | None:
    """What the mpirun of MPICH and Intel MPI sets."""
    if "PMI_RANK" not in environ:
        return None
    local = next((n for n in ("MPI_LOCALRANKID", "PMI_LOCAL_RANK") if n in environ), "MPI_LOCALRANKID")
    if local not in environ and _in_step(environ):
        return None  # srun speaks this protocol, too; its own variables say more
    size = {"MPI_LOCALRANKID": "MPI_LOCALNRANKS", "PMI_LOCAL_RANK": "PMI_LOCAL_SIZE"}[local]
    return _of_mpirun(environ, ["PMI_RANK", "PMI_SIZE", local, size], None)


def _of_mpirun(environ: Mapping[str, str], names: Sequence[str], job: int | None) -> Place:
    rank, world, local_rank, local_world = _numbers(environ, names, "mpirun")
    master = environ.get("MASTER_ADDR", "127.0.0.1")
    if "MASTER_ADDR" not in environ and world > local_world:
        raise UserError(
            "launch: mpirun started processes on several machines, but MASTER_ADDR is not set; pass the first machine's "
            "name: mpirun -x MASTER_ADDR=HOST (Open MPI), mpirun -genv MASTER_ADDR HOST (MPICH, Intel MPI)"
        )
    return Place(rank, world, local_rank, local_world, "mpirun", master, _port(environ, job))


def _in_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process.

    In a batch script, too, SLURM_PROCID is 0; and shells that salloc opens are steps of another kind.
    """
    step = environ.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _PSEUDO_STEP


def _from_srun(environ: Mapping[str, str]) -> Place | None:
    """What srun sets."""
    if not _in_step(environ):
        return None
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID", "SLURM_JOB_ID")
    rank, world, local_rank, node, step, job = _numbers(environ, names, "srun")
    if world == 1:
        return None
    try:
        hosts = expand_hosts(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", ""))
        local_world = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))[node]
    except (ValueError, IndexError) as error:
        raise UserError(
            f"launch: SLURM_STEP_NODELIST and SLURM_STEP_TASKS_PER_NODE do not fit ({error}); do not change what srun "
            "sets, or start with torchrun: jmp-ds launch --with torchrun"
        ) from None
    master = environ.get("MASTER_ADDR") or (hosts[0] if len(hosts) > 1 else "127.0.0.1")
    # steps of one job, and jobs that follow one another, may share a machine
    return Place(rank, world, local_rank, local_world, "srun", master, _port(environ, job + 4099 * step))


def _port(environ: Mapping[str, str], job: int | None) -> int:
    """MASTER_PORT, or one that all processes of a job and few others think of, below those the system hands out."""
    if "MASTER_PORT" in environ:
        return _numbers(environ, ["MASTER_PORT"], "the caller")[0]
    return _DEFAULT_PORT if job is None else 15000 + job % 14000


def _numbers(environ: Mapping[str, str], names: Sequence[str], launcher: str) -> list[int]:
    """Values of variables that a launcher must have set."""
    missing = [name for name in names if name not in environ]
    if missing:
        raise UserError(
            f"launch: this looks like a process of {launcher}, but {', '.join(missing)} not set; do not pass its "
            "variables on by hand, and clear them for a single process (env -i, or unset)"
        )
    for name in names:
        if not environ[name].isdigit():
            raise UserError(f"launch: {name} must be a number, got {environ[name]!r}; unset it or put it right")
    return [int(environ[name]) for name in names]
