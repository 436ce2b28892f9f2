"""Interaction and output blocks (specification sections 5.7-5.9).

Atoms' features are float32 at least; edges' features have the precision of the dense layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jmp_kernels import Operators
from jmp_kernels.activation import INV_SQRT_2
from torch import Tensor, nn

from jmp_ds.graphs.graph import Graph
from jmp_ds.models.bases import BasisTables
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.interactions import (
    AtomEdgeInteraction,
    AtomInteraction,
    EdgeAtomInteraction,
    QuadrupletInteraction,
    TripletInteraction,
)
from jmp_ds.models.layers import INV_SQRT_3, Dense, DenseThenResiduals, EdgeEmbedding, Residuals
from jmp_ds.models.scaling import ScaleFactor


class EdgesIntoAtoms(nn.Module):
    """Edges into atoms: gated sum, then dense layers (specification 5.7)."""

    def __init__(self, config: BackboneConfig, operators: Operators) -> None:
        super().__init__()
        c = config
        self.operators = operators
        self.dense_rbf = Dense(c.emb_size_rbf, c.emb_size_edge)
        self.scale_sum = ScaleFactor()
        self.layers = DenseThenResiduals(c.emb_size_edge, c.emb_size_atom, c.num_atom)

    def summed(self, graph: Graph, m: Tensor, rad: Tensor, kept: float = 1.0) -> Tensor:
        """Edges [E, edge] to atoms [N, atom]; sums are divided by `kept`, the share of edges that was not dropped."""
        dense = self.operators.dense
        x = dense.gate(m, rad, self.scale_sum(self.dense_rbf.weight))
        total = self.scale_sum.observe(m, self.operators.messages.segment_sum(x, graph.main.by_target))
        if kept != 1.0:
            total = total / kept
        out: Tensor = dense.residuals(dense.dense(total, self.layers.first), self.layers.residuals)
        return out


class AtomUpdate(EdgesIntoAtoms):
    """The same, as a part of an interaction block."""

    def forward(self, graph: Graph, m: Tensor, rad: Tensor) -> Tensor:
        """Edges [E, edge] to atoms [N, atom]."""
        return self.summed(graph, m, rad)


class InteractionBlock(nn.Module):
    """One block: all five interactions on the same (h, m), then the updates of m and h (specification 5.7)."""

    def __init__(self, config: BackboneConfig, operators: Operators) -> None:
        super().__init__()
        c, edge, atom = config, config.emb_size_edge, config.emb_size_atom
        self.operators = operators
        self.dense_ca = Dense(edge, edge)
        self.trip_interaction = TripletInteraction(c, operators)
        self.quad_interaction = QuadrupletInteraction(c, operators)
        self.atom_edge_interaction = AtomEdgeInteraction(c, operators)
        self.edge_atom_interaction = EdgeAtomInteraction(c, operators)
        self.atom_interaction = AtomInteraction(c, operators)
        self.layers_before_skip = Residuals(c.num_before_skip, edge)
        self.layers_after_skip = Residuals(c.num_after_skip, edge)
        self.atom_emb_layers = Residuals(c.num_atom_emb_layers, atom)
        self.atom_update = AtomUpdate(c, operators)
        self.concat_layer = EdgeEmbedding(atom, edge, edge, operators)
        self.residual_m = Residuals(c.num_concat, edge)

    def forward(self, graph: Graph, tables: BasisTables, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Atoms [N, atom] and edges [E, edge] to the same."""
        dense = self.operators.dense
        parts = self.trip_interaction(graph, tables, m) + self.quad_interaction(graph, tables, m)
        parts += self.atom_edge_interaction(graph, tables, h, m.dtype)
        x = dense.residuals(dense.merge(m, self.dense_ca.weight, parts), self.layers_before_skip.weights)
        of_edges = self.edge_atom_interaction(graph, tables, m, h.dtype)
        h = (h + of_edges + self.atom_interaction(graph, tables, h)) * INV_SQRT_3
        m = dense.residuals((m + x) * INV_SQRT_2, self.layers_after_skip.weights)
        update = self.atom_update(graph, m, tables.rad_update)
        h = (dense.residuals(h, self.atom_emb_layers.weights) + update) * INV_SQRT_2
        m2 = dense.residuals(self.concat_layer(h, m, graph.main), self.residual_m.weights)
        return h, (m + m2) * INV_SQRT_2


class OutputBlock(EdgesIntoAtoms):
    """Features of one depth for the heads: atoms for energies, edges for forces (specification 5.8)."""

    def __init__(self, config: BackboneConfig, operators: Operators) -> None:
        super().__init__(config, operators)
        c = config
        self.direct_forces = c.direct_forces
        self.seq_energy2 = Residuals(c.num_output_afteratom, c.emb_size_atom)
        if c.direct_forces:
            self.scale_rbf_F = ScaleFactor()
            self.seq_forces = Residuals(c.num_output_afteratom, c.emb_size_edge)
            self.dense_rbf_F = Dense(c.emb_size_rbf, c.emb_size_edge)

    def forward(
        self, graph: Graph, tables: BasisTables, h: Tensor, m: Tensor, kept: float
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Atoms [N, atom] and edges [E, edge] to features of atoms, of edges, and the weight of the latter's gate.

        The gate [edge, rbf] is used by the layer that takes all depths together (`OutMLP`); it comes with its factor,
        and is None while the factor is fitted. Without direct forces there are features of atoms only.
        """
        atoms = self.of_atoms(graph, tables, h, m, kept)
        if not self.direct_forces:
            return atoms, None, None
        edges, scale = self.of_edges(m, tables.rad_out), self.scale_rbf_F
        return atoms, edges, scale(self.dense_rbf_F.weight) if scale.observer is None else None

    def of_atoms(self, graph: Graph, tables: BasisTables, h: Tensor, m: Tensor, kept: float) -> Tensor:
        """Atoms [N, atom] and edges [E, edge] to energy features [N, atom]."""
        x = (self.summed(graph, m, tables.rad_out, kept) + h) * INV_SQRT_2
        out: Tensor = self.operators.dense.residuals(x, self.seq_energy2.weights)
        return out

    def of_edges(self, m: Tensor, rad: Tensor) -> Tensor:
        """Edges [E, edge] to force features [E, edge], before their radial gate (after it while its factor is fitted)."""
        dense, scale = self.operators.dense, self.scale_rbf_F
        out: Tensor = dense.residuals(m, self.seq_forces.weights)
        if scale.observer is None:
            return out
        return scale.observe(out, dense.gate(out, rad, scale(self.dense_rbf_F.weight)))


class OutMLP(nn.Module):
    """Features of all depths to one (specification 5.9); keys `out_mlp.*` as published."""

    def __init__(self, operators: Operators, in_features: int, units: int, layers: int) -> None:
        super().__init__()
        self.operators = operators
        self.out_mlp = DenseThenResiduals(in_features, units, layers)

    def forward(
        self, features: Sequence[Tensor], rad: Tensor | None = None, gates: Sequence[Tensor | None] = ()
    ) -> Tensor:
        """Features of all depths, several [R, C], to [R, units].

        Args:
            features: of every depth.
            rad: [R, rbf], radial basis that features are gated by; None: they are not.
            gates: [C, rbf] for every depth; None where the features of a depth come gated.
        """
        dense, first = self.operators.dense, self.out_mlp.first
        if rad is not None and all(gate is not None for gate in gates):
            x = dense.gated_concat(features, rad, cast(Sequence[Tensor], gates), first)
        else:
            if rad is not None:
                pairs = zip(features, gates, strict=True)
                features = [y if gate is None else dense.gate(y, rad, gate) for y, gate in pairs]
            x = dense.dense(torch.cat(list(features), dim=1), first)
        out: Tensor = dense.residuals(x, self.out_mlp.residuals)
        return out
