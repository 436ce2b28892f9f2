"""The store: many labelled structures in one folder, read at random by many processes; no pickle.

    metadata.json        what the user should know: level of theory, units, licence, citation, meaning of the energy
    shard-00000.lmdb     records (see codec.py) under 8-byte keys 0, 1, ... within the shard
    natoms.npy           int32 [n], atoms per structure
    groups.npy           uint64 [n], hash of the group that splits must not cut; 0: the structure stands alone
    complete.json        written last: shards with counts, sizes and checksums. Without it the store was cut off.
    statistics.json      element references and normalisation (references.py), once they have been computed
    index/               edge counts for given graph settings (index.py), derived

Units: eV, Å, eV/Å, eV/Å³.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.codec import decode, encode
from jmp_ds.data.environments import read_only
from jmp_ds.data.files import sha256, sync_folder, write_array, write_json
from jmp_ds.data.record import Record
from jmp_ds.errors import UserError

FORMAT_VERSION = 1
MARKER = "complete.json"
SHARD_SIZE = 250_000
_FIRST_MAP = 1 << 24
_OWN_FILES = ("metadata.json", "natoms.npy", "groups.npy", "statistics.json")


class StoreIncomplete(UserError):
    """The store was cut off while it was written, or has lost or damaged files since."""


@dataclass(frozen=True)
class Shard:
    """One shard file as it was when the store was completed."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Summary:
    """What the completion marker says.

    Attributes:
        length: number of structures.
        atoms: number of atoms over all structures.
        elements: atomic numbers that occur, ascending.
        labels: by name, how many structures carry the label.
        shards: the shard files in order.
        fingerprint: hash of all shards; another one means other contents.
    """

    length: int
    atoms: int
    elements: tuple[int, ...]
    labels: dict[str, int]
    shards: tuple[Shard, ...]
    fingerprint: str


def group_hash(group: str) -> int:
    """64-bit hash of a group key; 0 for no group. Two groups that collide would merely stay together in a split."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "little") | 1 if group else 0


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
            block.append((_key(self._in_shard), encode(record)))
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
            path = self.path / _shard_name(len(self._shards))
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
        path = self.path / _shard_name(len(self._shards))
        self._shards.append(Shard(path.name, self._in_shard, path.stat().st_size, sha256(path)))
        self._in_shard = 0
        sync_folder(self.path)


class Store:
    """A finished store, read-only: a sequence of records.

    It may be pickled and may cross a fork: shard files are opened when first needed, in each process anew.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the marker and compare the files with it; no record is read.

        Raises:
            UserError: there is no store, or one of a newer format.
            StoreIncomplete: it was cut off while written, or a shard is missing or truncated.
        """
        self.path = Path(path)
        self.summary = _read_marker(self.path)
        self.metadata: dict[str, Any] = json.loads((self.path / "metadata.json").read_text())
        counts = [0, *(s.count for s in self.summary.shards)]
        self._starts: list[int] = np.cumsum(counts).tolist()
        self._environments: dict[int, lmdb.Environment] = {}
        self._process = os.getpid()
        self._natoms: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return self.summary.length

    @property
    def natoms(self) -> NDArray[np.int32]:
        """Atoms per structure, int32 [n], memory-mapped."""
        if self._natoms is None:
            self._natoms = np.load(self.path / "natoms.npy", mmap_mode="r", allow_pickle=False)
        return self._natoms

    @property
    def groups(self) -> NDArray[np.uint64]:
        """Hash of each structure's group, uint64 [n], memory-mapped; 0 where it stands alone."""
        groups: NDArray[np.uint64] = np.load(self.path / "groups.npy", mmap_mode="r", allow_pickle=False)
        return groups

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return self.summary.elements

    def __getitem__(self, i: int) -> Record:
        """Record i, 0 ≤ i < len; one random read.

        Raises:
            IndexError: there is no such record.
            UserError: the shard cannot be read.
        """
        i = int(i)
        if not 0 <= i < len(self):
            raise IndexError(f"store {self.path}: record {i} of {len(self)}")
        shard = bisect_right(self._starts, i) - 1
        with self._environment(shard).begin(buffers=True) as transaction:
            data = transaction.get(_key(i - self._starts[shard]))
            if data is None:
                name = self.summary.shards[shard].name
                raise UserError(f"store {self.path}: record {i} is not in {name}; run `jmp-ds data check {self.path}`")
            return decode(data)

    def __iter__(self) -> Iterator[Record]:
        return self.range(0, len(self))

    def range(self, start: int, stop: int) -> Iterator[Record]:
        """Records start ≤ i < stop in order."""
        for i in range(start, min(stop, len(self))):
            yield self[i]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environments": {}, "_natoms": None}

    def _environment(self, shard: int) -> lmdb.Environment:
        """The open file of one shard in this process."""
        if self._process != os.getpid():
            self._environments = {}
            self._process = os.getpid()
        if shard not in self._environments:
            self._environments[shard] = read_only(self.path / self.summary.shards[shard].name)
        return self._environments[shard]


def is_store(path: str | Path) -> bool:
    """Whether a folder holds a store, complete or not."""
    path = Path(path)
    return (path / MARKER).is_file() or (path / _shard_name(0)).is_file() or (path / "metadata.json").is_file()


def _key(i: int) -> bytes:
    """Key of record i within its shard; big-endian, so that keys sort as numbers do."""
    return struct.pack(">Q", i)


def _shard_name(i: int) -> str:
    return f"shard-{i:05d}.lmdb"


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
        sync_folder(path)
        for old in [*path.glob("shard-*.lmdb"), *(path / name for name in _OWN_FILES)]:
            old.unlink(missing_ok=True)
        shutil.rmtree(path / "index", ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)


def _read_marker(path: Path) -> Summary:
    """The completion marker, compared with the files that are there."""
    if not (path / MARKER).is_file():
        if is_store(path):
            found = len(list(path.glob("shard-*.lmdb")))
            raise StoreIncomplete(
                f"store {path} was cut off while it was written ({found} shards, no {MARKER}); write it again"
            )
        raise UserError(f"store {path}: there is no store here; make one with `jmp-ds data convert` or `data demo`")
    values = json.loads((path / MARKER).read_text())
    version = values.pop("format")
    if version != FORMAT_VERSION:
        raise UserError(f"store {path} has format {version}, this program reads format {FORMAT_VERSION}; convert again")
    shards = tuple(Shard(**shard) for shard in values.pop("shards"))
    for shard in shards:
        file = path / shard.name
        if not file.is_file():
            raise StoreIncomplete(f"store {path}: {shard.name} is missing; copy or convert the store again")
        if file.stat().st_size != shard.bytes:
            raise StoreIncomplete(
                f"store {path}: {shard.name} has {file.stat().st_size} bytes instead of {shard.bytes}; "
                "copy or convert the store again"
            )
    return Summary(**{**values, "elements": tuple(values["elements"])}, shards=shards)
