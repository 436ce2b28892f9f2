"""How many edges each structure has under given graph settings: what batches are cut by, and what planning reads.

Counts depend on the settings, so they are not part of the store: they are derived once, kept beside it, and derived
again when the store's contents have changed.

    index/<digest>.npy     int32 [n, 6], column after column
    index/<digest>.json    the settings, the store's fingerprint, largest and total of every column; written last
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.progress import tracked
from jmp_ds.data.store import Store
from jmp_ds.data.tables import is_current, read_table, write_table
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure
from jmp_ds.graphs.settings import GraphSettings

#: The four graphs: the first columns of the counts, in order.
GRAPHS = ("main", "a2a", "a2ee2a", "qint")
#: All columns. `in_triplets`: main edges into the source of each middle bond of quadruplets; `out_pairs`: middle bonds
#: into the target of each main edge; both with the bond itself, which the network leaves out.
COLUMNS = (*GRAPHS, "in_triplets", "out_pairs")
#: Raised when the edges under the same settings come out differently than before.
RULES_VERSION = 2
_BLOCK, _MOST_BLOCKS = 512, 20_000


def edge_counts(
    store: Store, settings: GraphSettings, *, cache: Path | None = None, workers: int = 0, progress: bool = False
) -> NDArray[np.int32]:
    """Directed edges per structure in the four graphs, and what quadruplets are made of, without edge dropout.

    Args:
        store: the structures.
        settings: what decides the edges; envelope and dihedral do not matter.
        cache: folder of the counts; `index` inside the store by default. Needed where the store is read-only.
        workers: processes besides this one that count; 0 counts here.
        progress: show a bar.

    Returns:
        int32 [n, 6], memory-mapped; columns as in `COLUMNS`.

    Raises:
        UserError: the folder cannot be written, or a worker process died.
    """
    array, note = _files(store, settings, cache)
    if not is_current(array, note, _expected(store)):
        about = {**_expected(store), "settings": settings.to_dict(), "columns": COLUMNS}
        try:
            blocks = _count_all(store, settings, workers, progress)
            write_table(array, note, (len(store), len(COLUMNS)), blocks, about)
        except OSError as error:
            raise UserError(f"edge counts of {store.path} cannot be kept in {array.parent}: {error}") from error
    return read_table(array)


def is_counted(store: Store, settings: GraphSettings, *, cache: Path | None = None) -> bool:
    """Whether the edges of a store are known under these settings; arguments as for `edge_counts`."""
    array, note = _files(store, settings, cache)
    return is_current(array, note, _expected(store))


def summed_up(store: Store, settings: GraphSettings, *, cache: Path | None = None) -> dict[str, tuple[int, int]]:
    """By column, the largest count and the sum over all structures of the store, from the note beside the counts."""
    _, note = _files(store, settings, cache)
    found = json.loads(note.read_text())
    return {name: (found["largest"][i], found["total"][i]) for i, name in enumerate(COLUMNS)}


def _files(store: Store, settings: GraphSettings, cache: Path | None) -> tuple[Path, Path]:
    folder = cache or store.path / "index"
    return folder / f"{settings.digest()}.npy", folder / f"{settings.digest()}.json"


def _expected(store: Store) -> dict[str, Any]:
    """What the note of counts says if they are of this store."""
    return {"fingerprint": store.summary.fingerprint, "rules": RULES_VERSION}


def count_range(store: Store, settings: GraphSettings, start: int, stop: int) -> NDArray[np.int32]:
    """Counts [stop - start, 6] of a run of structures."""
    out = np.zeros((stop - start, len(COLUMNS)), dtype=np.int32)
    for row, record in enumerate(store.range(start, stop)):
        out[row] = counts_of(record.structure(), settings)
    return out


def counts_of(structure: Structure, settings: GraphSettings) -> list[int]:
    """Counts of one structure, in the order of `COLUMNS`."""
    from jmp_ds.graphs.neighbors import build_edges

    edges = build_edges(structure.pos, structure.cell, structure.pbc, structure.ocp_tags, settings)
    main_into = np.bincount(edges.main[:, 1], minlength=structure.natoms)
    middles_into = np.bincount(edges.qint[:, 1], minlength=structure.natoms)
    in_triplets, out_pairs = main_into[edges.qint[:, 0]].sum(), (main_into * middles_into).sum()
    return [*(len(getattr(edges, name)) for name in GRAPHS), int(in_triplets), int(out_pairs)]


def _count_all(store: Store, settings: GraphSettings, workers: int, progress: bool) -> Iterator[NDArray[np.int32]]:
    """Counts of the whole store, block by block in order."""
    size = max(_BLOCK, -(-len(store) // _MOST_BLOCKS))
    starts = range(0, len(store), size)
    stops = [min(start + size, len(store)) for start in starts]
    return tracked(_blocks(store, settings, starts, stops, workers), "counting edges", len(starts), progress)


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
