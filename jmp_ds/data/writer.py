"""Writing a store, block by block."""

from __future__ import annotations

import hashlib
import shutil
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np

from jmp_ds.data.codec import encode
from jmp_ds.data.layout import FORMAT_VERSION, MARKER, Shard, Summary, group_hash, is_store, key_of, shard_name
from jmp_ds.data.record import Record
from jmp_ds.errors import UserError
from jmp_ds.files import sha256, to_disk, write_array, write_json

SHARD_SIZE = 250_000
_FIRST_MAP = 1 << 24
_OWN_FILES = ("metadata.json", "natoms.npy", "groups.npy", "statistics.json")


class StoreWriter:
    """Writes a new store; use it in a `with` block. An exception inside leaves a store that says it is incomplete."""

    def __init__(
        self, path: str | Path, metadata: Mapping[str, Any], *, shard_size: int = SHARD_SIZE, overwrite: bool = False
    ) -> None:
        """Create the folder.

        Args:
            path: folder of the store; its parents are made.
            metadata: JSON-ready facts, e.g. level_of_theory, energy, source, licence, citation.
            shard_size: structures per shard file.
            overwrite: replace a store that is there already.

        Raises:
            UserError: something lies there already, or the metadata are not plain JSON.
        """
        self.path = Path(path)
        self._metadata = dict(metadata)
        self._shard_size = shard_size
        if shard_size < 1:
            raise UserError(f"store: shard size must be at least 1, got {shard_size}")
        _make_room(self.path, overwrite)
        try:
            write_json(self.path / "metadata.json", self._metadata)
        except (TypeError, ValueError) as error:
            raise UserError(f"store {self.path}: its metadata must be plain JSON values: {error}") from error
        self._natoms = array("i")
        self._groups = array("Q")
        self._labels: dict[str, int] = {}
        self._elements: set[int] = set()
        self._shards: list[Shard] = []
        self._environment: lmdb.Environment | None = None
        self._in_shard = 0

    def __len__(self) -> int:
        return len(self._natoms)

    def append(self, records: Iterable[Record]) -> None:
        """Add records in order; each call is one transaction per shard, so give it blocks of about a thousand."""
        block: list[tuple[bytes, bytes]] = []
        for record in records:
            if self._in_shard == self._shard_size:
                self._put(block)
                block = []
                self._finish_shard()
            block.append((key_of(self._in_shard), encode(record)))
            self._in_shard += 1
            self._natoms.append(len(record.atomic_numbers))
            self._groups.append(group_hash(record.group))
            self._elements.update(np.unique(record.atomic_numbers).tolist())
            for name in record.labels:
                self._labels[name] = self._labels.get(name, 0) + 1
        self._put(block)

    def close(self) -> None:
        """Finish the last shard and write the marker that makes the store valid."""
        if self._in_shard:
            self._finish_shard()
        natoms = np.array(self._natoms, dtype=np.int32)
        groups = np.array(self._groups, dtype=np.uint64)
        write_array(self.path / "natoms.npy", natoms)
        write_array(self.path / "groups.npy", groups)
        digest = hashlib.sha256("".join(s.sha256 for s in self._shards).encode()).hexdigest()
        summary = Summary(
            length=len(natoms),
            atoms=int(natoms.sum(dtype=np.int64)),
            elements=tuple(sorted(self._elements)),
            labels=self._labels,
            shards=tuple(self._shards),
            fingerprint=digest[:32],
        )
        write_json(self.path / MARKER, {"format": FORMAT_VERSION, **asdict(summary)})

    def abort(self) -> None:
        """Let go of the files; the store stays incomplete."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _put(self, block: list[tuple[bytes, bytes]]) -> None:
        """Write one transaction into the current shard; a full map is enlarged and the transaction repeated."""
        if not block:
            return
        if self._environment is None:
            path = self.path / shard_name(len(self._shards))
            # Without sync per transaction: only the marker, written after the final sync, makes the store valid.
            self._environment = lmdb.open(str(path), subdir=False, lock=False, map_size=_FIRST_MAP, sync=False)
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in block:
                        transaction.put(key, value, append=True)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    def _finish_shard(self) -> None:
        """Bring the shard to disk and note its size and checksum."""
        if self._environment is None:
            return
        self._environment.sync(True)
        self.abort()
        path = self.path / shard_name(len(self._shards))
        self._shards.append(Shard(path.name, self._in_shard, path.stat().st_size, sha256(path)))
        self._in_shard = 0
        to_disk(self.path)


def _make_room(path: Path, overwrite: bool) -> None:
    """An empty folder at `path`; an old store is removed, marker first, and nothing else ever is."""
    if path.exists() and not path.is_dir():
        raise UserError(f"store {path}: a file of that name exists; choose another name")
    if path.is_dir() and any(path.iterdir()):
        if not is_store(path):
            raise UserError(f"store {path}: the folder holds other files; choose an empty or new one")
        if not overwrite:
            raise UserError(f"store {path}: there is a store already; choose another name or ask for it to be replaced")
        (path / MARKER).unlink(missing_ok=True)
        to_disk(path)
        for old in [*path.glob("shard-*.lmdb"), *(path / name for name in _OWN_FILES)]:
            old.unlink(missing_ok=True)
        shutil.rmtree(path / "index", ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
