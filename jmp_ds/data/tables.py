"""Tables with one row per structure, filled block by block straight into their file, so that no process holds them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.files import to_disk, write_json


def write_table(
    array: Path, note: Path, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]], about: dict[str, Any]
) -> None:
    """Write an int32 `.npy` file, column after column, and then its note.

    Args:
        array: the table; appears when it is whole.
        note: JSON file that says that the table is there; written last.
        shape: [rows] or [rows, columns].
        blocks: consecutive rows.
        about: goes into the note, with `largest` and `total` of every column.

    Raises:
        OSError: the folder cannot be written.
    """
    array.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    columns = shape[1] if len(shape) == 2 else 1
    largest, total = np.zeros(columns, dtype=np.int64), np.zeros(columns, dtype=np.int64)
    draft = array.with_name(f".{array.name}.{os.getpid()}.tmp")
    try:
        # An empty file cannot be mapped, so an empty table is written as it is.
        table: NDArray[np.int32] = (
            np.lib.format.open_memmap(draft, mode="w+", dtype=np.int32, shape=shape, fortran_order=True)
            if shape[0]
            else np.zeros(shape, dtype=np.int32)
        )
        at = 0
        for block in blocks:
            table[at : at + len(block)] = block
            at += len(block)
            if len(block):
                largest = np.maximum(largest, block.max(axis=0))
                total = total + block.sum(axis=0, dtype=np.int64)
        if isinstance(table, np.memmap):
            table.flush()
        else:
            with draft.open("wb") as file:
                np.save(file, table, allow_pickle=False)
        del table
        to_disk(draft)
        draft.replace(array)
    finally:
        draft.unlink(missing_ok=True)
    to_disk(array.parent)
    write_json(note, {**about, "largest": largest.tolist(), "total": total.tolist()})


def read_table(array: Path) -> NDArray[np.int32]:
    """A table, memory-mapped."""
    # As a plain array, which is quicker to index than `memmap`; it keeps the mapping alive.
    return np.asarray(np.load(array, mmap_mode="r", allow_pickle=False))


def is_current(array: Path, note: Path, expected: dict[str, Any]) -> bool:
    """Whether a table is there and its note says what is expected of it."""
    if not (array.is_file() and note.is_file()):
        return False
    found = json.loads(note.read_text())
    return all(found.get(key) == value for key, value in expected.items())
