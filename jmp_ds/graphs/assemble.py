"""Structures to a batch: edges per structure, put side by side, with labels and the rows of every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jmp_ds.graphs.batch import Batch, Labels, TaskRows
from jmp_ds.graphs.device_graph import Built, device_graph
from jmp_ds.graphs.graph import Graph, collate_graph
from jmp_ds.graphs.neighbors import EdgeDropout, build_edges
from jmp_ds.graphs.settings import GraphSettings

#: Labels with one row per atom; all others have one row per structure.
PER_ATOM = frozenset({"forces"})


@dataclass(frozen=True)
class Structure:
    """One structure without labels.

    Attributes:
        pos: float64 [n, 3] in Å.
        atomic_numbers: int64 [n].
        cell: float64 [3, 3], rows in Å; zeros where there is none.
        pbc: bool [3].
        tags: int64 [n], OCP's 0/1/2.
        fixed: bool [n].
        id: leads back to the source.
    """

    pos: NDArray[np.float64]
    atomic_numbers: NDArray[np.int64]
    cell: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(3, dtype=bool))
    tags: NDArray[np.int64] | None = None
    fixed: NDArray[np.bool_] | None = None
    id: str = ""

    @property
    def natoms(self) -> int:
        """n."""
        return len(self.pos)

    @property
    def ocp_tags(self) -> NDArray[np.int64]:
        """Tags, 2 for every atom where the source defines none."""
        return np.full(self.natoms, 2) if self.tags is None else np.asarray(self.tags, dtype=np.int64)


def assemble(
    structures: Sequence[Structure],
    task_of: Sequence[int],
    tasks: Sequence[tuple[str, GraphSettings]],
    labels: Sequence[Mapping[str, NDArray[np.float64] | float]] | None = None,
    dropout: Sequence[EdgeDropout | None] | None = None,
    build_on: torch.device | str | None = None,
) -> Batch:
    """A batch of structures (none at all is allowed).

    Args:
        structures: any number of them.
        task_of: per structure, its task's number.
        tasks: name and graph settings of every task of the model, in the model's order.
        labels: per structure, labels by name in their units; what is missing is left out.
        dropout: per structure, which edges to drop; one probability for the whole batch.
        build_on: device on which the graph is built and the batch is then; None builds on the host, as data workers do.
    """
    settings = [tasks[t][1] for t in task_of]
    names = [name for name, _ in tasks]
    dropout = dropout or [None] * len(structures)
    if build_on is not None:
        built = _built_on(torch.device(build_on), structures, settings, dropout)
        batch = batch_of(
            structures, task_of, names, built.graph, labels, _probability(dropout), torch.from_numpy(built.first_edge)
        )
        return batch.to(build_on)
    edges = [
        build_edges(s.pos, s.cell, s.pbc, s.ocp_tags, chosen, dropout=d)
        for s, chosen, d in zip(structures, settings, dropout, strict=True)
    ]
    natoms = [s.natoms for s in structures]
    graph = collate_graph(edges, natoms, [s.cell for s in structures], settings)
    return batch_of(structures, task_of, names, graph, labels, _probability(dropout))


def _built_on(
    device: torch.device,
    structures: Sequence[Structure],
    settings: Sequence[GraphSettings],
    dropout: Sequence[EdgeDropout | None],
) -> Built:
    return device_graph(
        _stacked([s.pos for s in structures], (0, 3), np.float64).to(device, non_blocking=True),
        [s.natoms for s in structures],
        np.array([s.cell for s in structures], dtype=np.float64).reshape(-1, 3, 3),
        np.array([s.pbc for s in structures], dtype=bool).reshape(-1, 3),
        _stacked([s.ocp_tags for s in structures], (0,), np.int64).to(device, non_blocking=True),
        settings,
        dropout,
    )


def batch_of(
    structures: Sequence[Structure],
    task_of: Sequence[int],
    task_names: Sequence[str],
    graph: Graph,
    labels: Sequence[Mapping[str, NDArray[np.float64] | float]] | None = None,
    edge_dropout: float = 0.0,
    first_edge: Tensor | None = None,
) -> Batch:
    """A batch whose graph is already there (made by `collate_graph` from given edges, say).

    All but the graph is on the CPU. Where the graph is on another device, `first_edge`, int64 [B + 1] on the CPU, must say
    where the main edges of every structure begin.
    """
    natoms = torch.tensor([s.natoms for s in structures], dtype=torch.int64)
    structure = torch.repeat_interleave(torch.arange(len(structures)), natoms)
    task = torch.tensor(list(task_of), dtype=torch.int64)
    if first_edge is None:
        first_edge = graph.main.by_target.first[torch.cat([natoms.new_zeros(1), torch.cumsum(natoms, 0)])]
    return Batch(
        pos=_stacked([s.pos for s in structures], (0, 3), np.float64),
        cell=_stacked([np.asarray(s.cell)[None] for s in structures], (0, 3, 3), np.float64),
        pbc=_stacked([np.asarray(s.pbc)[None] for s in structures], (0, 3), np.bool_),
        atomic_numbers=_stacked([s.atomic_numbers for s in structures], (0,), np.int64),
        tags=_stacked([s.ocp_tags for s in structures], (0,), np.int64),
        fixed=_stacked(
            [np.zeros(s.natoms, dtype=bool) if s.fixed is None else s.fixed for s in structures], (0,), np.bool_
        ),
        natoms=natoms,
        structure=structure,
        graph=graph,
        task_names=tuple(task_names),
        task=task,
        rows={name: _rows(k, task, structure, graph, first_edge) for k, name in enumerate(task_names)},
        labels=_labels(labels or [{}] * len(structures), natoms),
        ids=tuple(s.id for s in structures),
        edge_dropout=edge_dropout,
    )


def _probability(dropout: Sequence[EdgeDropout | None]) -> float:
    probabilities = {d.probability if d else 0.0 for d in dropout}
    if len(probabilities) > 1:
        raise ValueError(f"one batch, one edge dropout: got {sorted(probabilities)}")
    return probabilities.pop() if probabilities else 0.0


def _stacked(parts: Sequence[NDArray], empty: tuple[int, ...], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(empty, dtype=dtype), *(p.astype(dtype) for p in parts)]))


def _rows(number: int, task: Tensor, structure: Tensor, graph: Graph, first_edge: Tensor) -> TaskRows:
    """Rows of one task, and where they stand among each other."""
    own = task == number
    structures = own.nonzero()[:, 0]
    atoms = own[structure].nonzero()[:, 0]
    edges = torch.repeat_interleave(own, torch.diff(first_edge)).nonzero()[:, 0]
    place = torch.cumsum(own, 0) - 1
    place_of_atom = torch.cumsum(own[structure], 0) - 1
    target = graph.main.target
    return TaskRows(
        structures=structures,
        atoms=atoms,
        edges=edges,
        atom_structure=place[structure[atoms]],
        edge_atom=place_of_atom.to(target.device)[target[edges.to(target.device)]],
    )


def _labels(labels: Sequence[Mapping[str, NDArray[np.float64] | float]], natoms: Tensor) -> dict[str, Labels]:
    """Every label that any structure carries, with zeros where one does not."""
    names = sorted({name for each in labels for name in each})
    return {name: _label(name, labels, natoms) for name in names}


def _label(name: str, labels: Sequence[Mapping[str, NDArray[np.float64] | float]], natoms: Tensor) -> Labels:
    present = [name in each for each in labels]
    known = np.asarray(next(each[name] for each in labels if name in each), dtype=np.float64)
    if name in PER_ATOM:
        shapes = [(int(n), *known.shape[1:]) for n in natoms]
    else:
        shapes = [(1, *known.shape)] * len(labels)
    parts = [
        np.asarray(each[name], dtype=np.float64).reshape(shape) if name in each else np.zeros(shape)
        for each, shape in zip(labels, shapes, strict=True)
    ]
    return Labels(values=torch.from_numpy(np.concatenate(parts)), present=torch.tensor(present))
