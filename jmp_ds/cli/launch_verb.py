"""`jmp-ds launch`: several processes, on one machine or many."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from jmp_ds.cli import launch_commands
from jmp_ds.cli.launch_commands import Launcher, Layout
from jmp_ds.cli.launching import free_port, make_command
from jmp_ds.cli.train_verbs import Restarts, prepare, start
from jmp_ds.errors import UserError

With = Annotated[Launcher, typer.Option("--with", help="what starts the processes")]
Words = Annotated[list[str], typer.Argument(metavar="VERB CONFIG [KEY.SUB=VALUE]...", show_default=False)]
Hostfile = Annotated[Path | None, typer.Option(help="lines `host slots=N`, for hostfile, mpirun and no-ssh")]
Nodes = Annotated[int | None, typer.Option(min=1, help="machines; by default the hosts of the hostfile, or one")]
NodeRank = Annotated[int | None, typer.Option(min=0, help="number of this machine, for no-ssh and torchrun")]
PerNode = Annotated[int | None, typer.Option(min=1, help="processes on each machine; by default its GPUs, or one")]
Master = Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help="where the first process is reached")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only print the exact command")]


def launch(
    words: Words,
    launcher: With = Launcher.local,
    hostfile: Hostfile = None,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    per_node: PerNode = None,
    master: Master = None,
    auto_restart: Restarts = 0,
    dry_run: DryRun = False,
) -> None:
    """Start `pretrain` or `finetune` in several processes, on one machine or many.

    `local`, `hostfile`, `srun` and `mpirun` are started once; `no-ssh` and `torchrun` on every machine, each time with
    its own --node-rank. What follows VERB is given to it: `jmp-ds launch --with srun -- pretrain run.yaml train.epochs=5`.
    With --auto-restart (give each machine the same N where the launcher is started on every one) all processes are started
    again after a failure. The first process reports; exit codes are those of the verb. See docs/launching.md.
    """
    prepared = prepare(words)
    folder = prepared.folders[0]
    layout = make_layout(launcher, folder, hostfile, nodes, per_node, master, node_rank, dry_run=dry_run)
    if not dry_run:
        start(prepared, words, launcher, layout, auto_restart)
        return
    for each in _machines(launcher, layout, node_rank):
        typer.echo(make_command(launcher, words, each, folder, prepared.device).shown())


def make_layout(
    launcher: Launcher,
    folder: Path,
    hostfile: Path | None,
    nodes: int | None,
    per_node: int | None,
    master: str | None,
    node_rank: int | None,
    *,
    dry_run: bool = False,
) -> Layout:
    """Complete what was given.

    Args:
        launcher: what starts the processes.
        folder: of the run; different runs are given different ports.
        hostfile, nodes, per_node, master, node_rank: as given.
        dry_run: --node-rank may be left out.

    Raises:
        UserError: something is missing, or does not fit.
    """
    hosts = launch_commands.read_hostfile(hostfile) if hostfile is not None else {}
    if launcher is Launcher.hostfile and not hosts:
        raise UserError("launch: --with hostfile needs --hostfile FILE with lines like: node1 slots=4")
    if launcher is Launcher.srun:
        return _of_srun(nodes, per_node)
    hosts = _cut(hosts, nodes, per_node)
    nodes = len(hosts) or nodes or 1
    if launcher is Launcher.local and nodes > 1:
        raise UserError("launch: --with local is this machine alone; choose hostfile, no-ssh, torchrun, srun or mpirun")
    on_each = launcher in (Launcher.no_ssh, Launcher.torchrun)
    if on_each and nodes > 1 and node_rank is None and not dry_run:
        raise UserError(
            f"launch: --with {launcher} is started on each of {nodes} machines; give this one's --node-rank"
        )
    if (node_rank or 0) >= nodes:
        raise UserError(f"launch: --node-rank {node_rank} of {nodes} machines; counting starts at 0 (see --nodes)")
    if launcher in (Launcher.torchrun, Launcher.mpirun) and len(set(hosts.values())) > 1:
        raise UserError(f"launch: {launcher} starts as many processes on every machine; give --per-node")
    slots = next(iter(hosts.values()), None)
    address, port = _master(master, folder, hosts, nodes, launcher)
    return Layout(
        nodes=nodes,
        per_node=per_node or slots or _gpus(),
        node_rank=node_rank or 0,
        master=address,
        port=port,
        hosts=hosts,
    )


def _machines(launcher: Launcher, layout: Layout, node_rank: int | None) -> list[Layout]:
    """One layout for every command that has to be typed."""
    if launcher not in (Launcher.no_ssh, Launcher.torchrun) or node_rank is not None:
        return [layout]
    return [replace(layout, node_rank=number) for number in range(layout.nodes or 1)]


def _of_srun(nodes: int | None, per_node: int | None) -> Layout:
    """Slurm knows the rest, in an allocation."""
    if "SLURM_JOB_ID" not in os.environ and (nodes is None or per_node is None):
        raise UserError(
            "launch: --with srun outside an allocation needs --nodes and --per-node (or use sbatch, salloc)"
        )
    return Layout(nodes=nodes, per_node=per_node)


def _cut(hosts: dict[str, int], nodes: int | None, per_node: int | None) -> dict[str, int]:
    """The first hosts, with so many slots."""
    if nodes is not None and hosts and nodes > len(hosts):
        raise UserError(f"launch: --nodes {nodes}, but the hostfile names {len(hosts)}")
    chosen = dict(list(hosts.items())[:nodes])
    for host, slots in chosen.items():
        if per_node is not None and per_node > slots:
            raise UserError(f"launch: --per-node {per_node}, but {host} has {slots} slots in the hostfile")
    return {host: per_node or slots for host, slots in chosen.items()}


def _master(given: str | None, folder: Path, hosts: dict[str, int], nodes: int, launcher: Launcher) -> tuple[str, int]:
    """Address and port; a port that all machines think of, another one for another run folder."""
    address, _, text = (given or "").rpartition(":") if ":" in (given or "") else (given or "", "", "")
    if text and not text.isdigit():
        raise UserError(f"launch: --master must be HOST or HOST:PORT, got {given!r}")
    if not address and nodes == 1 and launcher is not Launcher.hostfile:
        return "127.0.0.1", int(text) if text else free_port()
    address = address or next(iter(hosts), "")
    if not address:
        raise UserError(f"launch: {nodes} machines need --master HOST[:PORT], the name of the first one")
    return address, int(text) if text else 15000 + zlib.crc32(str(folder.absolute()).encode()) % 14000


def _gpus() -> int:
    """GPUs of this machine, or 1."""
    import torch

    return max(1, torch.cuda.device_count())
