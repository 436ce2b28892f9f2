"""What all readers share: the values they take and give, and the collecting of records into blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jmp_ds.data.record import BadRecord, Record, make_record
from jmp_ds.data.units import LabelSpec

#: Structures per block.
BLOCK_SIZE = 1000

#: Spin given as multiplicity; 0 is what some sources write for "not given".
_NEUTRAL = {"charge": (0,), "spin": (0, 1)}


@dataclass(frozen=True)
class Skip:
    """A structure that was not taken: reason code (see `record.REASONS`), where it is, and what exactly was wrong."""

    code: str
    where: str
    message: str


#: Key of `Block.facts`: per-atom values that no label is made of.
NOT_READ = "not_read"


@dataclass(frozen=True)
class Block:
    """Some consecutive structures of one file.

    Attributes:
        records: those that are good.
        skipped: those that are not.
        facts: what the file says about itself, for the store's metadata (level of theory, meaning of the energy, ...). A
            key `unit:LABEL` is the unit of a label.
        done: how much of the file is behind us, 0..1, where the reader knows.
    """

    records: list[Record]
    skipped: list[Skip]
    facts: Mapping[str, str] = field(default_factory=dict)
    done: float | None = None


@dataclass(frozen=True, kw_only=True)
class About:
    """What a format is.

    Attributes:
        title: one line for people.
        units: units in the files, before conversion to eV and Å.
        energy: what `energy` means, empty where the format has none.
        level_of_theory, licence, citation: where the format belongs to one data set; empty when the user must say.
        patterns: names of its files, for a source that is a folder.
        folder: a folder is one source as a whole, not a collection of files.
        labels: name -> unit of the labels it gives by itself.
    """

    title: str
    units: str
    energy: str = ""
    level_of_theory: str = ""
    licence: str = ""
    citation: str = ""
    patterns: tuple[str, ...] = ("*",)
    folder: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReaderOptions:
    """What the user may say about a source; every reader documents which of these it heeds.

    Attributes:
        labels: labels by the source's key and unit, beside or instead of those a reader finds by itself.
        group_key: key of the source whose value must not be cut by a split.
        id_key: key of the source that names a structure.
        tags: `ocp`: the source's tags mean 0 bulk, 1 surface, 2 adsorbate; `source`: only if the format defines that.
        ignore_charge: take structures with a charge, or with a spin, as if they had none.
        level: which of several levels of theory in one file.
        structure_key: column that holds the structure.
        table: a CSV file with labels, its first column (or `id_key`) naming structures.
        span: only these units of the file, first and behind the last (see `Reader.units`); set by the conversion.
    """

    labels: tuple[LabelSpec, ...] = ()
    group_key: str = ""
    id_key: str = ""
    tags: Literal["source", "ocp"] = "source"
    ignore_charge: bool = False
    level: str = ""
    structure_key: str = ""
    table: Path | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Reader:
    """A format's name, its description, and the function that reads one file (or folder) of it.

    Attributes:
        units: in how many units (frames, groups, records) a file can be read apart from one another, and how many of
            them make a good portion; None for formats that are read from end to end.
    """

    name: str
    about: About
    blocks: Callable[[Path, ReaderOptions], Iterator[Block]]
    units: Callable[[Path, ReaderOptions], tuple[int, int]] | None = None


def chosen_units(options: ReaderOptions, count: int) -> range:
    """The units of a file that are to be read: all, or those of the span."""
    first, last = options.span or (0, count)
    return range(max(0, first), min(last, count))


class Collector:
    """Gathers structures into blocks; a bad one becomes a `Skip` with its reason.

    Usage: `collector.add(where, **fields of make_record)`, then `if collector.full: yield collector.take(done)`, and at
    the end `yield collector.take()`.
    """

    def __init__(self, facts: Mapping[str, str] | None = None) -> None:
        self.facts = dict(facts or {})
        self._records: list[Record] = []
        self._skipped: list[Skip] = []

    def add(self, where: str, **fields: Any) -> None:
        """Make a record of `fields` (see `make_record`), or note why it is none."""
        try:
            self._records.append(make_record(**fields))
        except BadRecord as bad:
            self.skip(bad, where)

    def skip(self, bad: BadRecord, where: str) -> None:
        """Note a structure that could not even be assembled."""
        self._skipped.append(Skip(bad.code, where, bad.message))

    @property
    def full(self) -> bool:
        """Whether a block's worth has been gathered."""
        return len(self._records) + len(self._skipped) >= BLOCK_SIZE

    def take(self, done: float | None = None) -> Block:
        """The block gathered so far; starts the next one."""
        block = Block(self._records, self._skipped, dict(self.facts), done)
        self._records, self._skipped = [], []
        return block


def refuse_charged(facts: Mapping[str, Any], options: ReaderOptions) -> None:
    """Refuse a structure whose facts name a charge other than 0, or a spin (multiplicity) other than 0 or 1.

    Raises:
        BadRecord: `charge_or_spin`, unless the options say to ignore them.
    """
    if options.ignore_charge:
        return
    for key, value in facts.items():
        lowered = key.lower()
        kind = next((k for k, names in _CHARGE_KEYS.items() if lowered in names), None)
        if kind is None:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue  # per-atom charges, or a word: nothing to be judged
        if number not in _NEUTRAL[kind]:
            raise BadRecord("charge_or_spin", f"{key} = {value}; such structures are taken only if told to ignore it")


_CHARGE_KEYS = {
    "charge": ("charge", "total_charge", "system_charge"),
    "spin": ("spin", "multiplicity", "spin_multiplicity", "total_spin"),
}
