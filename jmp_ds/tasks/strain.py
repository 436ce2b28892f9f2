"""Stress as a derivative: positions, cells and the shifts of periodic edges under a strain that is zero."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.graph import EdgeSet

#: Rows and columns of a symmetric 3 × 3 tensor in ASE's order of Voigt: xx, yy, zz, yz, xz, xy.
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def strained(batch: Batch, pos: Tensor, strain: Tensor) -> tuple[Batch, Tensor]:
    """Batch and positions under x → x + x·strain.

    Args:
        batch: its shifts of edges are changed; its own positions are not used.
        pos: positions [N, 3], Å.
        strain: [B, 3, 3], zero and differentiable, in the dtype of `pos`.

    Returns:
        The batch with strained shifts, and strained positions.
    """
    of_atom = strain.index_select(0, batch.structure)
    with torch.autocast(pos.device.type, enabled=False):
        graph = replace(
            batch.graph,
            main=_strained_edges(batch.graph.main, of_atom),
            a2a=_strained_edges(batch.graph.a2a, of_atom),
            a2ee2a=_strained_edges(batch.graph.a2ee2a, of_atom),
            qint=_strained_edges(batch.graph.qint, of_atom),
        )
        return replace(batch, graph=graph), _moved(pos, of_atom)


def stress_of(slope: Tensor, cell: Tensor) -> Tensor:
    """Derivative of the energy by strain [B, 3, 3], over the cell's volume: [B, 6], in ASE's sign and order.

    Structures without a volume get finite, meaningless numbers; they can carry no stress.

    Args:
        slope: in units of an energy.
        cell: [B, 3, 3], Å.
    """
    volume = torch.linalg.det(cell.double()).abs()
    volume = torch.where(volume > 0.0, volume, 1.0).to(slope.dtype)
    symmetric = (slope + slope.transpose(1, 2)) / (2.0 * volume[:, None, None])
    return torch.stack([symmetric[:, i, j] for i, j in VOIGT], dim=1)


def _strained_edges(edges: EdgeSet, of_atom: Tensor) -> EdgeSet:
    return replace(edges, shift=_moved(edges.shift.to(of_atom.dtype), of_atom.index_select(0, edges.target)))


def _moved(x: Tensor, strain: Tensor) -> Tensor:
    """Rows [R, 3] under their own strain [R, 3, 3]."""
    return x + (x.unsqueeze(-1) * strain).sum(dim=1)
