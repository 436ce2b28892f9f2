"""A task's structures: which records of which store, what they cost, and which labels are wanted of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.costs import CostModel, cost_table
from jmp_ds.data.index import edge_counts, summed_up
from jmp_ds.data.selection import Selection
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.graphs.settings import GraphSettings


@dataclass(frozen=True, eq=False)
class Source:
    """Structures of one task (a task may have several sources).

    Attributes:
        task: the task's name.
        graph: the task's graph settings, under which `edges` were counted.
        store: where the records are.
        indices: which of them.
        edges: [n], edges of the main graph of every record of the store.
        edges_in_store: the largest and the sum of them.
        work: [n], what every record costs; batches are cut and shared out by it. The same as `edges` without a cost model.
        labels: labels that are handed on; others are left out, and so is what a record does not carry.
    """

    task: str
    graph: GraphSettings
    store: Store
    indices: Selection
    edges: NDArray[Any]
    edges_in_store: tuple[int, int]
    work: NDArray[Any]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def costs(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """Costs of structures given by their place in `indices`."""
        return np.asarray(self.work[self.indices[index]])


def open_source(
    task: str,
    graph: GraphSettings,
    store: Store,
    labels: Sequence[str],
    *,
    indices: Selection | NDArray[np.int64] | None = None,
    cost: CostModel | None = None,
    cache: Path | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Source:
    """A source, its edges counted if they have not been yet (`edge_counts`).

    Args:
        task, graph: the task's name and graph settings.
        store: where the records are.
        labels: those that are wanted.
        indices: which records; all by default.
        cost: what a structure costs; its edges by default.
        cache: folder of counts and costs; inside the store by default.
        workers: processes besides this one that count.
        progress: show a bar.

    Raises:
        UserError: a label that no record carries, an index out of range, no structures.
    """
    for label in labels:
        if not store.summary.labels.get(label):
            known = ", ".join(sorted(store.summary.labels)) or "none"
            raise UserError(f"task {task}: no structure in {store.path} carries the label {label!r}; it has: {known}")
    if indices is None:
        indices = Selection.every(len(store))
    elif not isinstance(indices, Selection):
        indices = Selection.of(np.asarray(indices, dtype=np.int64))
    if len(indices) == 0:
        raise UserError(f"task {task}: no structures are left of {store.path}")
    least, most = indices.bounds
    if least < 0 or most >= len(store):
        raise UserError(f"task {task}: index {most} in a store of {len(store)} structures ({store.path})")
    counts = edge_counts(store, graph, cache=cache, workers=workers, progress=progress)
    work = counts[:, 0] if cost is None else cost_table(store, graph, cost, cache=cache, progress=progress)
    return Source(
        task=task,
        graph=graph,
        store=store,
        indices=indices,
        edges=counts[:, 0],
        edges_in_store=summed_up(store, graph, cache=cache)["main"],
        work=work,
        labels=tuple(labels),
    )


def sample_id(task: str, fingerprint: str, index: int, repetition: int) -> int:
    """Number (63 bits) that names one drawing of one structure within an epoch.

    Edge dropout draws its bits from (seed, epoch, this). The repetition is part of it, so that a structure drawn twice
    in an epoch loses other edges each time; other sets, ranks and batches are not, so that they change nothing.
    """
    name = f"{task}/{fingerprint}/{index}/{repetition}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def check_sources(sources: Sequence[Source], tasks: Sequence[tuple[str, GraphSettings]]) -> None:
    """Every source belongs to a task and was counted under that task's settings.

    Raises:
        UserError: one does not, or there is none.
    """
    known = dict(tasks)
    if not sources:
        raise UserError("data: no task has any structures")
    for source in sources:
        if source.task not in known:
            raise UserError(
                f"data: there are structures for {source.task!r}, but the model's tasks are {sorted(known)}"
            )
        if source.graph.digest() != known[source.task].digest():
            raise UserError(f"data: edges for {source.task!r} were counted under other graph settings than the task's")
