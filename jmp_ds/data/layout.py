"""What lies where in a store's folder, and the marker that says it is complete."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmp_ds.errors import UserError

FORMAT_VERSION = 1
MARKER = "complete.json"


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
class Sealed:
    """How far a store that is being written has come: its finished shards, and what is counted over them.

    Attributes:
        shards: the finished shard files in order.
        labels: by name, how many structures in them carry the label.
        elements: atomic numbers that occur in them, ascending.
    """

    shards: tuple[Shard, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)
    elements: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Structures in the finished shards."""
        return sum(shard.count for shard in self.shards)


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


def is_store(path: str | Path) -> bool:
    """Whether a folder holds a store, complete or not."""
    path = Path(path)
    return (path / MARKER).is_file() or (path / shard_name(0)).is_file() or (path / "metadata.json").is_file()


def key_of(i: int) -> bytes:
    """Key of record i within its shard; big-endian, so that keys sort as numbers do."""
    return struct.pack(">Q", i)


def shard_name(i: int) -> str:
    """File name of shard i."""
    return f"shard-{i:05d}.lmdb"


def read_marker(path: Path) -> Summary:
    """The completion marker, compared with the files that are there."""
    if not (path / MARKER).is_file():
        if is_store(path):
            found = len(list(path.glob("shard-*.lmdb")))
            raise StoreIncomplete(
                f"store {path} was cut off while it was written ({found} shards, no {MARKER}); write it again"
            )
        raise UserError(f"store {path}: there is no store here; make one with `jmp-ds data convert` or `data demo`")
    values = read_json(path, MARKER)
    version = values.pop("format", None)
    if version != FORMAT_VERSION:
        raise UserError(f"store {path} has format {version}, this program reads format {FORMAT_VERSION}; convert again")
    try:
        shards = tuple(Shard(**shard) for shard in values.pop("shards"))
        summary = Summary(**{**values, "elements": tuple(values["elements"])}, shards=shards)
    except (KeyError, TypeError) as error:
        raise damaged(path, MARKER, error) from None
    for shard in shards:
        check_size(path, shard)
    return summary


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON file of a store, which holds a mapping.

    Raises:
        StoreIncomplete: it is missing, or damaged.
    """
    try:
        values = json.loads((path / name).read_text())
    except (OSError, ValueError) as error:
        raise damaged(path, name, error) from None
    if not isinstance(values, dict):
        raise damaged(path, name, "no mapping")
    return values


def damaged(path: Path, name: str, why: object) -> StoreIncomplete:
    """What to say of a file of a store that cannot be read."""
    return StoreIncomplete(f"store {path}: {name} is damaged or missing ({why}); copy or convert the store again")


def check_size(path: Path, shard: Shard) -> None:
    """Whether a shard is there and as long as it was when the store was completed.

    Raises:
        StoreIncomplete: it is not.
    """
    try:
        size = (path / shard.name).stat().st_size
    except FileNotFoundError:
        raise StoreIncomplete(f"store {path}: {shard.name} is missing; copy or convert the store again") from None
    if size != shard.bytes:
        raise StoreIncomplete(
            f"store {path}: {shard.name} has {size} bytes instead of {shard.bytes}; copy or convert the store again"
        )
