"""Many CIF files, in a folder, a zip or a tar, with labels from a CSV table that names them in a column."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from jmp_ds.data.readers.archive import open_binary, texts
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.readers.structures import structure_fields
from jmp_ds.data.readers.table import csv_rows, labels_of
from jmp_ds.data.record import BadRecord
from jmp_ds.errors import UserError

ABOUT = About(
    title="CIF files in a folder, a zip or a tar, with labels from a CSV table (option table)",
    units="Å; labels in the units the user names",
    patterns=("*.zip", "*.tar", "*.tar.gz"),
    folder=True,
)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every CIF file; its name without folder and `.cif` is looked up in the table's column id_key (default: its first).

    Raises:
        UserError: labels without a table, or a column that does not exist.
    """
    rows = _rows(options)
    collector = Collector()
    for name, text in texts(path, (".cif",)):
        key = PurePosixPath(name).name.removesuffix(".cif")
        try:
            if options.labels and key not in rows:
                raise BadRecord("missing_label", f"the table does not name {key}")
            labels = labels_of(rows[key], options.labels) if options.labels else {}
            collector.add(name, **structure_fields(text), labels=labels, id=key)
        except BadRecord as bad:
            collector.skip(bad, name)
        if collector.full:
            yield collector.take()
    yield collector.take()


def _rows(options: ReaderOptions) -> dict[str, dict[str, Any]]:
    """The table's rows by name."""
    if options.table is None:
        if options.labels:
            raise UserError("CIF files hold no labels; name the CSV table that does (--table)")
        return {}
    with open_binary(options.table) as raw:
        rows = list(csv_rows(io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")))
    columns = list(rows[0]) if rows else []
    key = options.id_key or (columns[0] if columns else "")
    unknown = [name for name in (key, *(spec.key for spec in options.labels)) if name not in columns]
    if unknown:
        raise UserError(f"{options.table} has no column {unknown}; its columns are {columns}")
    return {str(row[key]).removesuffix(".cif"): row for row in rows}
