"""One job: a few related structures made and labelled, from nothing but (seed, set, number)."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from jmp_ds.data.demo.labelling import LENGTH_GRID, DemoFailure, label, on_grid
from jmp_ds.data.demo.organics import Draft
from jmp_ds.data.demo.plan import SETS, DemoSet
from jmp_ds.data.record import BadRecord, Record, make_record


@dataclass(frozen=True)
class Job:
    """Job `number` of a set; the numbers of a set go on until it has its size."""

    set: str
    seed: int
    number: int


@dataclass(frozen=True)
class Outcome:
    """What a job gave.

    Attributes:
        records: labelled structures in order.
        unique: key that at most one kept job of the set may have; empty: no such rule.
        skipped: reason -> how many structures (or the job itself) failed for it.
    """

    records: tuple[Record, ...]
    unique: str = ""
    skipped: Counter[str] = field(default_factory=Counter)


def become_worker() -> None:
    """Give this process one thread before tblite is loaded: sums over threads would depend on their number."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def run_job(job: Job) -> Outcome:
    """Make and label the structures of one job; what fails is counted, not raised."""
    entry = SETS[job.set]
    rng = np.random.default_rng([job.seed, crc32(job.set.encode()), job.number])
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    unique = ""
    try:
        for frame, draft in enumerate(entry.make(rng)):
            unique = draft.unique
            try:
                records.append(_labelled(draft, entry, f"{job.set}-{job.number:05d}", frame))
            except DemoFailure as failure:
                skipped[failure.reason] += 1
            except BadRecord as bad:
                skipped[bad.code] += 1
    except DemoFailure as failure:
        skipped[failure.reason] += 1
    return Outcome(tuple(records), unique, skipped)


def _labelled(draft: Draft, entry: DemoSet, name: str, frame: int) -> Record:
    """The draft on the grid, with its labels."""
    atoms = draft.atoms.copy()
    periodic = bool(atoms.pbc.any())
    if periodic:
        atoms.set_cell(on_grid(atoms.cell.array, LENGTH_GRID))
    atoms.positions = on_grid(atoms.positions, LENGTH_GRID)
    labels = label(atoms, entry.level)
    return make_record(
        pos=atoms.positions,
        atomic_numbers=atoms.numbers,
        id=f"{name}-{frame:02d}",
        cell=atoms.cell.array if periodic else None,
        pbc=atoms.pbc,
        labels={key: labels[key] for key in entry.labels},
        tags=draft.tags,
        fixed=draft.fixed,
        group=draft.group or name,
        info=draft.info,
    )
