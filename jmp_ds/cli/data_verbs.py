"""`jmp-ds data VERB`: from files to stores, and what is in a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as RichTable

from jmp_ds.cli.base import new_group, table_console

group = new_group("Stores of labelled structures: make, look at, check.")

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="folder of the store", show_default=False)]


@group.command(no_args_is_help=True)
def show(
    store: StorePath,
    structure: Annotated[int | None, typer.Option(help="show this structure instead of the whole")] = None,
) -> None:
    """Show what a store holds: structures, labels, elements, where they come from."""
    from jmp_ds.data import inspect
    from jmp_ds.data.store import Store

    opened = Store(store)
    for table in inspect.show(opened) if structure is None else inspect.show_record(opened, structure):
        print_table(table.title, table.columns, table.rows)


@group.command(no_args_is_help=True)
def check(
    store: StorePath,
    quick: Annotated[bool, typer.Option("--quick", help="checksums only, do not read every structure")] = False,
) -> None:
    """Check a store: files, checksums, every structure. Exit code 1 if something is wrong."""
    from jmp_ds.data import inspect
    from jmp_ds.data.store import Store

    opened = Store(store)
    problems = inspect.check(opened, records=not quick, progress=True)
    if problems:
        table = inspect.problem_table(problems)
        print_table(table.title, table.columns, table.rows)
        raise typer.Exit(1)
    typer.echo(f"{store}: {len(opened)} structures, no problem found")


@group.command(no_args_is_help=True)
def stats(store: StorePath) -> None:
    """Compute element references and normalisation of all labels, and keep them with the store."""
    from jmp_ds.data.references import fit_statistics, save_statistics
    from jmp_ds.data.store import Store

    opened = Store(store)
    statistics = fit_statistics(opened, progress=True)
    file = save_statistics(opened, statistics)
    rows = [
        (name, str(label.count), f"{label.mean:.6g}", f"{label.std:.6g}", f"{label.rms:.6g}")
        for name, label in statistics.labels.items()
    ]
    print_table("labels (energy: less element references)", ("label", "structures", "mean", "std", "rms"), rows)
    typer.echo(f"kept in {file}")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output."""
    table = RichTable(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    table_console().print(table)
