"""How many structures and edges per second data workers bring, against what a training step takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jmp_ds.bench.batches import CUTOFFS
from jmp_ds.bench.population import Population
from jmp_ds.data.loading import Loading, TrainLoader
from jmp_ds.data.packing import EdgeBudget
from jmp_ds.data.record import make_record
from jmp_ds.data.sources import Source, open_source
from jmp_ds.data.store import Store
from jmp_ds.data.writer import StoreWriter
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import published


def write_sources(folder: Path, drawn_from: Population) -> list[Source]:
    """A store per kind with the structures of the population, and energies and forces; opened, edges counted."""
    rng = np.random.default_rng(0)
    names = list(CUTOFFS)
    sources = []
    for number in sorted(set(drawn_from.task_of)):
        own = [s for s, t in zip(drawn_from.structures, drawn_from.task_of, strict=True) if t == number]
        path = folder / names[number]
        with StoreWriter(path, {"origin": "made up for measurements"}) as writer:
            writer.append(
                make_record(
                    pos=s.pos,
                    atomic_numbers=s.atomic_numbers,
                    cell=s.cell if s.pbc.any() else None,
                    pbc=s.pbc,
                    tags=s.ocp_tags,
                    id=str(i),
                    labels={"energy": 0.0, "forces": rng.normal(size=(s.natoms, 3))},
                )
                for i, s in enumerate(own)
            )
        graph = published(CUTOFFS[names[number]])
        sources.append(open_source(names[number], graph, Store(path), ["energy", "forces"]))
    return sources


def feed(sources: Sequence[Source], workers: int, budget: int, seconds: float) -> dict[str, Any]:
    """Batches for so long, from so many workers, asked for as fast as they come; the first of each worker does not count.

    Returns:
        workers, batches, structures and edges per second.
    """
    tasks = [(name, published(cutoff)) for name, cutoff in CUTOFFS.items()]
    loader = TrainLoader(
        sources, tasks, EdgeBudget(budget), seed=0, epochs=10**6, temperature=2.0, loading=Loading(workers=workers)
    )
    steps = iter(loader)
    for _ in range(max(2, 3 * workers)):
        next(steps)
    batches = structures = edges = 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        batch = next(steps).batches[0]
        assert isinstance(batch, Batch)  # graphs are built by the workers here
        batches, structures = batches + 1, structures + batch.num_structures
        edges += batch.graph.main.num_edges
    return {
        "workers": workers,
        "batches": batches,
        "structures_per_s": structures / passed,
        "edges_per_s": edges / passed,
    }
