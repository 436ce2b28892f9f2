"""From source files to a store: read, check, write, and tell what was left out and why.

The store is written under `NAME.partial` and moved to its name when it is whole. A conversion that fails, is interrupted or
meets too many bad structures leaves nothing under the name (an old store of that name stays), and one that is killed leaves
only the partial one, which says so itself.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jmp_ds.data.checks import UnitCheck, UnitVerdict
from jmp_ds.data.conversion import ConversionReport
from jmp_ds.data.layout import is_store
from jmp_ds.data.provenance import provenance
from jmp_ds.data.readers import reader
from jmp_ds.data.readers.base import Block, Reader, ReaderOptions, Skip
from jmp_ds.data.record import Record
from jmp_ds.data.writer import SHARD_SIZE, StoreWriter
from jmp_ds.errors import UserError
from jmp_ds.files import write_json

#: A conversion of which nothing at all is good after this many structures is stopped.
HOPELESS = 2000
_STORED_NOTES = 20


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How to convert, beside what the reader is told (`ReaderOptions`).

    Attributes:
        max_bad: structures that may be left out before the conversion fails: a fraction if below 1, else a number.
        require: labels every structure must have; without any, one label of whatever name.
        allow_unlabelled: take structures that have no label at all.
        trust_units: go on where the check of units refuses.
        overwrite: replace a store of that name, once the new one is whole.
        shard_size: structures per file of the store.
        describe: level_of_theory, licence, citation, energy, ...: what the store is to say, over what the format says.
        progress: show a progress bar on a terminal.
    """

    max_bad: float = 0.01
    require: tuple[str, ...] = ()
    allow_unlabelled: bool = False
    trust_units: bool = False
    overwrite: bool = False
    shard_size: int = SHARD_SIZE
    describe: Mapping[str, str] = field(default_factory=dict)
    progress: bool = True


def convert(
    sources: Sequence[str | Path],
    store: str | Path,
    format: str,
    *,
    reader_options: ReaderOptions | None = None,
    options: ConvertOptions | None = None,
) -> ConversionReport:
    """Read all sources in one format and write one store.

    Args:
        sources: files, or folders that are searched for the format's file names.
        store: folder of the new store.
        format: name of a reader (see `readers.READERS`).
        reader_options: what the reader is told.
        options: see `ConvertOptions`.

    Returns:
        The report; `failed` if more structures were bad than allowed, and then there is no store.

    Raises:
        UserError: a source cannot be read, the store exists, or units cannot be what the format says.
    """
    chosen, how = reader(format), options or ConvertOptions()
    told = reader_options or ReaderOptions()
    target = Path(store)
    files = find_sources(sources, chosen)
    _check_target(target, how.overwrite)
    staging = target.with_name(target.name + ".partial")
    report = ConversionReport(store=target)
    start = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(staging, {"incomplete": True}, shard_size=how.shard_size, overwrite=is_store(staging))
    try:
        facts = _copy(files, chosen, told, how, writer, report)
        report.failure = _failure(report, how)
        if report.failure:
            writer.abort()
            shutil.rmtree(staging)
        else:
            # Facts of the files are known only now; the marker that makes the store valid is written after them.
            metadata = provenance(files, chosen, told, facts)
            found = report.units["all files"].message if "all files" in report.units else "nothing to compare"
            metadata |= {"skipped": {code: r.count for code, r in sorted(report.reasons.items())}, "unit_check": found}
            metadata |= {"notes": report.notes[:_STORED_NOTES], **how.describe}
            write_json(staging / "metadata.json", metadata)
            writer.close()
            _put_in_place(staging, target)
    except BaseException:
        # Interruption included: nothing half-done may stay behind.
        writer.abort()
        shutil.rmtree(staging, ignore_errors=True)
        raise
    report.seconds = time.monotonic() - start
    return report


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
    old = target.with_name(target.name + ".replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _copy(
    files: Sequence[Path],
    chosen: Reader,
    told: ReaderOptions,
    how: ConvertOptions,
    writer: StoreWriter,
    report: ConversionReport,
) -> dict[str, list[str]]:
    """Read every file into the writer; returns the facts the files tell about themselves."""
    facts: dict[str, list[str]] = {}
    overall = UnitCheck()
    for file, blocks in _with_progress(files, chosen, told, how.progress, report):
        check = UnitCheck()
        dull = 0
        for block in blocks:
            good, skipped = _select(block, how)
            check.add(good)
            overall.add(good)
            dull += sum(bool(r.pbc.any()) and not (r.tags > 0).any() for r in good)
            writer.append(good)
            report.written += len(good)
            report.skip(skipped)
            for key, value in block.facts.items():
                if value not in facts.setdefault(key, []):
                    facts[key].append(value)
            if report.written == 0 and report.skipped >= HOPELESS:
                return facts
        report.files += 1
        _judge_units(str(file), check.verdict(), how, report)
        if dull:
            report.notes.append(
                f"{file}: {dull} periodic structures have no atom with tag 1 or 2, so that none of their bonds is the "
                "middle of a quadruplet; are these really OCP's tags?"
            )
    _judge_units("all files", overall.verdict(), how, report)
    return facts


def _select(block: Block, how: ConvertOptions) -> tuple[list[Record], list[Skip]]:
    """Those records of a block that have the labels that are asked for."""
    good: list[Record] = []
    skipped = list(block.skipped)
    for record in block.records:
        missing = [name for name in how.require if name not in record.labels]
        if missing:
            skipped.append(Skip("missing_label", record.id, f"no label {missing}; there are {sorted(record.labels)}"))
        elif not record.labels and not how.allow_unlabelled:
            keys = f"its keys are {sorted(record.info)}" if record.info else "it has no other values either"
            skipped.append(
                Skip("missing_label", record.id, f"no label at all; {keys}; name one with --label NAME=KEY:UNIT")
            )
        else:
            good.append(record)
    return good, skipped


def _judge_units(name: str, verdict: UnitVerdict, how: ConvertOptions, report: ConversionReport) -> None:
    """Keep the finding; stop if units cannot be right."""
    if verdict.pairs or verdict.status == "refused":
        report.units[name] = verdict
    if verdict.status != "refused":
        return
    if not how.trust_units:
        raise UserError(
            f"{name}: {verdict.message}. Name the format or the units that fit; --trust-units converts all the same"
        )
    report.notes.append(f"{name}: taken all the same, though {verdict.message}")


def _failure(report: ConversionReport, how: ConvertOptions) -> str:
    """Why there is to be no store; empty if there is."""
    total = report.written + report.skipped
    if report.written == 0:
        return f"not one of {total} structures could be taken" if total else "the sources hold no structures"
    allowed = how.max_bad * total if how.max_bad < 1 else how.max_bad
    if report.skipped > allowed:
        limit = f"{how.max_bad:.2%}" if how.max_bad < 1 else f"{how.max_bad:.0f}"
        return f"{report.skipped} of {total} structures are bad, more than the {limit} allowed (--max-bad)"
    return ""


def _with_progress(
    files: Sequence[Path], chosen: Reader, told: ReaderOptions, show: bool, report: ConversionReport
) -> Iterator[tuple[Path, Iterator[Block]]]:
    """Each file with its blocks, while a bar shows how far it is."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[taken]} structures"),
    )
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with bar if show else nullcontext():
        task = bar.add_task("convert", total=float(len(files)), taken=0)

        def watched(at: int, file: Path) -> Iterator[Block]:
            for block in chosen.blocks(file, told):
                yield block
                bar.update(task, completed=at + (block.done or 0.0), taken=report.written)

        for at, file in enumerate(files):
            bar.update(task, description=file.name)
            yield file, watched(at, file)
            bar.update(task, completed=at + 1)
