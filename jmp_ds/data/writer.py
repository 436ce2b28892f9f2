"""Writing a store, block by block; the process holds one block and no table of all structures."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import lmdb
import numpy as np

from jmp_ds.data.codec import decode
from jmp_ds.data.environments import read_only
from jmp_ds.data.layout import FORMAT_VERSION, MARKER, Sealed, Shard, Summary, is_store, key_of, shard_name
from jmp_ds.data.packed import Packed, pack
from jmp_ds.data.record import Record
from jmp_ds.errors import UserError
from jmp_ds.files import sha256, to_disk, write_atomically, write_json

SHARD_SIZE = 250_000
_FIRST_MAP = 1 << 24
#: Tables that grow while the store is written: file, name of the finished table, type.
_TABLES = (("natoms.raw", "natoms.npy", "<i4"), ("groups.raw", "groups.npy", "<u8"))
_OWN_FILES = ("metadata.json", "natoms.npy", "groups.npy", "statistics.json", "natoms.raw", "groups.raw")


class StoreWriter:
    """Writes a new store; use it in a `with` block. An exception inside leaves a store that says it is incomplete."""

    def __init__(
        self,
        path: str | Path,
        metadata: Mapping[str, Any],
        *,
        shard_size: int = SHARD_SIZE,
        overwrite: bool = False,
        sealed: Sealed | None = None,
    ) -> None:
        """Create the folder, or go on in one.

        Args:
            path: folder of the store; its parents are made.
            metadata: JSON-ready facts, e.g. level_of_theory, energy, source, licence, citation.
            shard_size: structures per shard file.
            overwrite: replace a store that is there already.
            sealed: go on behind these shards, which are there; what lies behind them is dropped.

        Raises:
            UserError: something lies there already, a shard to go on from is not as it was, or the metadata are not plain
                JSON.
        """
        self.path = Path(path)
        self._metadata = dict(metadata)
        self._shard_size = shard_size
        if shard_size < 1:
            raise UserError(f"store: shard size must be at least 1, got {shard_size}")
        begun = sealed or Sealed()
        if sealed is None:
            _make_room(self.path, overwrite)
        else:
            _cut_back(self.path, sealed)
        try:
            write_json(self.path / "metadata.json", self._metadata)
        except (TypeError, ValueError) as error:
            raise UserError(f"store {self.path}: its metadata must be plain JSON values: {error}") from error
        self._labels: dict[str, int] = dict(begun.labels)
        self._elements: set[int] = set(begun.elements)
        self._shards: list[Shard] = list(begun.shards)
        self._length = begun.length
        self._environment: lmdb.Environment | None = None
        self._in_shard = 0

    def __len__(self) -> int:
        return self._length

    @property
    def room(self) -> int:
        """How many more structures the current shard takes."""
        return self._shard_size - self._in_shard

    @property
    def sealed(self) -> Sealed:
        """The finished shards; what is counted includes structures behind them, so ask at the end of a shard."""
        return Sealed(tuple(self._shards), dict(self._labels), tuple(sorted(self._elements)))

    def append(self, records: Iterable[Record]) -> None:
        """Add records in order; each call is one transaction per shard, so give it blocks of about a thousand."""
        self.append_packed(pack(records))

    def append_packed(self, packed: Packed) -> None:
        """The same for records that were packed elsewhere."""
        start = 0
        while start < len(packed):
            if self.room == 0:
                self.seal()
            stop = min(len(packed), start + self.room)
            self._put(packed.data[start:stop])
            for (name, _, dtype), values in zip(_TABLES, (packed.natoms, packed.groups), strict=True):
                with (self.path / name).open("ab") as file:
                    file.write(np.array(values[start:stop], dtype=dtype).tobytes())
            self._in_shard += stop - start
            start = stop
        self._length += len(packed)
        self._elements.update(packed.elements)
        for name, count in packed.labels.items():
            self._labels[name] = self._labels.get(name, 0) + count

    def seal(self) -> None:
        """Finish the current shard: bring it to disk and note its size and checksum."""
        if self._environment is None:
            return
        self._environment.sync(True)
        self.abort()
        path = self.path / shard_name(len(self._shards))
        for name, *_ in _TABLES:
            to_disk(self.path / name)
        self._shards.append(Shard(path.name, self._in_shard, path.stat().st_size, sha256(path)))
        self._in_shard = 0
        to_disk(self.path)

    def records(self, start: int) -> Iterator[Record]:
        """Records of the finished shards from number `start` on, read back."""
        first = 0
        for shard in self._shards:
            if start < first + shard.count:
                with read_only(self.path / shard.name).begin(buffers=True) as transaction:
                    for i in range(max(0, start - first), shard.count):
                        yield decode(transaction.get(key_of(i), b""))
            first += shard.count

    def close(self) -> None:
        """Finish the last shard and write the marker that makes the store valid."""
        self.seal()
        atoms = 0
        for raw, name, dtype in _TABLES:
            values = self._raw_table(raw, dtype)
            if raw == _TABLES[0][0]:
                atoms = int(values.sum(dtype=np.int64))
            write_atomically(self.path / name, lambda file, values=values: _save(file, values))  # type: ignore[misc]
            (self.path / raw).unlink(missing_ok=True)
        digest = hashlib.sha256("".join(s.sha256 for s in self._shards).encode()).hexdigest()
        summary = Summary(
            length=self._length,
            atoms=atoms,
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

    def _put(self, block: Sequence[bytes]) -> None:
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
                    for i, data in enumerate(block, start=self._in_shard):
                        transaction.put(key_of(i), data, append=True)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    def _raw_table(self, name: str, dtype: str) -> np.ndarray:
        """A table as far as it has been written, mapped."""
        path = self.path / name
        if not path.is_file() or path.stat().st_size == 0:
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r")


def _save(file: BinaryIO, values: np.ndarray) -> None:
    """A `.npy` file from a mapped table, in pieces."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": values.shape}
    )
    for start in range(0, len(values), 1 << 20):
        file.write(values[start : start + (1 << 20)].tobytes())


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


def _cut_back(path: Path, sealed: Sealed) -> None:
    """Drop what was written behind the finished shards."""
    kept = {shard.name: shard for shard in sealed.shards}
    for shard in sealed.shards:
        file = path / shard.name
        if not file.is_file() or file.stat().st_size != shard.bytes:
            raise UserError(f"store {path}: {shard.name} is not as it was left; remove {path} and begin anew")
    for file in path.glob("shard-*.lmdb"):
        if file.name not in kept:
            file.unlink()
    for name, _, dtype in _TABLES:
        table, size = path / name, sealed.length * np.dtype(dtype).itemsize
        if sealed.length and (not table.is_file() or table.stat().st_size < size):
            raise UserError(f"store {path}: {name} is not as it was left; remove {path} and begin anew")
        with table.open("ab") as file_:
            file_.truncate(size)
