"""The five interactions as published: gather, pad, two batched products, dense layers on every edge (section 5.1-5.6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_ds.bench.enumerated.bases import BilinearBasis, EnumeratedBases
from jmp_ds.bench.enumerated.layers import SQRT_2, Weights, padded
from jmp_ds.bench.enumerated.lists import EnumeratedLists, Triplets
from jmp_ds.graphs.graph import Graph


@dataclass(frozen=True)
class Inputs:
    """What every interaction sees of a batch."""

    graph: Graph
    lists: EnumeratedLists
    bases: EnumeratedBases


def edge_to_edge(w: Weights, inputs: Inputs, m: Tensor) -> Tensor:
    """Triplets over main edges (section 5.2): [E, edge] to the same."""
    x = _down(w, w.dense(m, "dense_ba"), inputs.bases.rad["mlp_rbf_tint"])
    return _on_edges(w, inputs, x, inputs.lists.e2e, inputs.bases.e2e)


def atom_to_edge(w: Weights, inputs: Inputs, h: Tensor) -> Tensor:
    """Atoms to main edges by the a2ee2a graph (section 5.4): [N, atom] to [E, edge]."""
    of_source = w.dense(h, "dense_ba").index_select(0, inputs.graph.a2ee2a.source)
    x = _down(w, of_source, inputs.bases.rad["mlp_rbf_aeint"])
    return _on_edges(w, inputs, x, inputs.lists.a2e, inputs.bases.a2e)


def edge_to_atom(w: Weights, inputs: Inputs, m: Tensor) -> Tensor:
    """Main edges to atoms by the a2ee2a graph (section 5.5): [E, edge] to [N, atom]."""
    lists, bases = inputs.lists, inputs.bases
    x = _down(w, w.dense(m, "dense_ba"), inputs.bases.rad["mlp_rbf_eaint"])
    messages = padded(x.index_select(0, lists.e2a.into), lists.e2a.padding)
    per_edge = torch.bmm(bases.e2a_angular, messages)
    of_atoms = padded(per_edge, lists.a2ee2a).flatten(1, 2)
    y = w.linear(torch.bmm(bases.e2a_radial, of_atoms).flatten(1), "mlp_cbf.bilinear")
    return w.dense(w.scaled(y, "scale_cbf_sum"), "up_projection_ca")


def atom_to_atom(w: Weights, inputs: Inputs, h: Tensor) -> Tensor:
    """Atoms to atoms by the a2a graph (section 5.6): [N, atom] to the same."""
    x = w.dense(h, "down_projection").index_select(0, inputs.graph.a2a.source)
    y = w.linear(torch.bmm(inputs.bases.a2a, padded(x, inputs.lists.a2a)).flatten(1), "bilinear")
    return w.dense(w.scaled(y, "scale_rbf_sum"), "up_projection")


def quadruplet(w: Weights, inputs: Inputs, m: Tensor) -> Tensor:
    """Quadruplets through qint edges (section 5.3): [E, edge] to the same."""
    quads = inputs.lists.quadruplets
    x = _down(w, w.dense(m, "dense_db"), inputs.bases.rad["mlp_rbf_qint"]).index_select(0, quads.in_edge)
    x = w.scaled(x * w.linear(inputs.bases.circular, "mlp_cbf"), "scale_cbf")
    messages = padded(x.index_select(0, quads.into), quads.padding)
    y = w.linear(inputs.bases.quadruplets.contract(messages), "mlp_sbf.bilinear")
    return _up(w, w.scaled(y, "scale_sbf_sum"), inputs.graph.reverse)


def _down(w: Weights, x: Tensor, rad: Tensor) -> Tensor:
    """Radial gate and down-projection: [R, size] to [R, narrow]."""
    return w.dense(w.scaled(x * w.linear(rad, "mlp_rbf"), "scale_rbf"), "down_projection")


def _on_edges(w: Weights, inputs: Inputs, x: Tensor, triplets: Triplets, basis: BilinearBasis) -> Tensor:
    """Messages of input edges, summed over triplets into main edges: [R, trip_in] to [E, edge]."""
    messages = padded(x.index_select(0, triplets.into), triplets.padding)
    y = w.linear(basis.contract(messages), "mlp_cbf.bilinear")
    return _up(w, w.scaled(y, "scale_cbf_sum"), inputs.graph.reverse)


def _up(w: Weights, y: Tensor, reverse: Tensor) -> Tensor:
    """Both up-projections at full width, then the swap: [E, out] to [E, edge]."""
    there, back = w.dense(y, "up_projection_ca"), w.dense(y, "up_projection_ac")
    return (there + back.index_select(0, reverse)) * (1 / SQRT_2)
