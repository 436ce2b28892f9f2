"""`jmp-ds data split` and `jmp-ds data leaks`: parts of stores, and whether they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmp_ds.cli.data_verbs import StorePath, print_table
from jmp_ds.errors import UserError

if TYPE_CHECKING:
    from jmp_ds.data.leaks import Leak


def split(
    store: StorePath,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="for the files of indices", show_default=False)],
    published: Annotated[str, typer.Option(help="a published split by name; an unknown one lists them")] = "",
    fold: Annotated[int | None, typer.Option(help="which fold is the test set, from 0")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="instead: NAME=SHARE, a fraction or a number; may be repeated")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of a split by --part")] = 0,
    by: Annotated[str, typer.Option(help="of a split by --part: `group` or `structure`")] = "group",
) -> None:
    """Write which structures train, validate and test, as files of indices; tell what the parts share.

    A published split is rebuilt from its seed and sizes. FOLDER gets PART.npy and split.json.
    """
    from jmp_ds.data import published as recipes
    from jmp_ds.data.leaks import Part, leaks
    from jmp_ds.data.splits import split as at_random
    from jmp_ds.data.store import Store

    if bool(published) == bool(part):
        raise UserError("data split: name either a published split or parts (--published NAME, or --part NAME=SHARE)")
    opened = Store(store)
    about: dict[str, Any] = {"store": opened.summary.fingerprint, "structures": len(opened)}
    if published:
        how = recipes.published(published)
        parts = recipes.of_store(how, opened, fold=fold)
        about |= {"published": published, "seed": how.seed, "fold": fold, "note": how.note}
    else:
        if by not in ("group", "structure"):
            raise UserError(f"--by must be group or structure, got {by!r}")
        shares = dict(_share(text) for text in part or ())
        parts = at_random(opened.groups, shares, seed=seed, by="group" if by == "group" else "structure")
        about |= {"seed": seed, "by": by, "shares": shares}
    found = leaks([Part(name, opened, indices) for name, indices in parts.items()])
    about["leaks"] = [
        {"kind": x.kind, "parts": list(x.parts), "count": x.count, "example": list(x.example)} for x in found
    ]
    recipes.written(parts, out, about)
    print_table(f"split in {out}", ("part", "structures"), [(name, str(len(i))) for name, i in parts.items()])
    if about.get("note"):
        typer.echo(f"note: {about['note']}")
    tell(found)


def leaks(
    parts: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]STORE[:INDICES]...", help="stores, or parts of them by a file of indices"),
    ],
) -> None:
    """Tell whether stores, or parts of them, share structures, ids or groups. Exit code 1 if they do."""
    import numpy as np

    from jmp_ds.data.leaks import Part
    from jmp_ds.data.leaks import leaks as find
    from jmp_ds.data.splits import read_indices
    from jmp_ds.data.store import Store

    chosen = []
    for text in parts:
        name, equals, rest = text.partition("=")
        place, colon, file = (rest if equals else text).rpartition(":")
        store = Store(place if colon else file)
        indices = read_indices(file) if colon else np.arange(len(store))
        if len(indices) and (indices.min() < 0 or indices.max() >= len(store)):
            raise UserError(f"{text}: holds index {int(indices.max())}; the store has 0 to {len(store) - 1}")
        chosen.append(Part(name if equals else text, store, indices))
    if len(chosen) < 2:
        raise UserError("data leaks: name at least two parts")
    if tell(find(chosen)):
        raise typer.Exit(1)


def tell(found: Sequence[Leak]) -> bool:
    """Print what parts share; whether they do."""
    if not found:
        typer.echo("no structure, id or group is in two parts")
        return False
    rows = [(x.kind, " and ".join(x.parts), str(x.count), " and ".join(x.example)) for x in found]
    print_table("shared between parts", ("what", "parts", "structures", "example"), rows)
    return True


def _share(text: str) -> tuple[str, float | int]:
    name, equals, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not equals or not name or number < 0:
        raise UserError(f"--part {text}: must look like NAME=SHARE, a fraction or a number of structures")
    return name, int(value) if value.isdecimal() else number


def register(group: typer.Typer) -> None:
    """Add these verbs to the group of data verbs."""
    group.command("split", no_args_is_help=True)(split)
    group.command("leaks", no_args_is_help=True)(leaks)
