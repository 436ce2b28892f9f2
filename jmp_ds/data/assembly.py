"""Parts become a store: counted, judged and written in order, so that an interrupted conversion goes on.

At the end of every shard the state is noted in a file beside it. Whoever goes on drops what lies behind that shard and
takes up the part in which it ended; parts that are read are kept until their structures are in a finished shard. The
store comes out the same, byte for byte, whether it was interrupted or not and whoever read the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jmp_ds.data.checks import UnitCheck, UnitVerdict
from jmp_ds.data.codec import decode
from jmp_ds.data.conversion import ConversionReport, Reason
from jmp_ds.data.layout import Sealed, Shard
from jmp_ds.data.packed import Packed
from jmp_ds.data.parts import Part, Piece, stored_pieces
from jmp_ds.data.writer import StoreWriter
from jmp_ds.errors import UserError
from jmp_ds.files import write_json

STATE = "conversion.json"
#: A conversion of which nothing at all is good after this many structures is stopped.
HOPELESS = 2000


@dataclass
class Place:
    """Where in the parts the last finished shard ended: this many rows of a piece are in it."""

    part: int = 0
    piece: int = 0
    rows: int = 0


@dataclass
class State:
    """All that must be known to go on.

    Attributes:
        fingerprint: what the conversion is of (see `parts.fingerprint`).
        place: where to go on.
        sealed: the store's finished shards.
        report: what has been told so far.
        facts: what the sources said of themselves.
        file_start: number of the first structure of the current file.
        dull: structures of the current file without atoms of tag 1 or 2.
    """

    fingerprint: str
    place: Place = field(default_factory=Place)
    sealed: Sealed = field(default_factory=Sealed)
    report: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, list[str]] = field(default_factory=dict)
    file_start: int = 0
    dull: int = 0

    def write(self, folder: Path) -> None:
        """Note it in the folder, atomically."""
        write_json(folder / STATE, asdict(self), finite=False)

    @classmethod
    def read(cls, folder: Path, fingerprint: str) -> State | None:
        """The state in a folder, if it is of this very conversion."""
        try:
            values = json.loads((folder / STATE).read_text())
            if values.pop("fingerprint") != fingerprint:
                return None
            sealed = values.pop("sealed")
            shards = tuple(Shard(**shard) for shard in sealed["shards"])
            return cls(
                fingerprint,
                Place(**values.pop("place")),
                Sealed(shards, sealed["labels"], tuple(sealed["elements"])),
                **values,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def tell(report: ConversionReport) -> dict[str, Any]:
    """A report as plain values."""
    kept = asdict(report)
    return {key: kept[key] for key in ("written", "files", "reasons", "notes", "units")}


def retell(report: ConversionReport, kept: dict[str, Any]) -> None:
    """Put those values back."""
    report.written, report.files, report.notes = kept["written"], kept["files"], list(kept["notes"])
    report.reasons = {code: Reason(**reason) for code, reason in kept["reasons"].items()}
    report.units = {name: UnitVerdict(**verdict) for name, verdict in kept["units"].items()}


class Assembly:
    """Takes parts in order and writes their structures."""

    def __init__(self, writer: StoreWriter, report: ConversionReport, state: State, *, trust_units: bool) -> None:
        """Begin, or go on behind the finished shards: the first structures are looked at again for the check of units."""
        self._writer, self._report, self._state = writer, report, state
        self._trust_units = trust_units
        if state.report:
            retell(report, state.report)
        self._overall, self._check = UnitCheck(), UnitCheck()
        self._look_again()

    @property
    def facts(self) -> dict[str, list[str]]:
        """What the sources said of themselves."""
        return self._state.facts

    @property
    def hopeless(self) -> bool:
        """Whether so many structures were bad and none good that it makes no sense to go on."""
        return self._report.written == 0 and self._report.bad >= HOPELESS

    def take(self, parts: Iterable[tuple[Part, Path]]) -> None:
        """Write parts, from the place of the state on; their files are removed when they are not needed any more.

        Raises:
            UserError: units cannot be what the format says.
        """
        kept: list[Path] = []
        for part, file in parts:
            start = Place(part.number)
            if part.number == self._state.place.part:
                start = self._state.place
            shards = len(self._writer.sealed.shards)
            for at, piece in enumerate(stored_pieces(file)):
                if at >= start.piece:
                    self._take_piece(part, at, piece, start.rows if at == start.piece else 0)
                if self.hopeless:
                    return
            if part.last:
                self._finish_file(part.path)
            if len(self._writer.sealed.shards) > shards:
                _remove(kept)
            kept.append(file)
        _judge("all files", self._overall.verdict(), self._report, self._trust_units)

    def _take_piece(self, part: Part, at: int, piece: Piece, begun: int) -> None:
        """Write the rows of a piece behind the first `begun`, which are written and counted already."""
        if begun == 0:
            self._account(piece)
        row = begun
        while row < len(piece.packed):
            stop = min(len(piece.packed), row + self._writer.room)
            rows = _rows(piece.packed, row, stop)
            self._look(rows)
            self._report.written += len(rows)
            self._writer.append_packed(rows)
            row = stop
            if self._writer.room == 0:
                self._seal(Place(part.number, at, row) if row < len(piece.packed) else Place(part.number, at + 1))

    def _account(self, piece: Piece) -> None:
        """What a piece tells beside its structures."""
        self._report.skip(piece.skipped)
        self._state.dull += piece.dull
        for key, value in piece.facts.items():
            if value not in self._state.facts.setdefault(key, []):
                self._state.facts[key].append(value)

    def _look(self, rows: Packed) -> None:
        """Structures for the check of units, as long as it wants any."""
        if self._check.full and self._overall.full:
            return
        records = [decode(data) for data in rows.data]
        self._check.add(records)
        self._overall.add(records)

    def _look_again(self) -> None:
        """After an interruption: what was looked at before."""
        for check, start in ((self._overall, 0), (self._check, self._state.file_start)):
            for record in self._writer.records(start):
                if check.full:
                    break
                check.add([record])

    def _seal(self, place: Place) -> None:
        """Finish a shard and note the state."""
        self._writer.seal()
        self._state.place, self._state.sealed = place, self._writer.sealed
        self._state.report = tell(self._report)
        self._state.write(self._writer.path)

    def _finish_file(self, path: Path) -> None:
        """Judge a file that has been read to its end."""
        self._report.files += 1
        _judge(str(path), self._check.verdict(), self._report, self._trust_units)
        if self._state.dull:
            self._report.notes.append(
                f"{path}: {self._state.dull} periodic structures have no atom with tag 1 or 2, so that none of their bonds "
                "is the middle of a quadruplet; are these really OCP's tags?"
            )
        self._check, self._state.dull, self._state.file_start = UnitCheck(), 0, len(self._writer)


def remaining(parts: Sequence[Part], state: State) -> Iterator[Part]:
    """The parts from the place of the state on."""
    return (part for part in parts if part.number >= state.place.part)


def _rows(packed: Packed, start: int, stop: int) -> Packed:
    """Some rows of what was packed; labels and elements are counted with the first of them."""
    if start == 0:
        labels, elements = packed.labels, packed.elements
    else:
        labels, elements = {}, frozenset()
    return Packed(packed.data[start:stop], packed.natoms[start:stop], packed.groups[start:stop], labels, elements)


def _judge(name: str, verdict: UnitVerdict, report: ConversionReport, trust: bool) -> None:
    """Keep the finding; stop if units cannot be right."""
    if verdict.pairs or verdict.status == "refused":
        report.units[name] = verdict
    if verdict.status != "refused":
        return
    if not trust:
        raise UserError(
            f"{name}: {verdict.message}. Name the format or the units that fit; --trust-units converts all the same"
        )
    report.notes.append(f"{name}: taken all the same, though {verdict.message}")


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
    files.clear()
