"""A batch whose graph is still to be built: flat tensors, small enough to be sent between processes.

Both builders start from it. Where graphs are built on the host, data workers finish it; where they are built on the
device, it travels as it is, and the trainer finishes it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from jmp_ds.graphs.batch import Batch, Structures, TaskRows, moved
from jmp_ds.graphs.device_dropout import DrawnDropout, numbers_to_draw
from jmp_ds.graphs.device_graph import device_graph
from jmp_ds.graphs.device_plan import plan_batch
from jmp_ds.graphs.device_search import positions, taken
from jmp_ds.graphs.graph import Graph, collate_graph
from jmp_ds.graphs.neighbors import EdgeDropout, build_edges
from jmp_ds.graphs.radius import IntArray
from jmp_ds.graphs.settings import GraphSettings

Kind = TypeVar("Kind", bound=Structures)

#: Where graphs are built.
BuiltOn = Literal["host", "device"]


@dataclass(frozen=True)
class BatchDropout:
    """`EdgeDropout` of every structure of a batch.

    Attributes:
        probability, seed, epoch: see there; the same for all structures.
        samples: int64 [B], see there.
        bits: uint8, the numbers that were drawn beforehand for one structure after the other (`device_dropout`).
        drawn: int64 [B], how many bytes of `bits` are every structure's; None where nothing was drawn.
    """

    probability: float
    seed: int
    epoch: int
    samples: Tensor
    bits: Tensor | None = None
    drawn: Tensor | None = None

    def of_structures(self) -> list[EdgeDropout]:
        """One value per structure."""
        each = self._each()
        if self.bits is None or self.drawn is None:
            return each
        parts = np.split(self.bits.numpy(), np.cumsum(self.drawn.numpy()))
        return [DrawnDropout(**vars(one), bits=bits) for one, bits in zip(each, parts, strict=False)]

    def with_numbers(self, counts: IntArray) -> BatchDropout:
        """The same with so many numbers of every structure drawn, int64 [B]."""
        each = [np.packbits(one.kept(count)) for one, count in zip(self._each(), counts.tolist(), strict=True)]
        bits = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.uint8), *each]))
        return replace(self, bits=bits, drawn=torch.tensor([len(own) for own in each], dtype=torch.int64))

    def _each(self) -> list[EdgeDropout]:
        return [
            EdgeDropout(probability=self.probability, seed=self.seed, epoch=self.epoch, sample=sample)
            for sample in self.samples.tolist()
        ]


@dataclass(frozen=True, kw_only=True)
class Unbuilt(Structures):
    """Structures on the host, and how their graph is to be built.

    Attributes:
        settings: per task.
        dropout: which edges to drop, or None.
    """

    settings: tuple[GraphSettings, ...]
    dropout: BatchDropout | None = None

    def prepared(self) -> Unbuilt:
        """The same with all done that can be done on the host beforehand: the numbers of edge dropout are drawn.

        Raises:
            UserError: a cell that has no neighbour list.
        """
        if self.dropout is None:
            return self
        plan = plan_batch(self.natoms.tolist(), self.cell.numpy(), self.pbc.numpy(), self._settings_of_structures())
        return replace(self, dropout=self.dropout.with_numbers(numbers_to_draw(plan)))

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, its graph built there. Waits for the device once (see `device_graph`).

        Raises:
            UserError: a structure that has no neighbour list.
        """
        there = moved(_with(Structures, self), device)
        built = device_graph(
            there.pos,
            self.natoms.tolist(),
            self.cell.numpy(),
            self.pbc.numpy(),
            there.tags,
            self._settings_of_structures(),
            self.dropout.of_structures() if self.dropout is not None else None,
        )
        return with_graph(there, built.graph, edges_of_tasks(self, built.first_edge), self._probability)

    def on_host(self) -> Batch:
        """The batch on the host, its graph built there.

        Raises:
            UserError: a structure that has no neighbour list.
        """
        natoms, settings = self.natoms.tolist(), self._settings_of_structures()
        pos, tags = (np.split(x.numpy(), np.cumsum(natoms)[:-1]) for x in (self.pos, self.tags))
        cells, axes = self.cell.numpy(), self.pbc.numpy()
        dropout = self.dropout.of_structures() if self.dropout is not None else [None] * len(natoms)
        edges = [
            build_edges(pos[k], cells[k], axes[k], tags[k], settings[k], dropout=dropout[k]) for k in range(len(natoms))
        ]
        graph = collate_graph(edges, natoms, list(cells), settings)
        return with_graph(self, graph, edges_of_tasks(self, first_edges(self, graph)), self._probability)

    def _settings_of_structures(self) -> list[GraphSettings]:
        return [self.settings[task] for task in self.task.tolist()]

    @property
    def _probability(self) -> float:
        return self.dropout.probability if self.dropout is not None else 0.0


def first_edges(structures: Structures, graph: Graph) -> IntArray:
    """int64 [B + 1], where the main edges of every structure begin; all of it on the host."""
    ends = torch.cumsum(structures.natoms, 0)
    found: IntArray = graph.main.by_target.first[torch.cat([ends.new_zeros(1), ends])].numpy()
    return found


def edges_of_tasks(structures: Structures, first_edge: IntArray) -> list[int]:
    """Main edges of every task.

    Args:
        structures: on the host.
        first_edge: int64 [B + 1], where the main edges of every structure begin.
    """
    edges = np.zeros(len(structures.task_names), dtype=np.int64)
    np.add.at(edges, structures.task.numpy(), np.diff(first_edge))
    return [int(n) for n in edges]


def with_graph(structures: Structures, graph: Graph, task_edges: Sequence[int], edge_dropout: float = 0.0) -> Batch:
    """The batch of structures and their graph, both on the same device; without waiting for it.

    Args:
        structures: of the batch.
        graph: theirs.
        task_edges: main edges of every task.
        edge_dropout: share of edges dropped from the graph.
    """
    target = graph.main.target
    rows = {}
    for number, (name, edges) in enumerate(zip(structures.task_names, task_edges, strict=True)):
        own = taken(structures.task == number, structures.structure)
        chosen = positions(taken(own, target), edges)
        rows[name] = TaskRows(
            **vars(structures.rows[name]),
            edges=chosen,
            edge_atom=taken(torch.cumsum(own, 0) - 1, taken(target, chosen)),
        )
    return _with(Batch, structures, rows=rows, graph=graph, edge_dropout=edge_dropout)


def _with(kind: type[Kind], structures: Structures, **more: Any) -> Kind:
    """The structures as another class, with what that has besides or otherwise."""
    return kind(**{f.name: getattr(structures, f.name) for f in fields(Structures)} | more)
