"""`jmp-ds recipes` and `jmp-ds benchmark`: published tasks, told and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="print JSON")]

#: Columns of the table, with their titles; the rest is told by --json.
_SHOWN = {
    "recipe": "recipe",
    "label": "label",
    "head": "head",
    "reduction": "over atoms",
    "references": "refs",
    "cutoff": "cutoff",
    "max_neighbors": "M (fewer>atoms)",
    "batch": "batch",
    "weight": "weight",
    "published_precision": "published",
    "deepspeed": "run in",
    "folds": "folds",
    "metric": "metric",
    "unit": "unit",
}


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[FAMILY/TARGET[:FOLD]]", help="one of them, whole", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the published fine-tuning tasks with their values, or print one whole with the place of every value."""
    from jmp_ds.config.described import alone, annotated, values_of
    from jmp_ds.config.targets import find_target, targets

    if name is not None:
        target, fold = find_target(name)
        resolved = alone(target, fold)
        if as_json:
            values = {**values_of(target), "config": resolved.config.model_dump(mode="json", by_alias=True)}
            typer.echo(json.dumps(values, indent=1, ensure_ascii=False))
        else:
            typer.echo(_head(target.split_command("data", fold)) + annotated(resolved), nl=False)
        return
    rows = [values_of(target) for target in targets().values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = Table(title=f"{len(rows)} recipes: jmp-ds finetune --recipe FAMILY/TARGET", title_justify="left")
    for title in _SHOWN.values():
        table.add_column(title)
    for row in rows:
        fewer = [f"{step['max_neighbors']}>{step['above']}" for step in row["fewer_neighbors"]]
        row = {**row, "max_neighbors": " ".join([str(row["max_neighbors"]), *fewer])}
        table.add_row(*(_cell(row[key]) for key in _SHOWN))
    # a file or pipe shall get whole rows
    console = Console() if Console().is_terminal else Console(width=200)
    console.print(table)


def _head(split: str) -> str:
    return f"# The split comes from: {split}\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value in (None, 0) else f"{value:g}" if isinstance(value, float) else str(value)


def benchmark(
    words: Annotated[list[str], typer.Argument(metavar="FAMILY[/TARGET]... [KEY.SUB=VALUE]...", show_default=False)],
    data: Annotated[Path, typer.Option(help="folder with stores and splits, named as the recipes say")],
    out: Annotated[Path, typer.Option(help="folder for one run folder each, and the tables")],
    source: Annotated[str, typer.Option("--from", help="bundle to start from, or `scratch`")] = "scratch",
    folds: Annotated[str, typer.Option(help="such as `0-4` or `0,2`; where a recipe has folds")] = "0",
    seeds: Annotated[str, typer.Option(help="such as `0-2`")] = "0",
    published: Annotated[
        Path | None, typer.Option(help="YAML file of published results, as recipes/published_results.yaml")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="only write the tables of what is there")] = False,
) -> None:
    """Run recipes over folds and seeds, and write one table with mean ± deviation beside the published numbers.

    A family alone stands for all its targets. KEY.SUB=VALUE holds for every run. The same command goes on where it was
    interrupted: finished runs are not repeated, half ones continue. Exit codes: 0 all finished, 1 some failed, 2 a
    mistake in what was asked, 3 stopped on request.
    """
    from jmp_ds.benchmark import Benchmark, Series, parse_numbers
    from jmp_ds.cli.train_verbs import STOPPED, divide

    names, overrides = divide(words)
    asked = Benchmark(
        names=tuple(names),
        overrides=tuple(overrides),
        data=data,
        out=out,
        source=source,
        folds=parse_numbers(folds, "--folds"),
        seeds=parse_numbers(seeds, "--seeds"),
        published=published,
    )
    runs = asked.runs()
    ended = Series() if report_only else asked.carry_out(runs)
    typer.echo(asked.report(runs), nl=False)
    if ended.failed:
        typer.echo(f"jmp-ds: {len(ended.failed)} runs failed: {', '.join(ended.failed)}", err=True)
    if ended.stopped is not None:
        typer.echo(f"stopped in {ended.stopped}; the same command goes on from there", err=True)
        raise typer.Exit(STOPPED)
    if ended.failed:
        raise typer.Exit(1)
