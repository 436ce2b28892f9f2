"""Reading whole files in tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from jmp_ds.data.readers import reader
from jmp_ds.data.readers.base import ReaderOptions, Skip
from jmp_ds.data.record import Record
from jmp_ds.data.units import LabelSpec


class Contents:
    """All records, skips and facts of one file."""

    def __init__(self, format: str, path: Path, labels: Sequence[str] = (), **options: Any) -> None:
        self.records: list[Record] = []
        self.skipped: list[Skip] = []
        self.facts: dict[str, str] = {}
        self.done: list[float] = []
        told = ReaderOptions(labels=tuple(LabelSpec.parse(label) for label in labels), **options)
        for block in reader(format).blocks(path, told):
            self.records += block.records
            self.skipped += block.skipped
            self.facts |= block.facts
            if block.done is not None:
                self.done.append(block.done)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Record:
        return self.records[i]

    @property
    def codes(self) -> list[str]:
        """Reason codes of what was left out, in order."""
        return [skip.code for skip in self.skipped]


@pytest.fixture(scope="session")
def read() -> Callable[..., Contents]:
    """read(format, path, labels=[...], **reader options) -> Contents."""
    return Contents
