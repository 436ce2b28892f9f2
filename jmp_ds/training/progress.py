"""Progress of a run for people: a bar with structures per second and time left; lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY = 30.0


class RunProgress:
    """A progress bar over the run; silent in all processes but the first.

    Args:
        total: length of the run, in what it is measured (structures or steps).
        done: of that, before this start.
        enabled: False in all processes but the first.
        console: where to; standard error by default.
    """

    def __init__(self, total: float, done: float = 0.0, enabled: bool = True, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=not enabled)
        self.rate = 0.0  #: structures per second since this start
        self._total, self._start = total, done
        self._began = self._last_line = time.monotonic()
        self._structures = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not enabled or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=int(total), completed=int(done), rate="", note="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, done: float, structures: int, note: str) -> None:
        """Show how far the run is.

        Args:
            done: of `total`.
            structures: consumed since the last call.
            note: a few numbers.
        """
        now = time.monotonic()
        self._structures += structures
        self.rate = self._structures / max(now - self._began, 1e-9)
        self._bar.update(self._task, completed=int(done), rate=f"{self.rate:.3g} structures/s", note=note)
        if not self.console.is_terminal and now - self._last_line > _LINE_EVERY:
            self._last_line = now
            left = (self._total - done) * (now - self._began) / max(done - self._start, 1e-9)
            share = 100 * done / self._total
            self.say(f"{share:.1f} % of the run, {self.rate:.3g} structures/s, {left / 60:.1f} min left, {note}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False)
