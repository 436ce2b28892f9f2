"""Counts of a batch before there is one: of a named batch (batches.json), of so many edges, or of a store's structures."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from jmp_ds.data.index import edge_counts, summed_up
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import assemble
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.counts import BatchCounts, Forces, HeadRows
from jmp_ds.planning.memory import scaled

#: Structures of a store that are assembled to learn what its index does not hold.
SAMPLE = 32


@dataclass(frozen=True)
class BatchPlan:
    """A micro-batch of one process.

    Attributes:
        name: where its proportions come from.
        counts: its sizes.
    """

    name: str
    counts: BatchCounts


@cache
def named_counts() -> dict[str, BatchCounts]:
    """Counts of the batches of `jmp-ds bench step`, by name; tests compare them with the batches."""
    text = (resources.files("jmp_ds.planning") / "batches.json").read_text(encoding="utf-8")
    return {name: BatchCounts(**values) for name, values in json.loads(text).items()}


def named_batch(name: str) -> BatchPlan:
    """A batch by name.

    Raises:
        UserError: no such batch.
    """
    known = named_counts()
    if name not in known:
        raise UserError(f"--batch: no batch {name!r}; there are {', '.join(known)}")
    return BatchPlan(name, known[name])


def store_batch(path: Path, settings: GraphSettings, *, cache: Path | None = None) -> BatchPlan:
    """A batch of 64 average structures of a store, scaled by whoever plans.

    Edges, in-triplets and out-pairs come from the store's index (made if it is not there), the rest from a sample.

    Raises:
        UserError: no store, an empty one, or an index that cannot be kept.
    """
    store = Store(path)
    if not len(store):
        raise UserError(f"--store {path}: holds no structure")
    edge_counts(store, settings, cache=cache)
    totals = summed_up(store, settings, cache=cache)
    mean = {column: total / len(store) for column, (_, total) in totals.items()}
    picked = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(int))
    structures = [store[int(i)].structure() for i in picked]
    sample = BatchCounts.of(assemble(structures, [0] * len(structures), [("store", settings)]))
    average = {
        **mean,
        # the index counts the middle bond itself, too
        "in_triplets": max(mean["in_triplets"] - mean["qint"], 0.0),
        "out_pairs": max(mean["out_pairs"] - mean["qint"], 0.0),
        "atoms": sample.atoms / sample.structures,
        "pairs": sample.pairs * mean["a2a"] / max(sample.a2a, 1),
    }
    return BatchPlan(
        str(path), BatchCounts(structures=64, **{name: math.ceil(64 * value) for name, value in average.items()})
    )


def with_edges(batch: BatchPlan, edges: int | None) -> BatchPlan:
    """The same proportions with so many main edges; None leaves them.

    Raises:
        UserError: fewer than one edge, or proportions without edges.
    """
    if edges is None:
        return batch
    if edges < 1:
        raise UserError(f"--edges must be at least 1, got {edges}")
    if not batch.counts.main:
        raise UserError(f"--edges: the structures of {batch.name} have no edges to scale")
    return BatchPlan(batch.name, scaled(batch.counts, edges))


def per_atom(name: str) -> dict[str, float]:
    """Every count of a named batch, per atom."""
    counts = named_batch(name).counts
    return {key: value / counts.atoms for key, value in asdict(counts).items()}


def head_rows(counts: BatchCounts, tasks: int, forces: Forces) -> list[HeadRows]:
    """The heads of so many tasks, as if every row were the first one's: a structure belongs to one task."""
    heads = []
    for number in range(tasks):
        heads.append(HeadRows(f"task{number}.energy", "atoms", 0 if number else counts.atoms))
        if forces == "direct":
            heads.append(HeadRows(f"task{number}.forces", "edges", 0 if number else counts.main))
    return heads
