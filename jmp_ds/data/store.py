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

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.codec import decode
from jmp_ds.data.environments import read_only
from jmp_ds.data.layout import (
    Shard,
    StoreIncomplete,
    Summary,
    check_size,
    damaged,
    group_hash,
    is_store,
    key_of,
    read_json,
    read_marker,
)
from jmp_ds.data.record import Record
from jmp_ds.data.writer import SHARD_SIZE, StoreWriter
from jmp_ds.errors import UserError

__all__ = ["SHARD_SIZE", "Shard", "Store", "StoreIncomplete", "StoreWriter", "Summary", "group_hash", "is_store"]


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
        self.summary = read_marker(self.path)
        self.metadata: dict[str, Any] = read_json(self.path, "metadata.json")
        counts = [0, *(s.count for s in self.summary.shards)]
        self._starts: list[int] = np.cumsum(counts).tolist()
        self._environments: dict[int, lmdb.Environment] = {}
        self._process = os.getpid()
        self._natoms: NDArray[np.int32] | None = None
        self._readahead = False

    def with_readahead(self) -> Store:
        """The same store, for reading neighbours together: the system may read more than what is asked for."""
        other = copy(self)
        other._environments, other._readahead = {}, True
        return other

    def __len__(self) -> int:
        return self.summary.length

    @property
    def natoms(self) -> NDArray[np.int32]:
        """Atoms per structure, int32 [n], memory-mapped."""
        if self._natoms is None:
            self._natoms = self._array("natoms.npy")
        return self._natoms

    @property
    def groups(self) -> NDArray[np.uint64]:
        """Hash of each structure's group, uint64 [n], memory-mapped; 0 where it stands alone."""
        return self._array("groups.npy")

    def _array(self, name: str) -> NDArray[Any]:
        """A number per structure, from its file."""
        try:
            found: NDArray[Any] = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise damaged(self.path, name, error) from None
        if found.shape != (len(self),):
            raise damaged(self.path, name, f"shape {found.shape} for {len(self)} structures")
        return found

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return self.summary.elements

    def __getitem__(self, i: int) -> Record:
        """Record i, 0 ≤ i < len; one random read.

        Raises:
            IndexError: there is no such record.
            UserError: the shard cannot be read, or the record has changed since it was written.
        """
        i = int(i)
        if not 0 <= i < len(self):
            raise IndexError(f"store {self.path}: record {i} of {len(self)}")
        shard = bisect_right(self._starts, i) - 1
        try:
            with self._environment(shard).begin(buffers=True) as transaction:
                data = transaction.get(key_of(i - self._starts[shard]))
                if data is None:
                    raise UserError("it is not there")
                return decode(data)
        except (lmdb.Error, UserError) as error:
            raise UserError(
                f"store {self.path}: record {i} in {self.summary.shards[shard].name}: {error}; copy or convert the store "
                f"again (`jmp-ds data check {self.path}` tells what else has changed)"
            ) from None

    def check_sizes(self, indices: Iterable[int]) -> None:
        """Whether the files of these records are still as long as they were: to read beyond the end of a file that was
        shortened ends the process without a word.

        Raises:
            StoreIncomplete: one is not, or is missing.
        """
        for shard in {bisect_right(self._starts, i) - 1 for i in indices}:
            check_size(self.path, self.summary.shards[shard])

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
            self._environments[shard] = read_only(
                self.path / self.summary.shards[shard].name, readahead=self._readahead
            )
        return self._environments[shard]
