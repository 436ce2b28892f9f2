"""Verbs on bundles: evaluate, predict, fit-scales, import-jmp, show."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jmp_ds.cli.base import Graphs, Kernels, table_console


class DType(StrEnum):
    """Precision of the model."""

    float32 = "float32"
    float64 = "float64"


class Tags(StrEnum):
    """Meaning of ASE's tags."""

    none = "none"
    ocp = "ocp"


class JmpPreset(StrEnum):
    """Published sizes."""

    jmp_s = "jmp-s"
    jmp_l = "jmp-l"


class Weights(StrEnum):
    """Which weights of a published file."""

    ema = "ema"
    raw = "raw"
    published = "published"


BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="folder of the bundle", show_default=False)]
SourcePath = Annotated[
    Path, typer.Argument(metavar="INPUT", help="structures: anything ASE reads, or a store", show_default=False)
]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="folder of the store", show_default=False)]
TaskName = Annotated[
    str | None, typer.Option("--task", help="task of the bundle; may be left out if it is the only one")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]
Precision = Annotated[DType, typer.Option(help="precision of the model")]
KernelChoice = Annotated[Kernels, typer.Option("--kernels", help="what message passing is computed by")]
GraphChoice = Annotated[Graphs, typer.Option("--graphs", help="where graphs are built")]
TagChoice = Annotated[Tags, typer.Option(help="`ocp`: tags mean 0 below the surface, 1 surface, 2 adsorbate")]
EdgesPerBatch = Annotated[int, typer.Option(min=1, help="edges per batch, at most")]


def predict(
    bundle: BundlePath,
    source: SourcePath,
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="extended xyz (or .npz) to write", show_default=False)
    ],
    task: TaskName = None,
    features: Annotated[
        bool, typer.Option("--features", help="embeddings of atoms and structures instead, as .npz")
    ] = False,
    edges: EdgesPerBatch = 20_000,
    dtype: Precision = DType.float32,
    device: Device = "cpu",
    tags: TagChoice = Tags.none,
    kernels: KernelChoice = Kernels.auto,
    graphs: GraphChoice = Graphs.auto,
) -> None:
    """Predict energies (eV), forces (eV/Å), stress (eV/Å³) and other labels of every structure, in the order of the input.

    The output has its name only when it is whole; after a kill the same command goes on where it was.
    """
    from jmp_ds.cli.using import predict_structures

    count = predict_structures(
        bundle,
        source,
        output,
        task,
        features=features,
        device=device,
        dtype=dtype.value,
        tags=tags.value,
        edge_budget=edges,
        kernels=kernels.value,
        graphs=graphs.value,
    )
    typer.echo(f"{output}: {count} structures")


def evaluate(
    bundle: BundlePath,
    store: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="labelled structures: a store, or anything ASE reads", show_default=False),
    ],
    task: TaskName = None,
    split: Annotated[
        Path | None, typer.Option(help="file with the numbers of the structures of a store to use; all by default")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="folder for metrics.json and parity.png")] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="JSON lines with the errors of every structure; with it the command goes on after a kill"),
    ] = None,
    device: Device = "cpu",
    dtype: Precision = DType.float32,
    edges: EdgesPerBatch = 20_000,
    kernels: KernelChoice = Kernels.auto,
    graphs: GraphChoice = Graphs.auto,
) -> None:
    """Errors and other metrics of a bundle on labelled structures."""
    from jmp_ds.cli.bundle_work import evaluate_bundle
    from jmp_ds.cli.using import evaluate_rows

    if rows is not None or store.is_file() or "@" in store.name:
        evaluate_rows(bundle, store, task, split, report, rows, device, dtype.value, edges, kernels.value, graphs.value)
        return
    evaluate_bundle(bundle, store, task, split, report, device, dtype.value, edges, kernels.value, graphs.value)


def fit_scales(
    bundle: BundlePath,
    stores: Annotated[
        list[str], typer.Argument(metavar="TASK=STORE...", help="structures of each task", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option(help="bundle to write; by default the same is replaced")] = None,
    batches: Annotated[int, typer.Option(min=1, help="how many batches to fit on")] = 16,
    edges: EdgesPerBatch = 20_000,
    device: Device = "cpu",
    kernels: KernelChoice = Kernels.auto,
    graphs: GraphChoice = Graphs.auto,
) -> None:
    """Fit the scale factors of a bundle that have no value yet, on structures like those it is for.

    Training from scratch does this by itself; a bundle needs it when it was made otherwise.
    """
    from jmp_ds.cli.bundle_work import fit_bundle_scales

    fit_bundle_scales(bundle, stores, output or bundle, batches, edges, device, kernels.value, graphs.value)


def import_jmp(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="published Lightning checkpoint", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="bundle to write", show_default=False)],
    preset: Annotated[JmpPreset, typer.Option(help="size of the network in the file", show_default=False)],
    weights: Annotated[
        Weights, typer.Option(help="`published`: the mixture that the published fine-tuning runs started from")
    ] = Weights.ema,
) -> None:
    """Turn a published JMP checkpoint into a bundle, with the published graph rules and normalisation.

    Nothing in the file is executed. Every key of the file that the model has no use for is named.
    """
    from jmp_ds.inference.import_jmp import import_jmp as convert

    report = convert(file, out, preset.value, weights.value)
    for key in report.unmatched:
        typer.echo(f"unmatched: {key}", err=True)
    for name in report.zero_factors:
        typer.echo(f"scale factor without a value, taken as 1: {name}", err=True)
    if report.differing_aliases:
        typer.echo(
            f"{len(report.differing_aliases)} tensors are in the file twice with different contents; "
            "--weights decides which is taken",
            err=True,
        )
    typer.echo(f"{out}: {report.tensors} tensors, {report.weights} weights, {len(report.unmatched)} unmatched keys")


def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a bundle or a run folder", show_default=False)],
) -> None:
    """Show what a bundle or a run folder holds: tasks, graph rules, normalisation, provenance, last validation."""
    from jmp_ds.cli.show import show_path

    show_path(path, table_console())
