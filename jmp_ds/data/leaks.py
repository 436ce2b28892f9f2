"""Whether training, validation and test are apart: the same structure, id or group in two parts.

Structures are compared by a hash of their content. Of molecules it sees elements and distances from the centroid to
0.001 Å, so that a molecule that is turned, moved, mirrored or numbered otherwise is found too; of crystals the cell and
the positions in it as they are written, wrapped into the cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.layout import group_hash
from jmp_ds.data.record import Record
from jmp_ds.data.splits import Ints
from jmp_ds.data.store import Store

#: Distances and positions are compared to this (Å).
RESOLUTION = 1e-3
KINDS = ("structure", "id", "group")


@dataclass(frozen=True)
class Part:
    """Some structures of a store, under a name."""

    name: str
    store: Store
    indices: Ints = field(repr=False)


@dataclass(frozen=True)
class Leak:
    """What two parts share.

    Attributes:
        kind: `structure`, `id` or `group`.
        parts: names of the two.
        count: structures of the second part that share it with one of the first.
        example: ids of one such pair.
    """

    kind: str
    parts: tuple[str, str]
    count: int
    example: tuple[str, str]


def leaks(parts: Sequence[Part]) -> list[Leak]:
    """What any two parts share; empty if they are apart."""
    hashes = [_hashes(part) for part in parts]
    return [
        leak
        for i in range(len(parts))
        for j in range(i + 1, len(parts))
        for kind in KINDS
        for leak in _shared(kind, parts[i], hashes[i][kind], parts[j], hashes[j][kind])
    ]


def content_hash(record: Record) -> int:
    """64-bit hash of what a structure is (see the module), labels left out."""
    if record.pbc.any():
        steps = np.maximum(1, np.round(np.linalg.norm(record.cell, axis=1) / RESOLUTION)).astype(np.int64)
        grid = np.round(record.pos @ np.linalg.inv(record.cell) * steps).astype(np.int64)
        # wrapped as whole steps: a coordinate that is 0 but for rounding must not differ from one that is 1
        grid = np.where(record.pbc, grid % steps, grid)
        parts = [record.atomic_numbers, np.round(record.cell / RESOLUTION).astype(np.int64), record.pbc, grid]
    else:
        away = np.linalg.norm(record.pos - record.pos.mean(axis=0), axis=1)
        keys = np.round(away / RESOLUTION).astype(np.int64) * 256 + record.atomic_numbers
        parts = [np.sort(keys)]
    text = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _hashes(part: Part) -> dict[str, NDArray[np.uint64]]:
    """Content, id and group of every structure of a part, as hashes; 0 for none."""
    content = np.empty(len(part.indices), dtype=np.uint64)
    ids = np.empty(len(part.indices), dtype=np.uint64)
    for k, i in enumerate(part.indices):
        record = part.store[int(i)]
        content[k], ids[k] = content_hash(record), group_hash(record.id)
    return {"structure": content, "id": ids, "group": np.asarray(part.store.groups[part.indices])}


def _shared(kind: str, one: Part, first: NDArray[np.uint64], other: Part, second: NDArray[np.uint64]) -> Iterator[Leak]:
    """What two parts share of one kind. Ids that two sources both count from 0 are no leak: only within one store."""
    if kind == "id" and one.store.path != other.store.path:
        return
    both = np.intersect1d(first, second)
    both = both[both != 0]
    if not len(both):
        return
    i = int(one.indices[np.flatnonzero(first == both[0])[0]])
    j = int(other.indices[np.flatnonzero(second == both[0])[0]])
    count = int(np.isin(second, both).sum())
    yield Leak(kind, (one.name, other.name), count, (one.store[i].id, other.store[j].id))
