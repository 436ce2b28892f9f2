"""`jmp-ds data convert` and `jmp-ds data demo`: making stores."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jmp_ds.cli.base import one_line
from jmp_ds.cli.data_verbs import print_table
from jmp_ds.errors import UserError

PathsThenStore = Annotated[
    list[Path],
    typer.Argument(metavar="SOURCE... STORE", help="files or folders, then the new store", show_default=False),
]


def convert(
    paths: PathsThenStore,
    format: Annotated[str, typer.Option("--format", "-f", help="what the files are; see `jmp-ds data formats`")] = "",
    label: Annotated[
        list[str] | None, typer.Option(help="a label of the source as NAME=KEY:UNIT (see the format); may be repeated")
    ] = None,
    group_key: Annotated[str, typer.Option(help="key of the source that names a group which splits must not cut")] = "",
    id_key: Annotated[str, typer.Option(help="key of the source that names a structure")] = "",
    structure_key: Annotated[str, typer.Option(help="column that holds the structure")] = "",
    table: Annotated[Path | None, typer.Option(help="CSV file with labels, its first column naming structures")] = None,
    tags: Annotated[str, typer.Option(help="`ocp`: tags mean 0 below the surface, 1 surface, 2 adsorbate")] = "source",
    level: Annotated[str, typer.Option(help="which of several levels of theory in one file")] = "",
    ignore_charge: Annotated[
        bool, typer.Option("--ignore-charge", help="take ions and radicals as if neutral")
    ] = False,
    require: Annotated[
        list[str] | None, typer.Option(help="label that every structure must have; may be repeated")
    ] = None,
    allow_unlabelled: Annotated[
        bool, typer.Option("--allow-unlabelled", help="take structures without labels")
    ] = False,
    exclude: Annotated[
        Path | None, typer.Option(help="list of structures to leave out, by id or by the source's number")
    ] = None,
    exclude_rows: Annotated[
        str,
        typer.Option(metavar="FIRST:LAST", help="which lines of that list name one in their first column, e.g. 9:-1"),
    ] = "",
    max_bad: Annotated[
        float, typer.Option(help="structures that may be left out: a fraction below 1, else a number")
    ] = 0.01,
    trust_units: Annotated[bool, typer.Option("--trust-units", help="go on where the check of units refuses")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a store of that name")] = False,
    processes: Annotated[int, typer.Option(min=0, help="that read the sources; 0 takes every core if it pays")] = 0,
    describe: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the store's metadata, e.g. level_of_theory=PBE; may be repeated"),
    ] = None,
) -> None:
    """Convert files of labelled structures into a store.

    Units are those that the format states; energies are compared with forces where both are there. What cannot be used
    is left out and counted by reason. Exit code 1 if more is left out than `--max-bad` allows. After an interruption the
    same command goes on where it was.
    """
    from jmp_ds.data.convert import ConvertOptions, convert, processes_for
    from jmp_ds.data.exclusion import read_exclusion
    from jmp_ds.data.readers.base import ReaderOptions
    from jmp_ds.data.units import LabelSpec

    if len(paths) < 2:
        raise UserError("data convert takes at least one source and the store to write")
    if not format:
        raise UserError("--format is needed: units are never guessed; `jmp-ds data formats` lists them")
    if tags not in ("source", "ocp"):
        raise UserError(f"--tags must be source or ocp, got {tags!r}")
    if exclude_rows and exclude is None:
        raise UserError("--exclude-rows says which lines of a list count, but there is no list: --exclude FILE")
    report = convert(
        paths[:-1],
        paths[-1],
        format,
        reader_options=ReaderOptions(
            labels=tuple(LabelSpec.parse(text) for text in label or ()),
            group_key=group_key,
            id_key=id_key,
            tags="ocp" if tags == "ocp" else "source",
            ignore_charge=ignore_charge,
            level=level,
            structure_key=structure_key,
            table=table,
        ),
        options=ConvertOptions(
            max_bad=max_bad,
            require=tuple(require or ()),
            allow_unlabelled=allow_unlabelled,
            trust_units=trust_units,
            exclude=None if exclude is None else read_exclusion(exclude, exclude_rows),
            overwrite=overwrite,
            processes=processes_for(paths[:-1], processes),
            describe=dict(_pair(text) for text in describe or ()),
        ),
    )
    console = Console()
    if report.resumed:
        typer.echo(f"went on behind {report.resumed} structures of an interrupted conversion")
    if report.skipped:
        console.print(report.table())
    for note in report.notes:
        typer.echo(f"note: {note}")
    if "all files" in report.units:
        typer.echo(f"units: {report.units['all files'].message}")
    if report.failed:
        typer.echo(f"jmp-ds: {one_line(ValueError(report.failure))}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{report.store}: {report.written} structures from {report.files} files in {report.seconds:.1f} s")


def formats() -> None:
    """List the formats that `convert` reads, with their units."""
    from jmp_ds.data.readers import READERS, reader

    abouts = {name: reader(name).about for name in READERS}
    rows = [(name, about.title, about.units, about.level_of_theory) for name, about in abouts.items()]
    print_table("formats", ("--format", "what it is", "units in the files", "level of theory"), rows)


def demo(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="folder for the stores")] = Path("data/demo"),
    regenerate: Annotated[
        bool, typer.Option("--regenerate", help="compute anew instead of unpacking (needs tblite)")
    ] = False,
    scale: Annotated[float | None, typer.Option(help="compute anew with so many times the structures")] = None,
    size: Annotated[list[str] | None, typer.Option(help="compute anew: SET=STRUCTURES; may be repeated")] = None,
    seed: Annotated[int, typer.Option(min=0, help="other structures for another seed (computes anew)")] = 0,
    processes: Annotated[int, typer.Option(min=0, help="for computing; 0 takes every core")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace stores that are there")] = False,
) -> None:
    """Make demonstration data: four pre-training domains and three fine-tuning sets.

    Without options the small set that comes with the package is unpacked. Labels are semi-empirical (xTB): a
    demonstration, of no scientific use.
    """
    from jmp_ds.data.demo.generate import make_demo
    from jmp_ds.data.demo.plan import default_sizes
    from jmp_ds.data.demo.shipped import unpack_demo

    workers = processes or len(os.sched_getaffinity(0))
    if scale is None and not size and seed == 0:
        stores = unpack_demo(out, regenerate=regenerate, processes=workers, overwrite=overwrite)
        print_table("demonstration data", ("set", "store"), [(name, str(path)) for name, path in stores.items()])
        return
    sizes = default_sizes(1.0 if scale is None else scale)
    if size:
        sizes = {**(sizes if scale is not None else {}), **dict(_size(text) for text in size)}
    command = shlex.join(["jmp-ds", *sys.argv[1:]])
    reports = make_demo(out, sizes=sizes, seed=seed, processes=workers, overwrite=overwrite, command=command)
    rows = [(n, str(r.path), str(r.structures), f"{r.seconds:.0f} s") for n, r in reports.items()]
    print_table("demonstration data", ("set", "store", "structures", "time"), rows)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r}: must look like KEY=VALUE")
    return key, value


def _size(text: str) -> tuple[str, int]:
    name, value = _pair(text)
    if not value.isdecimal():
        raise UserError(f"--size {text}: the number of structures must be a whole number")
    return name, int(value)


def register(group: typer.Typer) -> None:
    """Add these verbs to the group of data verbs."""
    group.command("convert", no_args_is_help=True)(convert)
    group.command("formats")(formats)
    group.command("demo")(demo)
