"""A batch: several structures side by side with their graph and labels, ready for the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jmp_ds.graphs.graph import Graph


@dataclass(frozen=True)
class Labels:
    """One kind of label over a batch; missing values are zero and marked as not present, never NaN.

    Attributes:
        values: float64. Per structure [B], or per atom [N, 3] (forces), or [B, 6] (stress, Voigt order).
        present: bool [B], whether the structure carries this label.
    """

    values: Tensor
    present: Tensor


@dataclass(frozen=True)
class StructureRows:
    """Where one task's structures stand in a batch (index tensors, int64; any of them may be empty).

    Attributes:
        structures: [B_t] rows of per-structure tensors.
        atoms: [N_t] rows of per-atom tensors.
        atom_structure: [N_t] for every such atom, its position within `structures`.
    """

    structures: Tensor
    atoms: Tensor
    atom_structure: Tensor


@dataclass(frozen=True)
class TaskRows(StructureRows):
    """The same with edges.

    Attributes:
        edges: [E_t] rows of the main graph's edges.
        edge_atom: [E_t] for every such edge, the position of its target within `atoms`.
    """

    edges: Tensor
    edge_atom: Tensor


@dataclass(frozen=True, kw_only=True)
class Structures:
    """B structures with N atoms in all, side by side: all of a batch but what needs its edges.

    Attributes:
        pos: [N, 3] positions in Å, float64 or float32 (the model casts to its own precision).
        cell: [B, 3, 3] cell vectors as rows in Å, zeros where not periodic; same dtype as `pos`.
        pbc: [B, 3] bool.
        atomic_numbers: [N] int64.
        tags: [N] int64, the meaning of OCP: 0 below the surface, 1 surface, 2 adsorbate or anything else.
        fixed: [N] bool, atoms held in place when the data were made.
        natoms: [B] int64.
        structure: [N] int64, the structure of every atom.
        task_names: order of the tasks; `task` counts in it.
        task: [B] int64.
        rows: one entry per task name.
        labels: by name (`energy` [B] eV, `forces` [N, 3] eV/Å, `stress` [B, 6] eV/Å³, or any scalar).
        ids: one text per structure that leads back to its source.
    """

    pos: Tensor
    cell: Tensor
    pbc: Tensor
    atomic_numbers: Tensor
    tags: Tensor
    fixed: Tensor
    natoms: Tensor
    structure: Tensor
    task_names: tuple[str, ...]
    task: Tensor
    rows: Mapping[str, StructureRows]
    labels: dict[str, Labels] = field(default_factory=dict)
    ids: tuple[str, ...] = ()

    @property
    def num_structures(self) -> int:
        """B."""
        return self.natoms.shape[0]

    @property
    def num_atoms(self) -> int:
        """N."""
        return self.pos.shape[0]


@dataclass(frozen=True, kw_only=True)
class Batch(Structures):
    """Structures with their graph, ready for the model.

    Attributes:
        rows: one entry per task name, edges included.
        graph: the four edge lists.
        edge_dropout: the fraction of edges dropped when the graph was made (0 in evaluation).
    """

    rows: Mapping[str, TaskRows]
    graph: Graph
    edge_dropout: float = 0.0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return moved(self, device)


Value = TypeVar("Value")


def moved(value: Value, device: torch.device | str) -> Value:
    """Copy of a nest of dataclasses, dicts and tensors with every tensor on the device."""
    return _moved(value, device)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in fields(value) if f.init})
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    return value
