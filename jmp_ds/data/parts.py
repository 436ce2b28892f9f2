"""A conversion in parts: which there are, what one part holds once it has been read, and its file.

Parts do not depend on how many processes read them, so the store that is made of them does not either. A part is a file,
or a portion of one where its reader can begin in the middle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack

from jmp_ds.data.exclusion import EXCLUDED, Exclusion
from jmp_ds.data.packed import Packed, pack
from jmp_ds.data.readers import reader
from jmp_ds.data.readers.base import Block, Reader, ReaderOptions, Skip
from jmp_ds.data.record import Record
from jmp_ds.errors import UserError

#: Changes whenever parts would hold anything else for the same sources.
PARTS_VERSION = 2
_LARGEST_BLOCK = 1 << 31


@dataclass(frozen=True)
class Part:
    """A file, or some units of it.

    Attributes:
        number: its place among all parts.
        file: number of the file among the sources.
        path: that file.
        span: which of its units; None for all of it.
        last: whether it is the last part of its file.
    """

    number: int
    file: int
    path: Path
    span: tuple[int, int] | None
    last: bool


@dataclass(frozen=True)
class Wanted:
    """Which structures are taken.

    Attributes:
        require: labels every structure must have; without any, one label of whatever name.
        allow_unlabelled: take structures that have no label at all.
        exclude: those that are left out whatever they have.
    """

    require: tuple[str, ...] = ()
    allow_unlabelled: bool = False
    exclude: Exclusion | None = None


@dataclass(frozen=True)
class Piece:
    """Some consecutive structures of a part, as they lie in its file.

    Attributes:
        packed: those that are taken.
        skipped: those that are not.
        facts: what the source says about itself.
        dull: periodic structures without any atom of tag 1 or 2.
        done: how much of the part is behind us, where the reader knows.
    """

    packed: Packed
    skipped: Sequence[Skip] = ()
    facts: dict[str, str] = field(default_factory=dict)
    dull: int = 0
    done: float | None = None

    @property
    def seen(self) -> int:
        """Structures taken and left out."""
        return len(self.packed) + len(self.skipped)


def plan(files: Sequence[Path], chosen: Reader, told: ReaderOptions) -> list[Part]:
    """All parts of all files, in order.

    Raises:
        UserError: a file is not of the format.
    """
    parts: list[Part] = []
    for number, path in enumerate(files):
        spans: list[tuple[int, int] | None] = [None]
        if chosen.units is not None:
            units, portion = chosen.units(path, told)
            if units > portion:
                spans = [(start, min(units, start + portion)) for start in range(0, units, portion)]
        for span in spans:
            parts.append(Part(len(parts), number, path, span, last=span is spans[-1]))
    return parts


def fingerprint(parts: Sequence[Part], format: str, told: ReaderOptions, rest: Any) -> str:
    """Hash of all that decides what a conversion makes: sources by name, size and time, format, options."""
    files = {part.path: None for part in parts}
    told_of = [*files, *([told.table] if told.table else [])]
    sources = [(str(path.resolve()), *_stamp(path)) for path in told_of]
    plain = {key: value for key, value in asdict(told).items() if key not in ("span", "table")}
    spans = [(part.file, part.span) for part in parts]
    text = json.dumps([PARTS_VERSION, format, plain, sources, spans, rest], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; of a folder, summed and latest over its files."""
    stats = [p.stat() for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path.stat()]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def read_part(part: Part, format: str, told: ReaderOptions, wanted: Wanted) -> Iterator[Piece]:
    """Read a part, block by block.

    Raises:
        UserError: the source cannot be read.
    """
    chosen = reader(format)
    for block in chosen.blocks(part.path, replace(told, span=part.span)):
        good, skipped = select(block, wanted)
        dull = sum(bool(r.pbc.any()) and not (r.tags > 0).any() for r in good)
        yield Piece(pack(good), skipped, dict(block.facts), dull, block.done)


def select(block: Block, wanted: Wanted) -> tuple[list[Record], list[Skip]]:
    """Those records of a block that are wanted; and what is left out, with the reasons."""
    good: list[Record] = []
    skipped = list(block.skipped)
    for record in block.records:
        name = wanted.exclude.name_of(record) if wanted.exclude is not None else ""
        if name and wanted.exclude is not None:
            skipped.append(Skip(EXCLUDED, record.id, f"{wanted.exclude.source} names {name}"))
            continue
        missing = [name for name in wanted.require if name not in record.labels]
        if missing:
            skipped.append(Skip("missing_label", record.id, f"no label {missing}; there are {sorted(record.labels)}"))
        elif not record.labels and not wanted.allow_unlabelled:
            keys = f"its keys are {sorted(record.info)}" if record.info else "it has no other values either"
            skipped.append(
                Skip("missing_label", record.id, f"no label at all; {keys}; name one with --label NAME=KEY:UNIT")
            )
        else:
            good.append(record)
    return good, skipped


def write_part(path: Path, pieces: Iterable[Piece], told_of: Callable[[Piece], None] = lambda piece: None) -> None:
    """Write the pieces of a part into a file that appears when it is whole.

    Args:
        path: the file.
        pieces: what `read_part` yields.
        told_of: called after each piece.
    """
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with draft.open("wb") as file:
        for piece in pieces:
            packed = piece.packed
            file.write(
                msgpack.packb(
                    {
                        "data": list(packed.data),
                        "natoms": list(packed.natoms),
                        "groups": list(packed.groups),
                        "labels": packed.labels,
                        "elements": sorted(packed.elements),
                        "skipped": [[s.code, s.where, s.message] for s in piece.skipped],
                        "facts": piece.facts,
                        "dull": piece.dull,
                    }
                )
            )
            told_of(piece)
    draft.replace(path)


def stored_pieces(path: Path) -> Iterator[Piece]:
    """The pieces in a part's file, one in memory at a time.

    Raises:
        UserError: the file is damaged.
    """
    with path.open("rb") as file:
        try:
            for values in msgpack.Unpacker(file, max_buffer_size=_LARGEST_BLOCK, strict_map_key=False):
                packed = Packed(
                    values["data"],
                    values["natoms"],
                    values["groups"],
                    values["labels"],
                    frozenset(values["elements"]),
                )
                skipped = [Skip(*skip) for skip in values["skipped"]]
                yield Piece(packed, skipped, values["facts"], values["dull"])
        except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
            raise UserError(f"{path} is damaged; remove {path.parent.parent} and begin anew") from error
