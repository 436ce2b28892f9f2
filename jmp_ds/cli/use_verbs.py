"""Verbs that use a bundle on files of structures: relax, md; and the one that hands it on: export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmp_ds.cli.base import Kernels
from jmp_ds.cli.model_verbs import (
    BundlePath,
    Device,
    DType,
    EdgesPerBatch,
    KernelChoice,
    Precision,
    SourcePath,
    TagChoice,
    Tags,
    TaskName,
)

if TYPE_CHECKING:
    from jmp_ds.inference.predictor import Predictor


class Optimizer(StrEnum):
    """Optimisers of ASE."""

    fire = "fire"
    bfgs = "bfgs"
    lbfgs = "lbfgs"


OutputPath = Annotated[Path, typer.Argument(metavar="OUTPUT", help="extended xyz to write", show_default=False)]
AllowFar = Annotated[bool, typer.Option(help="go on where an atom has no neighbour; its force is zero then")]
AllowUnseen = Annotated[bool, typer.Option(help="compute elements that the task was not trained on")]


def relax(
    bundle: BundlePath,
    source: SourcePath,
    output: OutputPath,
    task: TaskName = None,
    fmax: Annotated[float, typer.Option(min=0.0, help="largest force of a relaxed structure, eV/Å")] = 0.05,
    steps: Annotated[int, typer.Option(min=0, help="after which a structure is given up")] = 500,
    optimizer: Annotated[Optimizer, typer.Option(help="of ASE")] = Optimizer.fire,
    cell: Annotated[bool, typer.Option(help="relax cells too, by stress (gradient forces only)")] = False,
    edges: EdgesPerBatch = 20_000,
    device: Device = "cpu",
    dtype: Precision = DType.float32,
    tags: TagChoice = Tags.none,
    allow_far: AllowFar = False,
    allow_unseen: AllowUnseen = False,
    kernels: KernelChoice = Kernels.auto,
) -> None:
    """Relax every structure of a file, many at a time; the same command goes on after a kill."""
    from jmp_ds.inference.relax_file import Relaxation, relax_file

    predictor, meaning = _predictor(bundle, source, task, edges, device, dtype, tags, allow_far, allow_unseen, kernels)
    how = Relaxation(fmax=fmax, steps=steps, optimizer=optimizer.value, cell=cell)
    told = relax_file(predictor, source, output, how, tags=meaning, edge_budget=edges)
    typer.echo(
        f"{output}: {told.structures} structures, {told.converged} relaxed, {told.unfinished} given up, "
        f"{told.failed} failed (relax_error says why)"
    )


def md(
    bundle: BundlePath,
    source: SourcePath,
    output: OutputPath,
    steps: Annotated[int, typer.Option(min=1, help="steps of every structure", show_default=False)],
    task: TaskName = None,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    temperature: Annotated[float, typer.Option(help="K, of the thermostat and of initial velocities")] = 300.0,
    friction: Annotated[
        float | None, typer.Option(help="1/ps, Langevin thermostat; without it the energy is conserved")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="steps between frames")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="of velocities and noise")] = 0,
    edges: EdgesPerBatch = 20_000,
    device: Device = "cpu",
    dtype: Precision = DType.float32,
    tags: TagChoice = Tags.none,
    allow_far: AllowFar = False,
    allow_unseen: AllowUnseen = False,
    kernels: KernelChoice = Kernels.auto,
) -> None:
    """Molecular dynamics of every structure of a file, many at a time; the same command goes on after a kill."""
    from jmp_ds.inference.md_file import Dynamics, md_file

    predictor, meaning = _predictor(bundle, source, task, edges, device, dtype, tags, allow_far, allow_unseen, kernels)
    how = Dynamics(steps=steps, timestep=timestep, temperature=temperature, friction=friction, every=every, seed=seed)
    count = md_file(predictor, source, output, how, tags=meaning, edge_budget=edges)
    typer.echo(f"{output}: {count} structures, {steps} steps of {timestep:g} fs each")


def export(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a bundle or a run folder", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write", show_default=False)],
    errors: Annotated[
        Path | None, typer.Option(help="metrics.json of `evaluate --report`; by default those of the run's report")
    ] = None,
) -> None:
    """Write a bundle with a card: data, tasks, units, references, errors, graph rules, licences, versions.

    The folder holds all that a prediction needs; `README.md` is the card for people, `card.json` for programs.
    """
    from jmp_ds.inference.card import export as write

    card = write(path, out, errors)
    told = ", ".join(card["errors"]) or "none; --errors names a file of them"
    typer.echo(f"{out}: {len(card['tasks'])} tasks, errors on {told}")


def _predictor(
    bundle: Path,
    source: Path,
    task: str | None,
    edges: int,
    device: str,
    dtype: DType,
    tags: Tags,
    allow_far: bool,
    allow_unseen: bool,
    kernels: Kernels,
) -> tuple[Predictor, Any]:
    """The model ready for use, and what the structures' tags mean."""
    from jmp_ds.inference.predictor import Predictor
    from jmp_ds.inference.sources import Source

    meaning: Any = "ocp" if Source(source).is_store else tags.value
    refused: Any = frozenset([*(["far"] * (not allow_far)), *(["unseen"] * (not allow_unseen))])
    predictor = Predictor(
        bundle,
        task,
        device=device,
        dtype=dtype.value,
        tags=meaning,
        edge_budget=edges,
        kernels=kernels.value,
        refuse=refused,
    )
    return predictor, meaning
