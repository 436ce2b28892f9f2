"""Structures that are to be left out of a store, by a list of their names in the source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jmp_ds.data.record import Record
from jmp_ds.errors import UserError
from jmp_ds.files import sha256

#: Reason code of structures that a list names. Nothing is wrong with them, so they are not among `record.REASONS`.
EXCLUDED = "excluded"


@dataclass(frozen=True)
class Exclusion:
    """A list of names.

    Attributes:
        source: name of the file it was read from.
        sha256: its checksum.
        names: as they stand there.
        numbers: those of them that are whole numbers.
    """

    source: str
    sha256: str
    names: frozenset[str]
    numbers: frozenset[int]

    def name_of(self, record: Record) -> str:
        """How the list names a record: by its id, or by the number that the source gives it (`info["index"]`).

        Returns:
            The name; empty if the list does not name it.
        """
        if record.id in self.names:
            return record.id
        index = record.info.get("index")
        return str(index) if isinstance(index, int) and index in self.numbers else ""


def read_exclusion(file: str | Path, rows: str = "") -> Exclusion:
    """Read a list of structures: one name per line, or the first column of a table.

    Args:
        file: text. Lines that are empty or begin with # are passed over.
        rows: which lines name structures, as FIRST:LAST counted from 0, LAST not among them and either left out or counted
            from the end if negative: `9:-1` is all but the first nine and the last one. Needed for a table, whose lines
            have several columns: a heading must not be taken for a name.

    Raises:
        UserError: no such file, nothing in it, lines of several columns without `rows`, or `rows` that make no sense.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    names = []
    for number in range(*_span(rows).indices(len(lines))):
        columns = lines[number].split()
        if not columns or columns[0].startswith("#"):
            continue
        if len(columns) > 1 and not rows:
            raise UserError(
                f"{path}: line {number + 1} has several columns; say which lines name structures in their first column, "
                "such as --exclude-rows 9:-1 for all but the first nine and the last one"
            )
        names.append(columns[0])
    if not names:
        raise UserError(f"{path}: names no structure" + (f" in lines {rows}" if rows else ""))
    numbers = frozenset(int(name) for name in names if name.isdecimal())
    return Exclusion(path.name, sha256(path), frozenset(names), numbers)


def _span(rows: str) -> slice:
    found = re.fullmatch(r"(-?\d+)?:(-?\d+)?", rows or ":")
    if found is None:
        raise UserError(f"--exclude-rows {rows}: must look like FIRST:LAST, such as 9:-1")
    return slice(*(None if text is None else int(text) for text in found.groups()))
