"""Output of a long job: written piece by piece, under its name only when it is whole, and gone on with after a kill.

Beside the output stand, while it is made, `NAME.part` (one file per stream) and `NAME.part.json`, the journal: which job
this is, how many structures are safely on disk, and how many bytes they take. What was written after the last entry of the
journal is cut off when the job goes on, so no structure is in the output twice, and none is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from jmp_ds.errors import UserError
from jmp_ds.files import to_disk, write_json

#: Seconds between two entries of the journal, at least.
INTERVAL = 2.0


class Resumable:
    """Streams of bytes that become one output.

    Attributes:
        done: structures that are safely on disk.
        state: whatever else the job remembers, as plain JSON values; numbers come back exactly.
    """

    def __init__(
        self, output: Path, job: Mapping[str, Any], streams: Iterable[str] = ("",), *, interval: float = INTERVAL
    ) -> None:
        """Begin, or go on where a job of the same description was ended.

        Args:
            output: what is to be written.
            job: plain JSON values; all that decides the output.
            streams: names of the streams; the unnamed one is the output itself when all is done.
            interval: seconds between two entries of the journal.

        Raises:
            UserError: something else is half written under this name, or nothing can be written here.
        """
        self.output, self._job, self._interval = output, dict(job), interval
        self._journal = output.with_name(output.name + ".part.json")
        self._paths = {name: output.with_name(f"{output.name}.part{'.' * bool(name)}{name}") for name in streams}
        self._files: dict[str, BinaryIO] = {}
        self._last = time.monotonic()
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            known = self._read_journal()
            self.done, self.state = int(known.get("done", 0)), dict(known.get("state", {}))
            self._sizes: dict[str, int] = known.get("bytes", dict.fromkeys(self._paths, 0))
            for name, path in self._paths.items():
                self._files[name] = _opened_at(path, self._sizes[name])
        except OSError as error:
            raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error

    @property
    def resumed(self) -> bool:
        """Whether structures of a former run are there already."""
        return self.done > 0 or bool(self.state)

    def write(self, data: bytes, stream: str = "") -> None:
        """Add to a stream."""
        try:
            self._files[stream].write(data)
        except OSError as error:
            raise UserError(f"{self.output}: cannot be written ({error.strerror or error})") from error

    def commit(self, done: int, state: Mapping[str, Any] | None = None, *, force: bool = False) -> None:
        """Note that so many structures are written, if the last note is old enough or `force` says so."""
        self.done, self.state = done, dict(state or {})
        self._sizes = {name: file.tell() for name, file in self._files.items()}
        if force or time.monotonic() - self._last >= self._interval:
            self._commit()

    def _commit(self) -> None:
        for name in self._files:
            self.part(name)
        write_json(self._journal, {"job": self._job, "done": self.done, "bytes": self._sizes, "state": self.state})
        self._last = time.monotonic()

    def part(self, stream: str = "") -> Path:
        """The file of a stream, all of whose bytes are on disk; for what finishes the output."""
        self._files[stream].flush()
        to_disk(self._paths[stream])
        return self._paths[stream]

    def finish(self, made: Path | None = None) -> None:
        """Give the output its name.

        Args:
            made: a file made from the streams, beside them; the unnamed stream by default.
        """
        whole = made if made is not None else self.part()
        whole.replace(self.output)
        to_disk(self.output.parent)
        self._remove()

    def __enter__(self) -> Resumable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what was written stays for the next run, nothing stays of a job that wrote nothing."""
        unfinished = self._journal.exists() or any(path.exists() for path in self._paths.values())
        if kind is not None and unfinished and (self.done or self.state):
            self._commit()
        for file in self._files.values():
            file.close()
        if unfinished and not self._journal.exists():
            self._remove()

    def _remove(self) -> None:
        for path in (*self._paths.values(), self._journal):
            path.unlink(missing_ok=True)

    def _read_journal(self) -> dict[str, Any]:
        if not self._journal.exists():
            return {}
        try:
            known: dict[str, Any] = json.loads(self._journal.read_text(encoding="utf-8"))
            job = known["job"]
            paths = [path for name, path in self._paths.items() if path.stat().st_size < known["bytes"][name]]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{self._journal}: damaged ({error}); remove it to begin anew") from error
        differs = sorted(key for key in {*job, *self._job} if job.get(key) != self._job.get(key))
        if differs:
            raise UserError(
                f"{self.output}: another job stands half done here (it differs in {', '.join(differs)}); "
                f"finish that one, remove {self._journal.name} to begin anew, or choose another output"
            )
        if paths:
            raise UserError(f"{paths[0]}: shorter than its journal says; remove {self._journal.name} to begin anew")
        return known


def _opened_at(path: Path, size: int) -> BinaryIO:
    """A file open for writing behind its first `size` bytes; what came after them is cut off."""
    path.touch()
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
