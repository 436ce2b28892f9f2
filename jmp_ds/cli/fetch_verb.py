"""`jmp-ds data fetch`: data from their publishers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from jmp_ds.cli.data_verbs import print_table


def fetch(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="what to fetch; without it, all names")] = "",
    out: Annotated[Path, typer.Option(help="folder; the data come into OUT/NAME")] = Path("data/original"),
    show: Annotated[bool, typer.Option("--show", help="licence, citation and addresses only")] = False,
    sources: Annotated[Path | None, typer.Option(help="another list of sources (YAML)")] = None,
) -> None:
    """Fetch a data set from its publishers. A broken download goes on where it was.

    Files are compared with the publisher's checksum where one is published; otherwise the checksum of the first download
    is remembered and compared from then on. What is there already is checked, not fetched again.
    """
    from jmp_ds.data.fetch import fetch as work
    from jmp_ds.data.fetch import sources as catalogue

    file = sources or catalogue.SOURCES
    if not name:
        rows = [(s.name, s.title, s.licence) for s in catalogue.sources(file).values()]
        print_table("what can be fetched", ("name", "what it is", "licence"), rows)
        return
    chosen = catalogue.source(name, file)
    typer.echo(f"{chosen.title}\nlicence: {chosen.licence}\ncite: {chosen.citation}")
    for remote in chosen.files:
        stated = f"{remote.kind} {remote.checksum}" if remote.kind else "no published checksum"
        typer.echo(f"  {remote.url}  ({stated})")
    if show:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks: dict[str, int] = {}

        def seen(what: str, have: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = int(bar.add_task(what, total=total or None))
            bar.update(tasks[what], completed=have, total=total or None)  # type: ignore[arg-type]

        fetched = work.fetch(chosen, out / name, seen=seen)
    files = [(f.path.name, str(f.bytes), f.sha256[:16], f.how) for f in fetched]
    print_table(f"in {out / name}", ("file", "bytes", "sha256", "checksum"), files)
    if chosen.convert:
        places = " ".join(str(f.unpacked or f.path) for f in fetched if not f.exclude)
        lists = "".join(f" --exclude {f.path}" for f in fetched if f.exclude)
        typer.echo(f"next: jmp-ds data convert {places} STORE {chosen.convert}{lists}")


def register(group: typer.Typer) -> None:
    """Add this verb to the group of data verbs."""
    group.command("fetch")(fetch)
