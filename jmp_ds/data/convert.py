"""From source files to a store: read, check, write, and tell what was left out and why.

The store is written under `NAME.partial` and moved to its name when it is whole. A conversion that fails or meets too many
bad structures leaves nothing under either name (an old store of that name stays). One that is interrupted or killed
leaves the partial one, which says so itself; the same command goes on from there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jmp_ds.data.assembly import STATE, Assembly, State, remaining
from jmp_ds.data.conversion import ConversionReport
from jmp_ds.data.exclusion import EXCLUDED, Exclusion
from jmp_ds.data.layout import is_store
from jmp_ds.data.part_work import Work, ready
from jmp_ds.data.parts import Part, Wanted, fingerprint, plan
from jmp_ds.data.provenance import provenance
from jmp_ds.data.readers import reader
from jmp_ds.data.readers.base import NOT_READ, Reader, ReaderOptions
from jmp_ds.data.writer import SHARD_SIZE, StoreWriter
from jmp_ds.errors import UserError
from jmp_ds.files import write_json

_STORED_NOTES = 20
#: Sources (bytes) from which several processes are quicker than one.
_WORTH_STARTING = 32 << 20
_PARTS, _LOCK = "parts", "lock"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How to convert, beside what the reader is told (`ReaderOptions`).

    Attributes:
        max_bad: structures that may be left out before the conversion fails: a fraction if below 1, else a number.
        require: labels every structure must have; without any, one label of whatever name.
        allow_unlabelled: take structures that have no label at all.
        trust_units: go on where the check of units refuses.
        exclude: names of structures that are left out; they are counted, but not as bad (see `exclusion.read_exclusion`).
        overwrite: replace a store of that name, once the new one is whole.
        shard_size: structures per file of the store.
        describe: level_of_theory, licence, citation, energy, ...: what the store is to say, over what the format says.
        progress: show a progress bar on a terminal.
        processes: how many read the sources; the store does not depend on it.
    """

    max_bad: float = 0.01
    require: tuple[str, ...] = ()
    allow_unlabelled: bool = False
    trust_units: bool = False
    exclude: Exclusion | None = None
    overwrite: bool = False
    shard_size: int = SHARD_SIZE
    describe: Mapping[str, str] = field(default_factory=dict)
    progress: bool = True
    processes: int = 1


def convert(
    sources: Sequence[str | Path],
    store: str | Path,
    format: str,
    *,
    reader_options: ReaderOptions | None = None,
    options: ConvertOptions | None = None,
) -> ConversionReport:
    """Read all sources in one format and write one store; go on where the same conversion was interrupted.

    Args:
        sources: files, or folders that are searched for the format's file names.
        store: folder of the new store.
        format: name of a reader (see `readers.READERS`).
        reader_options: what the reader is told.
        options: see `ConvertOptions`.

    Returns:
        The report; `failed` if more structures were bad than allowed, and then there is no store.

    Raises:
        UserError: a source cannot be read, the store exists, another process is writing it, or units cannot be what the
            format says.
    """
    chosen, how = reader(format), options or ConvertOptions()
    told = reader_options or ReaderOptions()
    target = Path(store)
    files = find_sources(sources, chosen)
    _check_target(target, how.overwrite)
    staging = target.with_name(target.name + ".partial")
    report = ConversionReport(store=target)
    start = time.monotonic()
    parts = plan(files, chosen, told)
    rest: list[object] = [how.require, how.allow_unlabelled, how.trust_units, how.shard_size]
    if how.exclude is not None:
        rest.append([sorted(how.exclude.names)])
    mark = fingerprint(parts, format, told, rest)
    _check_staging(staging)
    with _locked(staging):
        try:
            facts = _assemble(parts, Work(staging / _PARTS, format, told, _wanted(how)), mark, how, report)
            if NOT_READ in facts:
                names = "; ".join(facts[NOT_READ])
                report.notes.append(
                    f"per-atom values that no label was made of: {names}; --label NAME=KEY:UNIT takes one"
                )
            report.failure = _failure(report, how)
            if report.failure:
                shutil.rmtree(staging)
            else:
                _describe(staging, provenance(files, chosen, told, facts), report, how)
                _put_in_place(staging, target)
        except Exception:
            # Only an interruption, or an end without warning, leaves something to go on from.
            shutil.rmtree(staging, ignore_errors=True)
            raise
    report.seconds = time.monotonic() - start
    return report


def _wanted(how: ConvertOptions) -> Wanted:
    return Wanted(how.require, how.allow_unlabelled, how.exclude)


def _assemble(
    parts: Sequence[Part], work: Work, mark: str, how: ConvertOptions, report: ConversionReport
) -> dict[str, list[str]]:
    """Read what is not read yet, write what is not written yet; returns what the sources said of themselves."""
    staging = work.folder.parent
    state = State.read(staging, mark)
    if state is None:
        _clear(staging)
        state = State(mark)
        state.write(staging)
    report.resumed = state.sealed.length
    # Facts of the files are known only later; the marker that makes the store valid is written after them.
    writer = StoreWriter(staging, {"incomplete": True}, shard_size=how.shard_size, sealed=state.sealed)
    try:
        assembly = Assembly(writer, report, state, trust_units=how.trust_units)
        rest = list(remaining(parts, state))
        with _progress(parts, len(parts) - len(rest), how.progress, report) as (seen, watched):
            assembly.take(watched(ready(work, rest, how.processes, seen)))
        if not report.written or assembly.hopeless:
            writer.abort()
        else:
            writer.close()
    except BaseException:
        writer.abort()
        raise
    return assembly.facts


def _describe(staging: Path, metadata: dict[str, object], report: ConversionReport, how: ConvertOptions) -> None:
    """What the store says of itself."""
    found = report.units["all files"].message if "all files" in report.units else "nothing to compare"
    bad = {code: r.count for code, r in sorted(report.reasons.items()) if code != EXCLUDED}
    metadata |= {"skipped": bad, "unit_check": found}
    if how.exclude is not None:
        named, left_out = len(how.exclude.names), report.excluded
        about = {"list": how.exclude.source, "sha256": how.exclude.sha256, "names": named, "structures": left_out}
        metadata |= {EXCLUDED: about}
        report.notes.append(f"{how.exclude.source} has {named} names; {left_out} structures were left out by it")
    metadata |= {"notes": report.notes[:_STORED_NOTES], **how.describe}
    write_json(staging / "metadata.json", metadata)


def _check_staging(staging: Path) -> None:
    """Make the folder; one that holds anything but a begun conversion is somebody's."""
    staging.mkdir(parents=True, exist_ok=True)
    ours = (staging / _LOCK).is_file() or (staging / STATE).is_file() or is_store(staging)
    if any(staging.iterdir()) and not ours:
        raise UserError(
            f"store {staging}: the folder holds other files, and is needed for the conversion; move it away"
        )


@contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Only one process writes a store."""
    with (staging / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{staging}: another process is writing this store; wait for it, or name another") from None
        yield


def _clear(staging: Path) -> None:
    """Remove what another conversion left in the folder."""
    for old in staging.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != _LOCK:
            old.unlink()


def find_sources(sources: Sequence[str | Path], chosen: Reader) -> list[Path]:
    """The files to read: files as given, folders searched for the format's names (unless a folder is one source).

    Raises:
        UserError: a source does not exist, or a folder holds nothing of the format.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"{source}: no such file or folder")
        if source.is_file() or chosen.about.folder:
            files.append(source)
            continue
        found = {file for pattern in chosen.about.patterns for file in source.rglob(pattern) if file.is_file()}
        if not found:
            raise UserError(f"{source} holds no file named like {', '.join(chosen.about.patterns)}")
        files += sorted(found)
    if not files:
        raise UserError("name at least one file or folder to convert")
    return files


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse to write over anything that is not to be replaced."""
    if target.exists() and not target.is_dir():
        raise UserError(f"store {target}: a file of that name exists; choose another name")
    if target.is_dir() and any(target.iterdir()):
        if not is_store(target):
            raise UserError(f"store {target}: the folder holds other files; choose an empty or new one")
        if not overwrite:
            raise UserError(
                f"store {target}: there is a store already; choose another name or ask for it to be replaced"
            )


def _put_in_place(staging: Path, target: Path) -> None:
    """Move the finished store to its name; an old one is removed only after that."""
    shutil.rmtree(staging / _PARTS, ignore_errors=True)
    for name in (STATE, _LOCK):
        (staging / name).unlink(missing_ok=True)
    old = target.with_name(target.name + ".replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _failure(report: ConversionReport, how: ConvertOptions) -> str:
    """Why there is to be no store; empty if there is."""
    total = report.written + report.bad
    if report.written == 0:
        besides = f"; {report.excluded} were excluded" if report.excluded else ""
        told = f"not one of {total} structures could be taken" if total else "the sources hold no structures"
        return told + besides
    allowed = how.max_bad * total if how.max_bad < 1 else how.max_bad
    if report.bad > allowed:
        limit = f"{how.max_bad:.2%}" if how.max_bad < 1 else f"{how.max_bad:.0f}"
        return f"{report.bad} of {total} structures are bad, more than the {limit} allowed (--max-bad)"
    return ""


Watched = Callable[[Iterator[tuple[Part, Path]]], Iterator[tuple[Part, Path]]]


@contextmanager
def _progress(
    parts: Sequence[Part], finished: int, show: bool, report: ConversionReport
) -> Iterator[tuple[Callable[[int], None], Watched]]:
    """A bar over the parts, and two functions: to be told of structures read, and to watch parts come."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[taken]} structures"),
    )
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with bar if show else nullcontext():
        task = bar.add_task("convert", total=float(len(parts)), completed=finished, taken=report.resumed)
        read = report.resumed

        def seen(structures: int) -> None:
            nonlocal read
            read += structures
            bar.update(task, taken=read)

        def watched(coming: Iterator[tuple[Part, Path]]) -> Iterator[tuple[Part, Path]]:
            for part, file in coming:
                bar.update(task, description=part.path.name)
                yield part, file
                bar.advance(task)

        yield seen, watched


def processes_for(sources: Sequence[Path], asked: int) -> int:
    """How many processes are worth their start for these sources: those asked for, else all cores unless it is little.

    Args:
        sources: files or folders.
        asked: 0 for all cores.
    """
    if asked:
        return asked
    size = sum(p.stat().st_size for s in sources for p in (s.rglob("*") if s.is_dir() else [s]) if p.is_file())
    return len(os.sched_getaffinity(0)) if size > _WORTH_STARTING else 1
