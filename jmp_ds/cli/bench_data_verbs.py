"""`jmp-ds bench VERB`, about data: how loading scales, what batches cost, how evenly ranks share them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from jmp_ds.cli.base import Kernels
from jmp_ds.cli.bench_verbs import ModelSize, StepForces, StepPrecision, Switch

Out = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="write tables and pictures here")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads on the CPU [default: PyTorch's]")]


class Orders(StrEnum):
    """Orders of an epoch."""

    random = "random"
    local = "local"


def loading(
    sizes: Annotated[str, typer.Option(help="structures per set, up to four sets")] = "100e6,8e6,2e6,10e6",
    order: Annotated[Orders, typer.Option(help="order of the epoch")] = Orders.random,
    cold: Annotated[bool, typer.Option("--cold", help="the files are not in memory at the beginning")] = False,
    folder: Annotated[Path | None, typer.Option(help="keep the made-up stores here, or take them from here")] = None,
    out: Out = None,
) -> None:
    """Opening, memory and time per batch and rank with made-up stores of any size; they take 8 bytes per structure."""
    from jmp_ds.bench import positions, synthetic

    numbers = [int(float(n)) for n in sizes.split(",")]
    with TemporaryDirectory() as temporary:
        place = folder or Path(temporary) / "stores"
        if not place.exists():
            synthetic.make(place, numbers)
        found = [
            positions.measure(place, numbers, positions.WORLDS, order.value, cold=cold and not beside, beside=beside)
            for beside in (False, True)
        ]
    rows = [
        {
            "beside another rank": run["beside"],
            "open (s)": run["open_s"],
            "to the first batch (s)": run["first_batch_s"],
            "own memory, opening (MB)": run["opening_mb"]["dirty"],
            "own memory, running (MB)": run["running_mb"]["dirty"],
            "with unshared pages of files (MB)": run["running_mb"]["unshared"],
        }
        for run in found
    ]
    _show("opening and memory above the imported program", rows)
    _show("time per batch of one rank (ms)", found[0]["batches"])
    _write(out, f"loading-{order.value}", found[0]["batches"], found)


def reading(
    structures: Annotated[int, typer.Option(min=1000, help="of the real store that is written")] = 100_000,
    atoms: Annotated[int, typer.Option(min=1, help="per structure")] = 80,
    folder: Annotated[Path | None, typer.Option(help="keep the store here, or take it from here")] = None,
    out: Out = None,
) -> None:
    """How random the orders are, and how fast a store that is not in memory is read in them."""
    from jmp_ds.bench import positions
    from jmp_ds.bench import reading as bench

    with TemporaryDirectory() as temporary:
        place = folder or Path(temporary) / "store"
        if not place.exists():
            bench.write_store(place, structures, atoms)
        kinds: tuple[Any, ...] = ("random", "local", "as stored")
        rates = [
            {"order": kind, "in memory": not cold, **bench.read(place, kind, structures // 2, cold=cold)}
            for kind in kinds
            for cold in (True, False)
        ]
    random = [{"order": o, **bench.randomness(positions.LARGE, 2.0, o)} for o in kinds[:2]]
    _show("randomness", random)
    _show(f"reading {structures // 2} of {structures} structures", rates)
    _write(out, "reading", rates, {"randomness": random, "reading": rates})


def cost(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="the cost model, for sampling.batch.cost")],
    model: Annotated[ModelSize, typer.Option(help="size of the network")] = ModelSize.jmp_s,
    edges: Annotated[int, typer.Option(min=100, help="of the largest batch")] = 20_000,
    seconds: Annotated[float, typer.Option(min=5.0, help="how long to measure")] = 120.0,
    forces: Annotated[StepForces, typer.Option(help="from a head, or as gradient of the energy")] = StepForces.direct,
    precision: Annotated[StepPrecision, typer.Option(help="of the dense layers")] = StepPrecision.float32,
    kernels: Annotated[Kernels, typer.Option(help="what message passing is computed by")] = Kernels.auto,
    recompute: Annotated[Switch, typer.Option(help="whether blocks keep only their inputs")] = Switch.off,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    threads: Threads = None,
) -> None:
    """Calibrate what a structure costs: time batches of all kinds, fit coefficients of their counts."""
    import torch

    from jmp_ds.bench import cost as bench

    if threads:
        torch.set_num_threads(threads)
    request = bench.CostRequest(
        model=model.value,
        forces=forces.value,
        precision=precision.value,
        kernels=kernels.value,
        recompute=recompute is Switch.on,
        device=device,
        edges=edges,
        seconds=seconds,
    )
    fitted = bench.fit(bench.measure(request), request)
    fitted.save(output)
    _show("seconds per count", [{"count": "(batch)", "s": fitted.fixed}])
    _show("", [{"count": name, "s": value} for name, value in fitted.coefficients.items()])
    _show("fit", [{"what": name, "value": value} for name, value in fitted.about.items()])
    typer.echo(f"{output}: name it as sampling.batch.cost")


def balance(
    model_file: Annotated[Path, typer.Argument(metavar="COST", help="a cost model (`jmp-ds bench cost`)")],
    edges: Annotated[int, typer.Option(min=100, help="budget of a rank's batch")] = 20_000,
    real: Annotated[int, typer.Option(min=0, help="ranks whose batches are really computed; 0: none")] = 0,
    out: Out = None,
) -> None:
    """Spread of a step's cost over ranks, balanced in several ways, on a mixture of slabs and molecules."""
    from jmp_ds.bench import balance as bench
    from jmp_ds.bench.cost import CostRequest
    from jmp_ds.bench.population import population
    from jmp_ds.data.costs import load_cost_model

    fitted = load_cost_model(model_file)
    drawn_from = population()
    rows = bench.simulate(drawn_from, fitted, bench.WORLDS, edges)
    _show("largest over mean cost of a rank's batch, predicted", rows)
    computed: list[dict[str, Any]] = []
    if real:
        kept = {k: fitted.about[k] for k in ("model", "forces", "precision", "recompute") if k in fitted.about}
        computed = bench.run(drawn_from, fitted, CostRequest(**kept), real, edges)
        _show("largest over mean time of a rank's batch, computed one after the other", computed)
    _write(out, "balance", rows, {"predicted": rows, "computed": computed, "cost_model": dict(fitted.about)})
    if out is not None:
        from jmp_ds.report import Curve, plot_curves

        curves = []
        for name in dict.fromkeys(row["balanced_by"] for row in rows):
            own = [row for row in rows if row["balanced_by"] == name]
            curves.append(Curve(name, [r["ranks"] for r in own], [r["worst"] - 1.0 for r in own]))
        plot_curves(out / "balance.png", {"worst step: largest over mean cost, less 1": curves}, "ranks")


def feeding(
    model_file: Annotated[Path, typer.Argument(metavar="COST", help="a cost model: what the step takes")],
    edges: Annotated[int, typer.Option(min=100, help="budget of a batch")] = 20_000,
    workers: Annotated[str, typer.Option(help="numbers of worker processes; 0: in the trainer")] = "0,1,2",
    seconds: Annotated[float, typer.Option(min=1.0, help="per number of workers")] = 15.0,
    out: Out = None,
) -> None:
    """Structures and edges per second from data workers, against what the step of a cost model takes."""
    import torch

    from jmp_ds.bench import feeding as bench
    from jmp_ds.bench.population import population
    from jmp_ds.data.costs import load_cost_model

    torch.set_num_threads(1)
    fitted = load_cost_model(model_file)
    with TemporaryDirectory() as temporary:
        sources = bench.write_sources(Path(temporary), population())
        rows = [bench.feed(sources, int(n), edges, seconds) for n in workers.split(",")]
    wanted = 1.0 / fitted.per_edge
    rows = [{**row, "over_the_step": row["edges_per_s"] / wanted} for row in rows]
    _show(f"batches as they come; the step of {model_file} takes {wanted:.0f} edges per second", rows)
    _write(out, "feeding", rows, {"step_edges_per_s": wanted, "cost_model": dict(fitted.about), "workers": rows})


def register(group: typer.Typer) -> None:
    """Add the verbs to a group."""
    group.command()(loading)
    group.command()(reading)
    group.command(no_args_is_help=True)(cost)
    group.command(no_args_is_help=True)(balance)
    group.command(no_args_is_help=True)(feeding)


def _show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from jmp_ds.cli.data_verbs import print_table

    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    print_table(title, list(rows[0]), cells)


def _write(out: Path | None, name: str, rows: Sequence[Mapping[str, Any]], everything: Any) -> None:
    """`NAME.csv` with the rows, `NAME.json` with everything."""
    from jmp_ds.files import write_json

    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_json(out / f"{name}.json", everything, finite=False)
