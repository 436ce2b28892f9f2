"""What a conversion tells: how much was taken, what was left out and why, what was found about units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from jmp_ds.data.checks import UnitVerdict
from jmp_ds.data.exclusion import EXCLUDED
from jmp_ds.data.readers.base import Skip


@dataclass
class Reason:
    """How often structures were left out for one reason, and where first."""

    count: int
    where: str
    message: str


@dataclass
class ConversionReport:
    """What a conversion did.

    Attributes:
        store: where the store is, if there is one.
        written: structures in it; in a failed conversion, those that would be.
        files: source files read.
        reasons: reason code -> how often and where first.
        notes: what the user should know besides, in words.
        units: file -> finding of the check of units, where there was something to compare.
        failure: why there is no store, in words; empty if all went well.
        seconds: wall time.
        resumed: structures that an earlier, interrupted conversion had finished.
    """

    store: Path
    written: int = 0
    files: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    units: dict[str, UnitVerdict] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0
    resumed: int = 0

    @property
    def skipped(self) -> int:
        """Structures left out."""
        return sum(reason.count for reason in self.reasons.values())

    @property
    def excluded(self) -> int:
        """Those of them that were to be left out."""
        return self.reasons[EXCLUDED].count if EXCLUDED in self.reasons else 0

    @property
    def bad(self) -> int:
        """Those of them that could not be taken."""
        return self.skipped - self.excluded

    @property
    def failed(self) -> bool:
        """Whether there is no store."""
        return bool(self.failure)

    def skip(self, skips: Iterable[Skip]) -> None:
        """Count structures left out."""
        for one in skips:
            reason = self.reasons.setdefault(one.code, Reason(0, one.where, one.message))
            reason.count += 1

    def table(self) -> Table:
        """Reason, count and first example, for the terminal."""
        table = Table(title=f"{self.written} structures taken, {self.skipped} left out")
        for column in ("reason", "count", "first example"):
            table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
        for code, reason in sorted(self.reasons.items(), key=lambda item: -item[1].count):
            table.add_row(code, str(reason.count), f"{reason.where}: {reason.message}")
        return table
