"""The recorded systems: inputs, edges as given in the file, and our names for published tensors."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jmp_ds.graphs.assemble import Structure, batch_of
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.graph import collate_graph
from jmp_ds.graphs.neighbors import EdgeLists
from jmp_ds.graphs.settings import published
from jmp_ds.models.config import BackboneConfig
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Task

GOLDEN = Path(__file__).parent / "golden"
INDEX: dict[str, Any] = json.loads((GOLDEN / "INDEX.json").read_text())
SYSTEMS: list[str] = list(INDEX["systems"])
TINY = BackboneConfig(**INDEX["tiny_config"])


@lru_cache
def recorded(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file."""
    with np.load(GOLDEN / f"{name}.npz") as z:
        return {k: z[k] for k in z.files}


def structures_of(name: str) -> list[Structure]:
    """The structures of a recorded system."""
    z = recorded(name)
    pbc = INDEX["systems"][name]["pbc"]
    out = []
    for k in range(int(z["batch"].max()) + 1):
        own = z["batch"] == k
        cell = z["cell"][k]
        periodic = np.full(3, pbc[k])
        numbers, tags = z["Z"][own].astype(np.int64), z["tags"][own].astype(np.int64)
        out.append(Structure(z["pos"][own].astype(np.float64), numbers, cell, periodic, tags))
    return out


def given_edges(name: str) -> tuple[list[EdgeLists], dict[str, np.ndarray]]:
    """The edges of the file per structure, sorted by target, and the order that was taken (rows of the file)."""
    z = recorded(name)
    keys = {"main": "edges_main_sym", "a2a": "edges_a2a", "a2ee2a": "edges_a2ee2a", "qint": "edges_qint"}
    order = {k: np.argsort(z[key][:, 1], kind="stable") for k, key in keys.items()}
    first = np.searchsorted(z["batch"], np.arange(int(z["batch"].max()) + 2))
    lists = []
    for k in range(len(first) - 1):
        parts = {}
        for graph, key in keys.items():
            rows = z[key][order[graph]].astype(np.int64)
            rows = rows[z["batch"][rows[:, 1]] == k]
            parts[graph] = rows - np.array([first[k], first[k], 0, 0, 0])
        lists.append(EdgeLists(**parts))
    return lists, order


def given_batch(name: str, tasks: tuple[Task, ...], task: int = 0) -> tuple[Batch, dict[str, np.ndarray]]:
    """The system as a batch with the file's edges, every structure of one task."""
    structures = structures_of(name)
    lists, order = given_edges(name)
    settings = [tasks[task].graph] * len(structures)
    graph = collate_graph(lists, [s.natoms for s in structures], [s.cell for s in structures], settings)
    return batch_of(structures, [task] * len(structures), [t.name for t in tasks], graph), order


def published_tasks(name: str) -> tuple[Task, ...]:
    """The four published tasks, all on the graphs of one recorded system."""
    where = INDEX["systems"][name]
    graph = published(float(where["cutoff"]), int(where["max_neighbors"]))
    return tuple(Task(name=t, graph=graph, energy=EnergyTarget(), forces=ForcesTarget()) for t in INDEX["tasks"])


def finetune_task(name: str) -> Task:
    """The gradient-force task of the fine-tuning records."""
    where = INDEX["finetune"][name]
    graph = published(float(where["cutoff"]), int(where["max_neighbors"]))
    return Task(name="ft", graph=graph, energy=EnergyTarget(bias=False), forces=ForcesTarget(kind="gradient"))


def our_name(key: str) -> str | None:
    """Our name of a published pre-training or fine-tuning parameter; None for aliases and constants."""
    if ".seq_energy_pre." in key or key.endswith((".rbf.offset", ".rbf.temps", "sum_value")):
        return None
    if key in ("embedding.atom_embedding.weight", "embedding.weight"):
        return "backbone.embedding.weight"
    if key.startswith("output.out_"):
        kind, task, rest = key.removeprefix("output.out_").split(".", 2)
        return f"heads.{INDEX['tasks'][int(task)]}.{kind}.{rest}"
    if key.startswith("out_energy."):
        return f"heads.ft.energy.{key.removeprefix('out_energy.')}"
    return key


def our_state(name: str) -> dict[str, Tensor]:
    """A recorded state under our names."""
    own = {our_name(k): torch.as_tensor(v) for k, v in recorded(name).items()}
    return {k: v for k, v in own.items() if k is not None}


def relative(got: Any, reference: Any) -> float:
    """Largest deviation relative to the largest magnitude."""
    a = np.asarray(got.detach() if isinstance(got, Tensor) else got, dtype=np.float64)
    b = np.asarray(reference, dtype=np.float64)
    return float(np.abs(a - b).max() / (np.abs(b).max() + 1e-300))
