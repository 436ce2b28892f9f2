"""Interaction and output blocks (specification sections 5.7-5.9)."""

from __future__ import annotations

from jmp_kernels import segment_sum
from torch import Tensor, nn
from torch.nn import functional as F

from jmp_ds.graphs.graph import Graph
from jmp_ds.models.bases import BasisTables
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.interactions import (
    AtomEdgeInteraction,
    AtomInteraction,
    EdgeAtomInteraction,
    QuadrupletInteraction,
    TripletInteraction,
    gated,
)
from jmp_ds.models.layers import INV_SQRT_2, INV_SQRT_3, Dense, EdgeEmbedding, residual_layers
from jmp_ds.models.scaling import ScaleFactor


class AtomUpdate(nn.Module):
    """Edges into atoms: gated sum, then dense layers (specification 5.7)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        c = config
        self.dense_rbf = Dense(c.emb_size_rbf, c.emb_size_edge, activation=False)
        self.scale_sum = ScaleFactor()
        dense = Dense(c.emb_size_edge, c.emb_size_atom)
        self.layers = nn.Sequential(dense, *residual_layers(c.num_atom, c.emb_size_atom))

    def forward(self, graph: Graph, m: Tensor, rad: Tensor, kept: float = 1.0) -> Tensor:
        """Edges [E, edge] to atoms [N, atom]; sums are divided by `kept`, the share of edges that was not dropped."""
        x = m * F.linear(rad.to(self.dense_rbf.weight.dtype), self.scale_sum(self.dense_rbf.weight))
        total = self.scale_sum.observe(m, segment_sum(x.to(rad.dtype), graph.main.by_target))
        if kept != 1.0:
            total = total / kept
        out: Tensor = self.layers(total.to(m.dtype))
        return out


class InteractionBlock(nn.Module):
    """One block: all five interactions on the same (h, m), then the updates of m and h (specification 5.7)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        c, edge, atom = config, config.emb_size_edge, config.emb_size_atom
        self.dense_ca = Dense(edge, edge)
        self.trip_interaction = TripletInteraction(c)
        self.quad_interaction = QuadrupletInteraction(c)
        self.atom_edge_interaction = AtomEdgeInteraction(c)
        self.edge_atom_interaction = EdgeAtomInteraction(c)
        self.atom_interaction = AtomInteraction(c)
        self.layers_before_skip = residual_layers(c.num_before_skip, edge)
        self.layers_after_skip = residual_layers(c.num_after_skip, edge)
        self.atom_emb_layers = residual_layers(c.num_atom_emb_layers, atom)
        self.atom_update = AtomUpdate(c)
        self.concat_layer = EdgeEmbedding(atom, edge, edge)
        self.residual_m = residual_layers(c.num_concat, edge)

    def forward(self, graph: Graph, tables: BasisTables, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Atoms [N, atom] and edges [E, edge] to the same."""
        x = self.dense_ca(m) + self.trip_interaction(graph, tables, m) + self.quad_interaction(graph, tables, m)
        x = (x + self.atom_edge_interaction(graph, tables, h, m)) * 0.5
        h = (h + self.edge_atom_interaction(graph, tables, m) + self.atom_interaction(graph, tables, h)) * INV_SQRT_3
        m = self.layers_after_skip((m + self.layers_before_skip(x)) * INV_SQRT_2)
        h = (self.atom_emb_layers(h) + self.atom_update(graph, m, tables.rad_update)) * INV_SQRT_2
        m2 = self.residual_m(self.concat_layer(h, m, graph.main.source, graph.main.target))
        return h, (m + m2) * INV_SQRT_2


class OutputBlock(AtomUpdate):
    """Features of one depth for the heads: atoms for energies, edges for forces (specification 5.8)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        c = config
        self.seq_energy2 = residual_layers(c.num_output_afteratom, c.emb_size_atom)
        self.direct_forces = c.direct_forces
        if c.direct_forces:
            self.scale_rbf_F = ScaleFactor()
            self.seq_forces = residual_layers(c.num_output_afteratom, c.emb_size_edge)
            self.dense_rbf_F = Dense(c.emb_size_rbf, c.emb_size_edge, activation=False)

    def features(self, graph: Graph, tables: BasisTables, h: Tensor, m: Tensor, kept: float) -> tuple[Tensor, Tensor]:
        """Atoms [N, atom] and edges [E, edge] to energy features [N, atom] and force features [E, edge] (or [E, 0])."""
        x = (self(graph, m, tables.rad_out, kept) + h) * INV_SQRT_2
        energy = self.seq_energy2(x)
        if not self.direct_forces:
            return energy, m.new_zeros(m.shape[0], 0)
        return energy, gated(self.seq_forces(m), tables.rad_out, self.dense_rbf_F, self.scale_rbf_F)


class OutMLP(nn.Module):
    """Features of all depths to one (specification 5.9); keys `out_mlp.*` as published."""

    def __init__(self, in_features: int, units: int, layers: int) -> None:
        super().__init__()
        self.out_mlp = nn.Sequential(Dense(in_features, units), *residual_layers(layers, units))

    def forward(self, x: Tensor) -> Tensor:
        """[R, depths · units] to [R, units]."""
        out: Tensor = self.out_mlp(x)
        return out
