"""`jmp-ds bench VERB`: what a training step costs, against the dense products that it cannot do without."""

from __future__ import annotations

import csv
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jmp_ds.cli.base import Kernels, new_group

group = new_group("Benchmarks: what a training step costs.")


class ModelSize(StrEnum):
    """Presets."""

    jmp_s = "jmp-s"
    jmp_l = "jmp-l"
    jmp_xl = "jmp-xl"
    jmp_xxl = "jmp-xxl"
    tiny = "tiny"


class StepPrecision(StrEnum):
    """Precision of the dense layers."""

    float32 = "float32"
    bf16 = "bf16"
    float64 = "float64"


class StepForces(StrEnum):
    """Where forces come from."""

    direct = "direct"
    gradient = "gradient"


class Switch(StrEnum):
    """On or off."""

    on = "on"
    off = "off"


class Yardstick(StrEnum):
    """What the model is compared with."""

    none = "none"
    enumerated = "enumerated"


@group.command(no_args_is_help=True)
def step(
    model: Annotated[ModelSize, typer.Option(help="size of the network")] = ModelSize.jmp_s,
    batch: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="slab98, aspirin4, aspirin, oc20x8, ani64, slab225x4, mixed, or a file of structures",
        ),
    ] = "slab98",
    precision: Annotated[StepPrecision, typer.Option(help="of the dense layers; bf16 is autocast")] = (
        StepPrecision.float32
    ),
    forces: Annotated[StepForces, typer.Option(help="from a head, or as gradient of the energy")] = StepForces.direct,
    kernels: Annotated[Kernels, typer.Option(help="what message passing is computed by")] = Kernels.auto,
    recompute: Annotated[Switch, typer.Option(help="whether blocks keep only their inputs")] = Switch.off,
    compare: Annotated[
        Yardstick, typer.Option(help="`enumerated`: the published, padded form in turn with the model")
    ] = Yardstick.none,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="threads on the CPU [default: PyTorch's]")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed rounds")] = 5,
    details: Annotated[bool, typer.Option(help="also measure memory, operations and parts, in further steps")] = True,
    cutoff: Annotated[float | None, typer.Option(help="in Å, instead of the batch's own")] = None,
    max_neighbors: Annotated[int | None, typer.Option(help="instead of the batch's own")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="write all numbers here")] = None,
) -> None:
    """Time whole training steps against the floor of dense products, in turn (docs/benchmarks.md defines the numbers)."""
    from jmp_ds.bench.measure import StepRequest, measure
    from jmp_ds.bench.tables import headline, step_tables
    from jmp_ds.cli.data_verbs import print_table
    from jmp_ds.files import write_json

    request = StepRequest(
        model=model.value,
        batch=batch,
        precision=precision.value,
        forces=forces.value,
        kernels=kernels.value,
        recompute=recompute is Switch.on,
        compare="enumerated" if compare is Yardstick.enumerated else "",
        device=device,
        threads=threads,
        repeats=repeats,
        details=details,
        cutoff=cutoff,
        max_neighbors=max_neighbors,
    )
    found = measure(request)
    typer.echo(headline(found))
    for table in step_tables(found):
        print_table(table.title, table.columns, table.rows)
    if json_file is not None:
        write_json(json_file, found)


@group.command(no_args_is_help=True)
def prediction(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="written by `bench step --json`")],
    fit: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="fit times to these files only; repeat it [default: all of them]"),
    ] = None,
) -> None:
    """Compare measured steps with what `jmp-ds plan` says of them: kept activations, peak memory, time."""
    from jmp_ds.bench.prediction import compare, prediction_table, summary
    from jmp_ds.cli.data_verbs import print_table

    found = compare(files, fit or files)
    table = prediction_table(found)
    print_table(table.title, table.columns, table.rows)
    for line in summary(found):
        typer.echo(line)


class GrowthSeries(StrEnum):
    """What grows."""

    neighbors = "neighbors"
    neighbors_proportional = "neighbors-proportional"
    atoms = "atoms"


class GrowthForm(StrEnum):
    """Which network."""

    linear = "linear"
    enumerated = "enumerated"


@group.command(no_args_is_help=True)
def growth(
    series: Annotated[GrowthSeries, typer.Option(help="what grows; `neighbors` keeps the other caps")],
    form: Annotated[GrowthForm, typer.Option(help="the model, or its published, padded form")] = GrowthForm.linear,
    model: Annotated[ModelSize, typer.Option(help="whose widths")] = ModelSize.jmp_s,
    blocks: Annotated[int, typer.Option(min=1, help="interaction blocks")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="threads on the CPU [default: PyTorch's]")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="steps per size")] = 3,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="write growth-SERIES.csv, .png here")] = None,
) -> None:
    """Measure how the cost grows with neighbours or atoms, and fit exponents."""
    import torch

    from jmp_ds.bench.growth import GrowthPoint, csv_rows, exponent, grow
    from jmp_ds.cli.data_verbs import print_table
    from jmp_ds.errors import UserError
    from jmp_ds.report import Curve, plot_curves

    if threads:
        torch.set_num_threads(threads)
    name = series.value if form is GrowthForm.linear else f"{series.value}-enumerated"
    points: list[GrowthPoint] = []
    try:
        points.extend(grow(series.value, model.value, blocks, device, repeats, form.value))
    except UserError as refused:
        if len(points) < 2:
            raise
        typer.echo(f"the series ends at {points[-1].size}: {refused}", err=True)
    rows = csv_rows(points)
    print_table(f"growth with {name}", list(rows[0]), [[str(v) for v in row.values()] for row in rows])
    slopes = {cost: exponent(points, cost) for cost in ("interactions", "network")}
    for cost, slope in slopes.items():
        typer.echo(f"{cost}: exponent {slope:.2f}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / f"growth-{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        sizes = [float(p.size) for p in points]
        curves = [Curve(f"{c}, exponent {slopes[c]:.2f}", sizes, [getattr(p, c) for p in points]) for c in slopes]
        plot_curves(out / f"growth-{name}.png", {"seconds per step": curves}, name, log_x=True)
