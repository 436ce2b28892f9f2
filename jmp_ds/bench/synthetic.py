"""Stores and counts as large as one likes that hold no structure: what planning, packing and opening read, and no more.

Shard files, atoms, groups and all columns but `main` are holes in sparse files; the edges are drawn, and so is the file of
a split that leaves out one structure in a hundred of the largest set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.index import COLUMNS, RULES_VERSION, edge_counts
from jmp_ds.data.layout import FORMAT_VERSION, MARKER, Shard, Summary, shard_name
from jmp_ds.data.selection import Selection, keep_selections, kept_selections
from jmp_ds.data.sources import Source, open_source
from jmp_ds.data.store import Store
from jmp_ds.data.writer import SHARD_SIZE
from jmp_ds.files import write_json
from jmp_ds.graphs.settings import GraphSettings

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Kind:
    """One made-up set: edges per structure are drawn from a gamma distribution.

    Attributes:
        name: of the task.
        mean: edges per structure.
        shape: of the distribution; the spread over the mean is shape^(-1/2).
        cutoff: in Å, so that the sets have different graph settings.
    """

    name: str
    mean: float
    shape: float
    cutoff: float


#: Roughly the edges of the four sets of published pre-training under its settings (30 neighbours).
KINDS = (
    Kind("slabs", 2300.0, 7.0, 12.0),
    Kind("oxides", 2500.0, 6.0, 12.0),
    Kind("molecules", 190.0, 6.0, 8.0),
    Kind("reactions", 160.0, 8.0, 8.0),
)


def graphs(kinds: Sequence[Kind] = KINDS) -> list[tuple[str, GraphSettings]]:
    """Names and graph settings of the made-up tasks."""
    return [(kind.name, GraphSettings(cutoff=kind.cutoff)) for kind in kinds]


def make(folder: Path, sizes: Sequence[int]) -> None:
    """Write one store per size, with its counts; and a split of the first one."""
    for kind, (_, graph), size in zip(KINDS, graphs(), sizes, strict=False):
        _write_store(folder / kind.name, size)
        store = Store(folder / kind.name)
        stem = store.path / "index" / graph.digest()
        about = {"fingerprint": store.summary.fingerprint, "rules": RULES_VERSION, "columns": COLUMNS}
        _write_counts(stem, size, kind, about)
    left_out = np.arange(sizes[0]) % 100 == 7
    keep_selections(folder / "splits", {"train": np.flatnonzero(~left_out)}, {})


def open_all(folder: Path, sizes: Sequence[int]) -> list[Source]:
    """What a trainer opens: stores, the first one's split, counts."""
    kept = kept_selections(folder / "splits", {})
    assert kept is not None
    out = []
    for number, (name, graph) in enumerate(graphs()[: len(sizes)]):
        chosen: Selection | None = kept["train"] if number == 0 else None
        out.append(open_source(name, graph, Store(folder / name), ["energy"], indices=chosen))
    return out


def touch(folder: Path, sizes: Sequence[int]) -> list[NDArray[np.int32]]:
    """Map all tables and read them once, as another rank on the machine would have after a while."""
    tables = []
    for name, graph in graphs()[: len(sizes)]:
        tables.append(edge_counts(Store(folder / name), graph))
        tables[-1][:, 0].sum()
    tables.append(np.load(folder / "splits" / "train.npy", mmap_mode="r"))
    tables[-1].sum()
    return tables


def files(folder: Path) -> list[Path]:
    """Every file under the folder."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def forget(paths: Sequence[Path]) -> None:
    """Ask the system to drop the files from its page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _write_store(path: Path, size: int) -> None:
    """A store that can be opened, and read nowhere."""
    path.mkdir(parents=True)
    write_json(path / "metadata.json", {"origin": "made up for measurements; holds no structure"})
    shards = []
    for number, first in enumerate(range(0, size, SHARD_SIZE)):
        count = min(SHARD_SIZE, size - first)
        shards.append(Shard(shard_name(number), count, 4096 * count, "0" * 64))
        _hole(path / shards[-1].name, shards[-1].bytes)
    for name, dtype in (("natoms", np.int32), ("groups", np.uint64)):
        np.lib.format.open_memmap(path / f"{name}.npy", mode="w+", dtype=dtype, shape=(size,))
    summary = Summary(size, 80 * size, (1, 6, 8), {"energy": size, "forces": size}, tuple(shards), f"made up {size}")
    write_json(path / MARKER, {"format": FORMAT_VERSION, **asdict(summary)})


def _write_counts(stem: Path, size: int, kind: Kind, about: dict[str, object]) -> None:
    """Counts as `edge_counts` keeps them; only the first column is written, so that the others stay holes."""
    stem.parent.mkdir()
    rng = np.random.default_rng(size)
    pool = np.clip(rng.gamma(kind.shape, kind.mean / kind.shape, _BLOCK), 2, 8000).astype(np.int32)
    table = np.lib.format.open_memmap(
        stem.with_suffix(".npy"), mode="w+", dtype=np.int32, shape=(size, len(COLUMNS)), fortran_order=True
    )
    for start in range(0, size, _BLOCK):
        table[start : start + _BLOCK, 0] = np.roll(pool, start // _BLOCK * 7919)[: size - start]
    rest = [0] * (len(COLUMNS) - 1)
    largest, total = int(table[:, 0].max()), int(table[:, 0].sum(dtype=np.int64))
    write_json(stem.with_suffix(".json"), {**about, "largest": [largest, *rest], "total": [total, *rest]})


def _hole(path: Path, length: int) -> None:
    with path.open("wb") as file:
        file.truncate(length)
