"""Makes the demonstration sets: jobs in worker processes, taken in order, written as stores."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jmp_ds import __version__
from jmp_ds.data.demo.jobs import Job, Outcome, become_worker, run_job
from jmp_ds.data.demo.labelling import require_tblite
from jmp_ds.data.demo.plan import SETS, DemoSet, check_sizes, default_sizes
from jmp_ds.data.demo.shipped import append_in_blocks
from jmp_ds.data.record import Record
from jmp_ds.data.store import StoreWriter, is_store
from jmp_ds.errors import UserError

NOTE = (
    "A demonstration set: semi-empirical labels, few structures, small cells at the Γ point. It shows that the software "
    "works; models trained on it are of no scientific use."
)
ENERGY = "total energy of tblite, i.e. the electrons' free energy at the electronic temperature given"
CITATIONS = {
    "GFN1-xTB": "Grimme, Bannwarth, Shushkov, J. Chem. Theory Comput. 13, 1989 (2017), doi:10.1021/acs.jctc.7b00118",
    "GFN2-xTB": "Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019), doi:10.1021/acs.jctc.8b01176",
}


@dataclass(frozen=True)
class SetReport:
    """What became of one set.

    Attributes:
        path: folder of its store.
        structures: how many it holds.
        jobs: how many jobs were run for it.
        skipped: reason -> count of structures or jobs that came to nothing and were replaced by later ones.
        seconds: wall time.
    """

    path: Path
    structures: int
    jobs: int
    skipped: dict[str, int]
    seconds: float


def make_demo(
    out: str | Path,
    *,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    processes: int = 1,
    progress: bool = True,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, SetReport]:
    """Make demonstration sets anew, one store `out`/NAME each; the same seed and sizes give the same stores.

    Each job draws from its own random numbers (seed, set, number) and is labelled by one thread; jobs are kept in the
    order of their numbers until a set has its size. The number of processes therefore changes nothing but the time.

    Args:
        out: folder, made where it is missing.
        sizes: structures per set (names: `plan.SETS`); sets left out are not made. None: the default sizes.
        seed: not negative.
        processes: worker processes, of one thread each.
        progress: show a bar per set on standard error.
        overwrite: replace stores that are there already.
        command: kept in the stores' metadata.

    Returns: a report per set, in the order they were made.

    Raises:
        UserError: tblite is missing; a size, the seed or the number of processes is impossible; a store is in the way.
    """
    wanted = check_sizes(default_sizes() if sizes is None else sizes)
    if seed < 0:
        raise UserError(f"demonstration data: the seed must not be negative, got {seed}")
    if processes < 1:
        raise UserError(f"demonstration data: at least one process is needed, got {processes}")
    require_tblite()
    folders = {name: Path(out) / name for name in wanted}
    for folder in folders.values():
        if is_store(folder) and not overwrite:
            raise UserError(
                f"store {folder}: there is a store already; choose another folder or ask for it to be replaced"
            )
    reports = {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=become_worker)
    try:
        with _bars(progress) as bars:
            for name, size in wanted.items():
                reports[name] = _make_set(SETS[name], folders[name], size, seed, pool, 2 * processes, bars, command)
    except BrokenProcessPool as error:
        raise UserError(
            "demonstration data: a worker process ended unexpectedly, often for want of memory; try fewer processes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return reports


def versions() -> dict[str, str]:
    """Versions that decide the numbers."""
    return {"jmp-ds": __version__, **{name: version(name) for name in ("tblite", "ase", "numpy")}}


def metadata(entry: DemoSet, seed: int, size: int, command: str) -> dict[str, Any]:
    """What a set's store says about itself."""
    return {
        "title": entry.title,
        "use": entry.use,
        "note": NOTE,
        "level_of_theory": str(entry.level),
        "energy": ENERGY,
        "units": "eV, Å, eV/Å, eV/Å³, e·Å",
        "source": "jmp-ds data demo",
        "licence": "CC0-1.0",
        "citation": CITATIONS[entry.level.method],
        "command": command,
        "seed": seed,
        "size": size,
        "versions": versions(),
    }


def _bars(show: bool) -> Progress:
    """Progress bars on standard error."""
    columns = (TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not show)


def _make_set(
    entry: DemoSet,
    path: Path,
    size: int,
    seed: int,
    pool: ProcessPoolExecutor,
    ahead: int,
    bars: Progress,
    command: str,
) -> SetReport:
    """Make one set and write its store."""
    start = time.monotonic()
    bar = bars.add_task(entry.name, total=size)
    skipped: Counter[str] = Counter()
    jobs = 0
    seen: set[str] = set()
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: list[Record] = []
    with StoreWriter(path, metadata(entry, seed, size, command), overwrite=True) as writer:
        for outcome in _outcomes(entry, size, seed, pool, ahead, kept):
            jobs += 1
            skipped.update(outcome.skipped)
            records: tuple[Record, ...] = outcome.records
            if outcome.unique and records:
                if outcome.unique in seen:
                    skipped["duplicate"] += len(records)
                    records = ()
                seen.add(outcome.unique)
            kept.extend(records[: size - len(kept)])
            bars.update(bar, completed=len(kept))
        append_in_blocks(writer, kept)
    return SetReport(path, size, jobs, dict(sorted(skipped.items())), time.monotonic() - start)


def _outcomes(
    entry: DemoSet, size: int, seed: int, pool: ProcessPoolExecutor, ahead: int, kept: Sized
) -> Iterator[Outcome]:
    """Outcomes of jobs 0, 1, 2, … in order until `size` records are kept; at most `ahead` jobs are under way.

    Raises:
        UserError: more than ten times the jobs that should do were not enough.
    """
    pending: deque[Future[Outcome]] = deque()
    number = 0
    most = 10 * (size // entry.frames + 1) + 20
    while len(kept) < size:
        while len(pending) < ahead and (not pending or len(kept) + len(pending) * entry.frames < size):
            if number == most:
                raise UserError(
                    f"demonstration data: {number} jobs gave only {len(kept)} of {size} structures of {entry.name}; "
                    "the set has too few different members: ask for a smaller size"
                )
            pending.append(pool.submit(run_job, Job(entry.name, seed, number)))
            number += 1
        yield pending.popleft().result()
    for future in pending:
        future.cancel()
