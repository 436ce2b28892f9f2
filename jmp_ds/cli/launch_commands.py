"""The exact command lines by which launchers start a verb in several processes; nothing is started here."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from jmp_ds.errors import UserError

#: What is passed on to other machines if it is set: settings of libraries, none that differs between machines.
FORWARDED = (
    *("DS_ACCELERATOR", "CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH", "PYTHONPATH"),
    *("FI_", "GLOO_", "MKL_", "NCCL_", "OMP_", "TORCH_", "TRITON_", "UCX_"),
)


class Launcher(StrEnum):
    """What starts the processes."""

    local = "local"
    hostfile = "hostfile"
    no_ssh = "no-ssh"
    torchrun = "torchrun"
    srun = "srun"
    mpirun = "mpirun"


class Flavour(StrEnum):
    """Whose mpirun it is."""

    open_mpi = "Open MPI"
    hydra = "MPICH or Intel MPI"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the processes run.

    Attributes:
        nodes: machines; None: as many as srun's allocation has.
        per_node: processes on each; None: as srun's allocation says, or as many as a host of the hostfile has slots.
        node_rank: number of this machine, for launchers that are started on every one.
        master, port: where the first process is reached.
        hosts: names and slots from the hostfile.
    """

    nodes: int | None = 1
    per_node: int | None = 1
    node_rank: int = 0
    master: str = "127.0.0.1"
    port: int = 29500
    hosts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is to be run.

    Attributes:
        words: program and arguments.
        variables: environment variables that it needs beside those that are there.
        files: content of files that must be there, by path.
    """

    words: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)

    def with_variables(self, more: Mapping[str, str]) -> Command:
        """The same with more variables."""
        return replace(self, variables={**self.variables, **more})

    def shown(self) -> str:
        """As it can be typed into a shell."""
        folders = dict.fromkeys(shlex.quote(str(path.parent)) for path in self.files)
        lines = [f"mkdir -p {folder}" for folder in folders]
        lines += [f"cat > {shlex.quote(str(path))} <<'END'\n{text}END" for path, text in self.files.items()]
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return "\n".join([*lines, " ".join([*settings, shlex.join(self.words)])])


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and their slots, in order, from lines `host slots=N`.

    Raises:
        UserError: there is no such file, or a line is something else.
    """
    if not path.is_file():
        raise UserError(f"launch: there is no hostfile {path}; write lines like: node1 slots=4")
    hosts: dict[str, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"(\S+)\s+slots=(\d+)", text)
        if match is None or match[1] in hosts or int(match[2]) == 0:
            raise UserError(f"{path}:{number}: {text!r} is not `host slots=N`, or names a host again")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"launch: the hostfile {path} names no host; write lines like: node1 slots=4")
    return hosts


def write_hostfile(hosts: Mapping[str, int]) -> str:
    """The text of a hostfile."""
    return "".join(f"{host} slots={slots}\n" for host, slots in hosts.items())


def alone(arguments: Sequence[str]) -> Command:
    """One process, without a launcher."""
    return Command(words=_python(arguments))


def local(arguments: Sequence[str], processes: int, port: int) -> Command:
    """The deepspeed launcher on this machine; without GPUs `--num_accelerators` simply counts processes."""
    # "none": where /job/hostfile exists, deepspeed would take it and start elsewhere
    options = ["--hostfile", "none", "--num_accelerators", str(processes), "--master_port", str(port)]
    return Command(words=_deepspeed(options, arguments))


def hostfile(
    arguments: Sequence[str], layout: Layout, folder: Path, environ: Mapping[str, str], own: Mapping[str, str]
) -> Command:
    """The deepspeed launcher through pdsh and ssh, started once.

    It passes on almost no variables by itself, and reads others from a file; told one, it no longer reads the user's.

    Args:
        arguments: after `jmp-ds`.
        layout: with hosts.
        folder: takes the files that the launcher reads.
        environ: variables here.
        own: what the user's files of variables say (`own_environment`).
    """
    hosts, settings = folder / "hostfile", folder / "environment"
    options = ["--hostfile", str(hosts), "--force_multi", "--master_addr", layout.master]
    options += ["--master_port", str(layout.port)]
    words = _deepspeed(options, [_through_pdsh(word) for word in arguments])
    passed = {**forwarded(environ), **own}
    lines = "".join(f"{name}={value}\n" for name, value in passed.items())
    files = {hosts: write_hostfile(layout.hosts), settings: lines}
    return Command(words=words, variables={"DS_ENV_FILE": str(settings)}, files=files)


def no_ssh(arguments: Sequence[str], layout: Layout, folder: Path) -> Command:
    """The deepspeed launcher, started on every machine by somebody else."""
    hosts = layout.hosts or {f"node-{number}": layout.per_node or 1 for number in range(layout.nodes or 1)}
    path = folder / "hostfile"
    options = ["--hostfile", str(path), "--no_ssh", "--node_rank", str(layout.node_rank)]
    options += ["--master_addr", layout.master, "--master_port", str(layout.port)]
    return Command(words=_deepspeed(options, arguments), files={path: write_hostfile(hosts)})


def torchrun(arguments: Sequence[str], layout: Layout) -> Command:
    """torchrun, started on every machine by somebody else."""
    options = ["--nnodes", str(layout.nodes), "--nproc_per_node", str(layout.per_node)]
    options += ["--node_rank", str(layout.node_rank), "--master_addr", layout.master, "--master_port", str(layout.port)]
    return Command(
        words=(sys.executable, "-m", "torch.distributed.run", *options, "--module", "jmp_ds.cli", *arguments)
    )


def srun(arguments: Sequence[str], layout: Layout, environ: Mapping[str, str]) -> Command:
    """srun, in an allocation or asking for one; what is not given is the allocation's affair."""
    options = ["--kill-on-bad-exit=1"]
    if layout.nodes is not None:
        options.append(f"--nodes={layout.nodes}")
    if layout.per_node is not None:
        options.append(f"--ntasks-per-node={layout.per_node}")
        if layout.nodes is not None:
            options.append(f"--ntasks={layout.nodes * layout.per_node}")
    if "SLURM_CPUS_PER_TASK" in environ:
        options.append(f"--cpus-per-task={environ['SLURM_CPUS_PER_TASK']}")  # srun does not take it over by itself
    return Command(words=("srun", *options, *_python(arguments)))


def mpirun(
    arguments: Sequence[str], layout: Layout, folder: Path, environ: Mapping[str, str], flavour: Flavour
) -> Command:
    """Open MPI's, MPICH's or Intel MPI's mpirun."""
    nodes, per_node = layout.nodes or 1, layout.per_node or 1
    settings = {"MASTER_ADDR": layout.master, "MASTER_PORT": str(layout.port), **forwarded(environ)}
    path, count = folder / "hostfile", ["-np", str(nodes * per_node)]
    if flavour is Flavour.open_mpi:
        # without --bind-to none every process, with all its threads and workers, would get a single core
        options = [*count, "--map-by", f"ppr:{per_node}:node", "--bind-to", "none"]
        options += ["--hostfile", str(path)] if layout.hosts else []
        options += [word for name, value in settings.items() for word in ("-x", f"{name}={value}")]
        text = write_hostfile(layout.hosts)
    else:
        options = [*count, "-ppn", str(per_node)]
        options += ["-f", str(path)] if layout.hosts else []
        options += [word for name, value in settings.items() for word in ("-genv", name, value)]
        text = "".join(f"{host}:{slots}\n" for host, slots in layout.hosts.items())
    return Command(words=("mpirun", *options, *_python(arguments)), files={path: text} if layout.hosts else {})


def own_environment(environ: Mapping[str, str], home: Path, here: Path) -> dict[str, str]:
    """What DeepSpeed would read: `.deepspeed_env` in the home folder and here, or the file that DS_ENV_FILE names."""
    name = environ.get("DS_ENV_FILE", ".deepspeed_env")
    files = [path for path in (home / name, here / name) if path.is_file()]
    lines = [line.strip() for path in files for line in path.read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def forwarded(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that other machines should see as well; values that do not survive a shell are left out."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if name.startswith(FORWARDED) and not set(value) & set("\"'`$\\\n")
    }


def _python(arguments: Sequence[str]) -> tuple[str, ...]:
    return (sys.executable, "-u", "-m", "jmp_ds.cli", *arguments)


def _deepspeed(options: Sequence[str], arguments: Sequence[str]) -> tuple[str, ...]:
    runner = (sys.executable, "-m", "deepspeed.launcher.runner", *options, "--no_local_rank", "--log_level", "error")
    return (*runner, "--module", "jmp_ds.cli", *arguments)


def _through_pdsh(word: str) -> str:
    """An argument such that it arrives unchanged: DeepSpeed puts words with spaces into double quotes and passes others
    as they are, pdsh replaces %, and the shell on the other side does the rest.
    """
    word = word.replace("%", "%%")
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
