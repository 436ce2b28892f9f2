"""ASE databases in LMDB (*.aselmdb): one zlib-packed JSON row per structure under the keys 1, 2, ...; eV and Å.

The rows are those of ASE's JSON databases; arrays stand in them as lists, or as {"__ndarray__": [shape, dtype, list]}.
Labels are found as for other files of ASE (format `ase`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.db.row import AtomsRow

from jmp_ds.data.environments import read_only
from jmp_ds.data.readers.ase_any import fields_of
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions, chosen_units
from jmp_ds.data.record import BadRecord
from jmp_ds.errors import UserError

ABOUT = About(
    title="ASE database in LMDB (*.aselmdb)",
    units="eV, Å, eV/Å, eV/Å^3 (ASE)",
    energy="ASE's energy: extrapolated to zero smearing where the code does so, not the free energy",
    patterns=("*.aselmdb",),
    labels={"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"},
)
PORTION = 5_000
_RESERVED = (b"nextid", b"deleted_ids", b"metadata")
#: A row that unpacks to more than this is none.
_LARGEST = 256 << 20


def units(path: Path, options: ReaderOptions) -> tuple[int, int]:
    """Rows of the file.

    Raises:
        UserError: not such a file.
    """
    return len(_ids(path)), PORTION


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every row in the order of its number. Heeds the options of `ase_any.blocks` and span.

    Raises:
        UserError: not such a file.
    """
    ids = _ids(path)
    chosen = chosen_units(options, len(ids))
    collector = Collector()
    with read_only(path, readahead=True).begin(buffers=True) as transaction:
        for at in chosen:
            where = f"{path.name}#{at}"
            try:
                row = unpacked(bytes(transaction.get(str(ids[at]).encode(), b"")), where)
                fields = _fields(row, options)
                collector.add(where, **{**fields, "id": fields["id"] or where})
            except BadRecord as bad:
                collector.skip(bad, where)
            if collector.full:
                yield collector.take((at + 1) / len(ids))
    yield collector.take(1.0)


def unpacked(data: bytes, where: str) -> Any:
    """JSON of a packed value; arrays in place of their marks.

    Raises:
        BadRecord: `unreadable`, or it unpacks to more than a row can be.
    """
    try:
        stream = zlib.decompressobj()
        text = stream.decompress(data, _LARGEST)
        if stream.unconsumed_tail:
            raise BadRecord("unreadable", f"{where} unpacks to more than {_LARGEST >> 20} MiB")
        return json.loads(text, object_hook=_array)
    except (zlib.error, ValueError, TypeError, RecursionError) as error:
        raise BadRecord("unreadable", f"no row of an ASE database: {error}") from error


def _array(value: dict[str, Any]) -> Any:
    """An array in place of its mark; other dictionaries unchanged."""
    if set(value) != {"__ndarray__"}:
        return value
    shape, dtype, numbers = value["__ndarray__"]
    kind = np.dtype(str(dtype))
    if kind.kind not in "biuf":
        raise ValueError(f"an array of {dtype!r}")
    return np.array(numbers, dtype=kind).reshape(shape)


def _fields(row: Any, options: ReaderOptions) -> dict[str, Any]:
    """What `make_record` needs, of one row."""
    try:
        parsed = AtomsRow({**row, "data": {}})
        atoms = parsed.toatoms()
        data = row.get("data") or {}
        facts = {**(row.get("key_value_pairs") or {}), **(data if isinstance(data, dict) else {})}
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
    except Exception as error:
        # ASE raises whatever it stumbles over in a row; here one structure is at fault.
        raise BadRecord("unreadable", f"no row of an ASE database: {type(error).__name__}: {error}") from error
    return fields_of(atoms, results, facts, options)


def _ids(path: Path) -> list[int]:
    """Numbers of the rows, ascending, deleted ones left out."""
    with read_only(path, readahead=True).begin() as transaction:
        removed = transaction.get(b"deleted_ids")
        gone = set(unpacked(removed, f"{path}: deleted_ids")) if removed is not None else set()
        keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
    try:
        ids = sorted(int(key) for key in keys if key not in _RESERVED)
    except ValueError as error:
        raise UserError(f"{path} is no ASE database in LMDB: {error}; pickled records are format ocp") from error
    return [number for number in ids if number not in gone]
