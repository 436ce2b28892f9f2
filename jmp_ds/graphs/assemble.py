"""Structures to a batch: put side by side with labels and the rows of every task, then joined by edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jmp_ds.graphs.batch import Batch, Labels, StructureRows, Structures
from jmp_ds.graphs.graph import Graph
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.graphs.unbuilt import BatchDropout, Unbuilt, edges_of_tasks, first_edges, with_graph

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
    dropout: BatchDropout | None = None,
    build_on: torch.device | str | None = None,
) -> Batch:
    """A batch of structures (none at all is allowed).

    Args:
        structures: any number of them.
        task_of: per structure, its task's number.
        tasks: name and graph settings of every task of the model, in the model's order.
        labels: per structure, labels by name in their units; what is missing is left out.
        dropout: which edges to drop, or None.
        build_on: device on which the graph is built and the batch is then; None builds on the host.

    Raises:
        UserError: a structure that has no neighbour list.
    """
    batch = gather(structures, task_of, tasks, labels, dropout)
    return batch.on_host() if build_on is None else batch.to(build_on)


def gather(
    structures: Sequence[Structure],
    task_of: Sequence[int],
    tasks: Sequence[tuple[str, GraphSettings]],
    labels: Sequence[Mapping[str, NDArray[np.float64] | float]] | None = None,
    dropout: BatchDropout | None = None,
) -> Unbuilt:
    """The same before its graph is built. Args: see `assemble`."""
    return Unbuilt(
        **_side_by_side(structures, task_of, [name for name, _ in tasks], labels),
        settings=tuple(settings for _, settings in tasks),
        dropout=dropout,
    )


def batch_of(
    structures: Sequence[Structure],
    task_of: Sequence[int],
    task_names: Sequence[str],
    graph: Graph,
    labels: Sequence[Mapping[str, NDArray[np.float64] | float]] | None = None,
) -> Batch:
    """A batch on the host whose graph is already there (made by `collate_graph` from given edges, say)."""
    own = Structures(**_side_by_side(structures, task_of, task_names, labels))
    return with_graph(own, graph, edges_of_tasks(own, first_edges(own, graph)))


def _side_by_side(
    structures: Sequence[Structure],
    task_of: Sequence[int],
    task_names: Sequence[str],
    labels: Sequence[Mapping[str, NDArray[np.float64] | float]] | None,
) -> dict[str, Any]:
    """Every field of `Structures`."""
    natoms = torch.tensor([s.natoms for s in structures], dtype=torch.int64)
    structure = torch.repeat_interleave(torch.arange(len(structures)), natoms)
    task = torch.tensor(list(task_of), dtype=torch.int64)
    return {
        "pos": _stacked([s.pos for s in structures], (0, 3), np.float64),
        "cell": _stacked([np.asarray(s.cell)[None] for s in structures], (0, 3, 3), np.float64),
        "pbc": _stacked([np.asarray(s.pbc)[None] for s in structures], (0, 3), np.bool_),
        "atomic_numbers": _stacked([s.atomic_numbers for s in structures], (0,), np.int64),
        "tags": _stacked([s.ocp_tags for s in structures], (0,), np.int64),
        "fixed": _stacked(
            [np.zeros(s.natoms, dtype=bool) if s.fixed is None else s.fixed for s in structures], (0,), np.bool_
        ),
        "natoms": natoms,
        "structure": structure,
        "task_names": tuple(task_names),
        "task": task,
        "rows": {name: _rows(task == number, structure) for number, name in enumerate(task_names)},
        "labels": _labels(labels or [{}] * len(structures), natoms),
        "ids": tuple(s.id for s in structures),
    }


def _stacked(parts: Sequence[NDArray], empty: tuple[int, ...], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(empty, dtype=dtype), *(p.astype(dtype) for p in parts)]))


def _rows(own: Tensor, structure: Tensor) -> StructureRows:
    """Rows of one task. Args: own: bool [B], which structures are its; structure: int64 [N], that of every atom."""
    atoms = own[structure].nonzero()[:, 0]
    return StructureRows(
        structures=own.nonzero()[:, 0], atoms=atoms, atom_structure=(torch.cumsum(own, 0) - 1)[structure[atoms]]
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
