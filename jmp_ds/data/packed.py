"""Records as bytes: what a worker hands to the process that writes the store, so that records are packed in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from jmp_ds.data.codec import encode
from jmp_ds.data.layout import group_hash
from jmp_ds.data.record import Record


@dataclass(frozen=True)
class Packed:
    """Some consecutive records.

    Attributes:
        data: bytes of each record (see codec.py).
        natoms: atoms of each.
        groups: hash of the group of each.
        labels: by name, how many of them carry the label.
        elements: atomic numbers that occur in them.
    """

    data: Sequence[bytes] = ()
    natoms: Sequence[int] = ()
    groups: Sequence[int] = ()
    labels: dict[str, int] = field(default_factory=dict)
    elements: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.data)


def pack(records: Iterable[Record]) -> Packed:
    """The bytes of records, and what the store keeps beside them."""
    data, natoms, groups = [], [], []
    labels: Counter[str] = Counter()
    elements: set[int] = set()
    for record in records:
        data.append(encode(record))
        natoms.append(len(record.atomic_numbers))
        groups.append(group_hash(record.group))
        labels.update(list(record.labels))
        elements.update(record.atomic_numbers.tobytes())
    return Packed(data, natoms, groups, dict(labels), frozenset(elements))
