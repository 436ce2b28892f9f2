"""Progress bars for work on stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def tracked(items: Iterable[T], what: str, total: int, show: bool) -> Iterator[T]:
    """The items, with a bar on standard error that counts them."""
    if not show:
        yield from items
        return
    yield from track(items, description=what, total=total, console=Console(stderr=True))
