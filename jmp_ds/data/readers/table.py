"""A table of structures with numbers: CSV or JSON (also gzipped); JSON as rows, {index, columns, data} or {column: list}.

One column holds the structure (see structures.py for what it may look like); the labels are columns the user names, with
their units.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jmp_ds.data.readers.archive import open_binary
from jmp_ds.data.readers.ase_any import plain_info
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.readers.structures import structure_fields
from jmp_ds.data.record import BadRecord
from jmp_ds.data.units import LabelSpec
from jmp_ds.errors import UserError

ABOUT = About(
    title="CSV or JSON table of structures with numbers",
    units="Å; labels in the units the user names",
    patterns=("*.csv", "*.csv.gz", "*.json", "*.json.gz"),
)
#: Columns that hold the structure, in the order they are looked for.
STRUCTURE_COLUMNS = ("structure", "cif", "poscar", "meta", "final_structure")
_LARGEST_CELL = 16 * 2**20


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every row with a structure and all the labels.

    Heeds labels (KEY: column), structure_key, id_key and group_key (columns).

    Raises:
        UserError: no label is named, a column does not exist, or the file is no such table.
    """
    rows = _json_rows(path) if ".json" in path.suffixes else _csv_rows(path)
    collector = Collector()
    column = ""
    for at, (row, done) in enumerate(rows):
        if not column:
            column = _structure_column(path, row, options)
        where = f"{path.name}#{at}"
        try:
            name = str(row[options.id_key]) if options.id_key else where
            collector.add(
                where,
                **structure_fields(row[column]),
                labels=labels_of(row, options.labels),
                id=name,
                group=str(row[options.group_key]) if options.group_key else "",
                info=plain_info({k: v for k, v in row.items() if k and k != column}),
            )
        except BadRecord as bad:
            collector.skip(bad, where)
        if collector.full:
            yield collector.take(done)
    yield collector.take(1.0)


def labels_of(row: Mapping[str, Any], specs: Iterable[LabelSpec]) -> dict[str, float]:
    """The labels of a row in this project's units; true and false become 1 and 0.

    Raises:
        BadRecord: `missing_label` for an empty cell, `unreadable` for one that is no number.
    """
    labels = {}
    for spec in specs:
        value = row.get(spec.key)
        text = str(value).strip().lower()
        if value is None or text in ("", "nan", "none", "null", "na"):
            raise BadRecord("missing_label", f"{spec.name}: column {spec.key!r} is empty")
        try:
            number = {"true": 1.0, "false": 0.0}[text] if text in ("true", "false") else float(value)
        except (TypeError, ValueError) as error:
            raise BadRecord("unreadable", f"{spec.name}: column {spec.key!r} holds {text[:40]!r}") from error
        labels[spec.name] = number * spec.unit.factor
    return labels


def csv_rows(stream: io.TextIOBase | Iterable[str]) -> Iterator[dict[str, Any]]:
    """Rows of a CSV text whose first lines may be comments that begin with #."""
    lines = iter(stream)
    header = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    # The module's limit of 128 KiB per cell is a setting of the whole process; a CIF of a large crystal is longer.
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_CELL))
    yield from csv.DictReader(_chain(header, lines))


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _csv_rows(path: Path) -> Iterator[tuple[dict[str, Any], float | None]]:
    with open_binary(path) as raw:
        try:
            for row in csv_rows(io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")):
                yield row, None
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no CSV table: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[dict[str, Any], float | None]]:
    with open_binary(path) as raw:
        try:
            value = json.load(raw)
        except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is no JSON table: {error}") from error
    if isinstance(value, dict) and {"columns", "data"} <= set(value):
        rows = [dict(zip(value["columns"], line, strict=True)) for line in value["data"]]
        for row, index in zip(rows, value.get("index", range(len(rows))), strict=True):
            row.setdefault("index", index)
    elif isinstance(value, list) and all(isinstance(row, dict) for row in value):
        rows = value
    elif isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        rows = [dict(zip(value, line, strict=True)) for line in zip(*value.values(), strict=True)]
    else:
        raise UserError(f"{path}: expected rows, {{index, columns, data}} or {{column: list}}")
    for at, row in enumerate(rows):
        yield row, (at + 1) / len(rows)


def _structure_column(path: Path, row: Mapping[str, Any], options: ReaderOptions) -> str:
    """The column that holds the structure, after checking that all the columns the options name exist."""
    columns = [str(key) for key in row]
    if not options.labels:
        raise UserError(f"{path}: name the labels, for instance --label gap=COLUMN:eV; its columns are {columns}")
    named = [*(spec.key for spec in options.labels), options.structure_key, options.id_key, options.group_key]
    unknown = [key for key in named if key and key not in row]
    if unknown:
        raise UserError(f"{path} has no column {unknown}; its columns are {columns}")
    found = options.structure_key or next((key for key in STRUCTURE_COLUMNS if key in row), "")
    if not found:
        raise UserError(f"{path}: no column {list(STRUCTURE_COLUMNS)}; say which of {columns} holds the structure")
    return found
