"""How many edges each structure has under given graph settings: what batches are cut by, and what planning reads.

Counts depend on the settings, so they are not part of the store: they are derived once, kept beside it, and derived
again when the store's contents have changed.

    index/<digest>.npy     int32 [n, 4]
    index/<digest>.json    the settings and the store's fingerprint; written last
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.progress import tracked
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.files import write_array, write_json
from jmp_ds.graphs.settings import GraphSettings

#: Columns of the counts, in order.
GRAPHS = ("main", "a2a", "a2ee2a", "qint")
#: Raised when the edges under the same settings come out differently than before.
RULES_VERSION = 1
_BLOCK = 512


def edge_counts(
    store: Store, settings: GraphSettings, *, cache: Path | None = None, workers: int = 0, progress: bool = False
) -> NDArray[np.int32]:
    """Directed edges per structure in the four graphs, without edge dropout.

    Args:
        store: the structures.
        settings: what decides the edges; envelope and dihedral do not matter.
        cache: folder of the counts; `index` inside the store by default. Needed where the store is read-only.
        workers: processes besides this one that count; 0 counts here.
        progress: show a bar.

    Returns:
        int32 [n, 4], memory-mapped; columns as in `GRAPHS`.

    Raises:
        UserError: the folder cannot be written, or a worker process died.
    """
    folder = cache or store.path / "index"
    array, note = folder / f"{settings.digest()}.npy", folder / f"{settings.digest()}.json"
    expected = {"fingerprint": store.summary.fingerprint, "rules": RULES_VERSION}
    if not _is_current(array, note, expected):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            note.unlink(missing_ok=True)
            write_array(array, _count_all(store, settings, workers, progress))
            write_json(note, {**expected, "settings": settings.to_dict(), "columns": GRAPHS})
        except OSError as error:
            raise UserError(f"edge counts of {store.path} cannot be kept in {folder}: {error}") from error
    counts: NDArray[np.int32] = np.load(array, mmap_mode="r", allow_pickle=False)
    return counts


def count_range(store: Store, settings: GraphSettings, start: int, stop: int) -> NDArray[np.int32]:
    """Counts [stop - start, 4] of a run of structures."""
    from jmp_ds.graphs.neighbors import build_edges

    out = np.zeros((stop - start, len(GRAPHS)), dtype=np.int32)
    for row, record in enumerate(store.range(start, stop)):
        s = record.structure()
        edges = build_edges(s.pos, s.cell, s.pbc, s.ocp_tags, settings)
        out[row] = [len(getattr(edges, name)) for name in GRAPHS]
    return out


def _count_all(store: Store, settings: GraphSettings, workers: int, progress: bool) -> NDArray[np.int32]:
    """Counts of the whole store, in blocks."""
    starts = range(0, len(store), _BLOCK)
    stops = [min(start + _BLOCK, len(store)) for start in starts]
    blocks = list(tracked(_blocks(store, settings, starts, stops, workers), "counting edges", len(starts), progress))
    return np.concatenate([np.zeros((0, len(GRAPHS)), dtype=np.int32), *blocks])


def _blocks(
    store: Store, settings: GraphSettings, starts: range, stops: list[int], workers: int
) -> Iterator[NDArray[np.int32]]:
    """Counts block by block, in order."""
    if workers == 0:
        yield from map(count_range, repeat(store), repeat(settings), starts, stops)
        return
    # Spawned, not forked: this may run in a process that already has threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(count_range, repeat(store), repeat(settings), starts, stops)
        except BrokenProcessPool as error:
            raise UserError(
                f"counting edges of {store.path}: a worker process died (out of memory?); try fewer workers"
            ) from error


def _is_current(array: Path, note: Path, expected: dict[str, object]) -> bool:
    """Whether counts are there and belong to these contents and rules."""
    if not (array.is_file() and note.is_file()):
        return False
    found = json.loads(note.read_text())
    return all(found.get(key) == value for key, value in expected.items())
