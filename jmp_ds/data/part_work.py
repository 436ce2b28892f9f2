"""Who reads the parts of a conversion: this process, or several."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from jmp_ds.data.parts import Part, Piece, Wanted, read_part, write_part
from jmp_ds.data.readers.base import ReaderOptions
from jmp_ds.errors import UserError

#: Parts that may lie ready before they are needed, per process: what bounds the disk space taken.
_AHEAD = 3
_TOLD_EVERY = 0.2


@dataclass(frozen=True)
class Work:
    """How parts are read, and where they are put.

    Attributes:
        folder: where the files of parts lie.
        format: name of the reader.
        told: what the reader is told.
        wanted: which structures are taken.
    """

    folder: Path
    format: str
    told: ReaderOptions
    wanted: Wanted

    def file(self, part: Part) -> Path:
        """The file of a part; there when it is whole."""
        return self.folder / f"part-{part.number:08d}.blocks"

    def do(self, part: Part, told_of: Callable[[Piece], None] = lambda piece: None) -> None:
        """Read a part and write its file."""
        write_part(self.file(part), read_part(part, self.format, self.told, self.wanted), told_of)


def ready(
    work: Work, parts: Sequence[Part], processes: int, seen: Callable[[int], None]
) -> Iterator[tuple[Part, Path]]:
    """Every part with its file, in order; those that are there already are not read again.

    Args:
        work: how parts are read.
        parts: which.
        processes: how many processes read; 1 is this one.
        seen: told, now and then, how many structures have been read since it was told last.

    Raises:
        UserError: a source cannot be read, or a process came to an unnatural end.
    """
    work.folder.mkdir(parents=True, exist_ok=True)
    missing = [part for part in parts if not work.file(part).is_file()]
    if min(processes, len(missing)) <= 1:
        for part in parts:
            if not work.file(part).is_file():
                work.do(part, lambda piece: seen(piece.seen))
            yield part, work.file(part)
        return
    yield from _by_several(work, parts, min(processes, len(missing)), seen)


def _by_several(
    work: Work, parts: Sequence[Part], processes: int, seen: Callable[[int], None]
) -> Iterator[tuple[Part, Path]]:
    # Processes are started anew: HDF5 and LMDB handles do not survive a fork.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    told = 0
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(work, counter))
    running: dict[int, Future[None]] = {}
    todo = iter([part for part in parts if not work.file(part).is_file()])
    try:
        for part in parts:
            while len(running) < _AHEAD * processes and (ahead := next(todo, None)) is not None:
                running[ahead.number] = pool.submit(_do, ahead)
            while part.number in running:
                done, _ = wait([running[part.number]], timeout=_TOLD_EVERY)
                seen(int(counter.value) - told)
                told = int(counter.value)
                if done:
                    running.pop(part.number).result()
            yield part, work.file(part)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that read the sources came to an unnatural end (out of memory, or a file that crashes its library); "
            "the same command goes on from where it was, `--processes 1` shows the place"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Mine:
    """What a worker process keeps."""

    work: Work
    counter: Synchronized


def _start(work: Work, counter: Synchronized) -> None:
    """First thing in a worker: an interruption is the parent's to deal with, and its end is the worker's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Mine.work, _Mine.counter = work, counter


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _do(part: Part) -> None:
    _Mine.work.do(part, _count)


def _count(piece: Piece) -> None:
    with _Mine.counter.get_lock():
        _Mine.counter.value += piece.seen
