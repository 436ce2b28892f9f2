"""The five interactions between atoms and edges, in time linear in the edges (specification section 5.1-5.6).

Sums over triplets and quadruplets are moments in, read-out out (linear message passing). They run in the precision of the
basis tables; dense layers run in that of the features. The interactions into edges end on narrow messages: the block
projects them up and merges them in one step.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from jmp_kernels import DenseOnce, DenseTwice, Gather, LookUp, MiddleTables, Operators, ReadOut, Segments
from jmp_kernels.middles import middle_messages, middle_read, with_joint
from torch import Tensor, nn

from jmp_ds.graphs.graph import Graph
from jmp_ds.models.bases import BasisTables
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.layers import Dense, rows_of
from jmp_ds.models.scaling import ScaleFactor

#: Messages to edges before their up-projection: [R, narrow], the weight [edge, narrow], and the rows they belong to
#: (None: all edges in order).
Part = tuple[Tensor, Tensor, Tensor | None]


class Bilinear(nn.Module):
    """The dense layer of the efficient bilinear form; key `bilinear.linear.weight` as published."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.bilinear = Dense(in_features, out_features)

    @property
    def weight(self) -> Tensor:
        """[out, basis · in], basis channel first."""
        return self.bilinear.weight


def gated_down(
    ops: DenseOnce | DenseTwice, x: Tensor, dense: Dense, rad: Tensor, mlp_rbf: Dense, scale: ScaleFactor, down: Dense
) -> Tensor:
    """Dense layer, radial gate and down-projection: [R, size] and [R, rbf] to [R, down]."""
    if scale.observer is None:
        return ops.gated_down(x, dense.weight, rad, scale(mlp_rbf.weight), down.weight)
    x = ops.dense(x, dense.weight)
    x = scale.observe(x, ops.gate(x, rad, scale(mlp_rbf.weight)))
    return ops.dense(x, down.weight)


class Interaction(nn.Module):
    """What all have in common: the operators."""

    def __init__(self, operators: Operators) -> None:
        super().__init__()
        self.messages = operators.messages
        self.dense = operators.dense


class TripletLayers(Interaction):
    """The layers that the three triplet interactions have in common; names as published."""

    def __init__(self, config: BackboneConfig, operators: Operators, size: int, out: int) -> None:
        """Layers for messages made of features of width `size`, ending on features of width `out`."""
        super().__init__(operators)
        c = config
        self.dense_ba = Dense(size, size)
        self.mlp_rbf = Dense(c.emb_size_rbf, size)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = Bilinear(c.emb_size_cbf * c.emb_size_trip_in, c.emb_size_trip_out)
        self.scale_cbf_sum = ScaleFactor()
        self.down_projection = Dense(size, c.emb_size_trip_in)
        self.up_projection_ca = Dense(c.emb_size_trip_out, out)

    def down(self, m: Tensor, rad: Tensor) -> Tensor:
        """Features of edges and their radial basis to messages: [E, size] and [E, rbf] to [E, trip_in]."""
        return gated_down(self.dense, m, self.dense_ba, rad, self.mlp_rbf, self.scale_rbf, self.down_projection)

    def read(
        self,
        graph: Graph,
        carried: tuple[Tensor, Tensor, Segments],
        read: ReadOut,
        twin: LookUp | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Messages read by every main edge, through the bilinear layer: [E, trip_out].

        Args:
            graph: of the batch.
            carried: messages [R, trip_in], harmonics [R, L²] and segments by target of the edges that carry them.
            read: of the main edges.
            twin: for every main edge the one that carries and is the same edge; None: they are the same list.
            dtype: of the result.
        """
        x, harmonics, into = carried

        def make(x: Tensor, harmonics: Tensor, *tables: Tensor) -> Tensor:
            return self.messages.triplet(x, harmonics, into, ReadOut(*tables), graph.main.by_target, twin)

        tensors = (x, harmonics, read.radial, read.harmonics, read.table, read.own)
        return self.dense.contracted(make, tensors, self.scaled_bilinear, dtype)

    @property
    def scaled_bilinear(self) -> Tensor:
        """The bilinear layer's weight with its factor: [trip_out, cbf · trip_in]."""
        weight: Tensor = self.scale_cbf_sum(self.mlp_cbf.weight)
        return weight


class TripletInteraction(TripletLayers):
    """Edge→edge: o of c→a from all b→a of the main graph (specification 5.2)."""

    def __init__(self, config: BackboneConfig, operators: Operators) -> None:
        super().__init__(config, operators, config.emb_size_edge, config.emb_size_edge)
        self.up_projection_ac = Dense(config.emb_size_trip_out, config.emb_size_edge)

    def forward(self, graph: Graph, tables: BasisTables, m: Tensor) -> list[Part]:
        """Edges [E, edge] to messages to edges."""
        x = self.down(m, tables.rad_e2e)
        y = self.read(graph, (x, tables.harmonics, graph.main.by_target), tables.e2e, None, m.dtype)
        y = self.scale_cbf_sum.observe(x, y, lambda: _incoming(graph, graph.main.target) - 1)
        return both_ways(y, graph.reverse, self.up_projection_ca, self.up_projection_ac)


class AtomEdgeInteraction(TripletLayers):
    """Atom→edge: o of c→a from atoms b by the a2ee2a graph (specification 5.4)."""

    def __init__(self, config: BackboneConfig, operators: Operators) -> None:
        super().__init__(config, operators, config.emb_size_atom, config.emb_size_edge)
        self.up_projection_ac = Dense(config.emb_size_trip_out, config.emb_size_edge)

    def forward(self, graph: Graph, tables: BasisTables, h: Tensor, dtype: torch.dtype) -> list[Part]:
        """Atoms [N, atom] to messages to edges, in the precision of the edges' features."""
        of_source = self.messages.gather(self.dense.dense(h, self.dense_ba.weight).to(dtype), graph.a2ee2a.by_source)
        gate = self.scale_rbf(self.mlp_rbf.weight)
        gated = self.scale_rbf.observe(of_source, self.dense.gate(of_source, tables.rad_a2e, gate))
        x = self.dense.dense(gated, self.down_projection.weight)
        carried = (x, tables.harmonics_a2ee2a, graph.a2ee2a.by_target)
        y = self.read(graph, carried, tables.a2e, graph.twin, dtype)
        y = self.scale_cbf_sum.observe(x, y, lambda: self._counts(graph))
        return both_ways(y, graph.reverse, self.up_projection_ca, self.up_projection_ac)

    @staticmethod
    def _counts(graph: Graph) -> Tensor:
        twins = graph.twin.index[graph.twin.found]
        own = torch.zeros_like(graph.a2ee2a.target).index_add(0, twins, torch.ones_like(twins))
        return _incoming(graph, graph.a2ee2a.target) - own


class EdgeAtomInteraction(TripletLayers):
    """Edge→atom: o of a from edges b→a, by the a2ee2a graph (specification 5.5)."""

    def __init__(self, config: BackboneConfig, operators: Operators) -> None:
        super().__init__(config, operators, config.emb_size_edge, config.emb_size_atom)

    def forward(self, graph: Graph, tables: BasisTables, m: Tensor, dtype: torch.dtype) -> Tensor:
        """Edges [E, edge] to atoms [N, atom], in the precision of the atoms' features."""
        x = self.down(m, tables.rad_e2a)
        moments = self.messages.segment_outer(tables.e2a_moments, x.to(dtype), graph.main.by_target)
        o = torch.bmm(tables.e2a_readout, moments)
        y = self.dense.linear(o.flatten(1).to(dtype), self.scaled_bilinear)
        y = self.scale_cbf_sum.observe(x, y, lambda: self._counts(graph))
        out: Tensor = self.dense.dense(y, self.up_projection_ca.weight)
        return out

    @staticmethod
    def _counts(graph: Graph) -> Tensor:
        incoming = torch.bincount(graph.a2ee2a.target, minlength=graph.num_atoms)
        return incoming[graph.main.target] - graph.twin.found.to(incoming.dtype)


class AtomInteraction(Interaction):
    """Atom→atom by the a2a graph (specification 5.6); images of one pair share their features."""

    def __init__(self, config: BackboneConfig, operators: Operators) -> None:
        super().__init__(operators)
        c = config
        self.bilinear = Dense(c.emb_size_rbf * c.emb_size_aint_in, c.emb_size_aint_out)
        self.scale_rbf_sum = ScaleFactor()
        self.down_projection = Dense(c.emb_size_atom, c.emb_size_aint_in)
        self.up_projection = Dense(c.emb_size_aint_out, c.emb_size_atom)

    def forward(self, graph: Graph, tables: BasisTables, h: Tensor) -> Tensor:
        """Atoms [N, atom] to the same."""
        x = self.dense.dense(h, self.down_projection.weight)
        o = self.messages.pair(tables.rad_a2a, x, graph.pairs.by_source, graph.pairs.by_target)
        y = self.dense.linear(o.flatten(1).to(h.dtype), self.scale_rbf_sum(self.bilinear.weight))
        y = self.scale_rbf_sum.observe(x, y, lambda: torch.bincount(graph.a2a.source, minlength=graph.num_atoms))
        out: Tensor = self.dense.dense(y, self.up_projection.weight)
        return out


class QuadrupletInteraction(Interaction):
    """Edge→edge through middle bonds: c→a from d→b for all b→a of the qint graph (specification 5.3).

    Edges that feed no quadruplet are left out before, edges that no quadruplet reaches after: their messages are zero.
    """

    def __init__(self, config: BackboneConfig, operators: Operators) -> None:
        super().__init__(operators)
        c = config
        self.dense_db = Dense(c.emb_size_edge, c.emb_size_edge)
        self.mlp_rbf = Dense(c.emb_size_rbf, c.emb_size_edge)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = Dense(c.emb_size_cbf, c.emb_size_quad_in)
        self.scale_cbf = ScaleFactor()
        self.mlp_sbf = Bilinear(c.emb_size_sbf * c.emb_size_quad_in, c.emb_size_quad_out)
        self.scale_sbf_sum = ScaleFactor()
        self.down_projection = Dense(c.emb_size_edge, c.emb_size_quad_in)
        self.up_projection_ca = Dense(c.emb_size_quad_out, c.emb_size_edge)
        self.up_projection_ac = Dense(c.emb_size_quad_out, c.emb_size_edge)

    def forward(self, graph: Graph, tables: BasisTables, m: Tensor) -> list[Part]:
        """Edges [E, edge] to messages to edges."""
        quads, dtype = graph.quadruplets, tables.harmonics.dtype
        gate = self.scale_cbf(self.mlp_cbf.weight).to(dtype)
        if any(scale.observer for scale in (self.scale_rbf, self.scale_cbf, self.scale_sbf_sum)):
            out = self._observed(graph, tables, m, gate)
        else:
            x = self._down(rows_of(m, quads.feeding), rows_of(tables.rad_quad, quads.feeding))
            tensors = (x, gate, *(getattr(tables.quadruplet, f.name) for f in fields(MiddleTables)))
            rows = graph.middle_rows

            def make(x: Tensor, gate: Tensor, *tables: Tensor) -> Tensor:
                return self.messages.quadruplet(x, gate, MiddleTables(*tables), rows)

            out = self.dense.contracted(make, tensors, self._scaled_bilinear, m.dtype)
        if quads.reading.shape[0] == m.shape[0]:
            return both_ways(out, graph.reverse, self.up_projection_ca, self.up_projection_ac)
        reversed_rows = graph.reverse.index_select(0, quads.reading)
        return [
            (out, self.up_projection_ca.weight, quads.reading),
            (out, self.up_projection_ac.weight, reversed_rows),
        ]

    @property
    def _scaled_bilinear(self) -> Tensor:
        weight: Tensor = self.scale_sbf_sum(self.mlp_sbf.weight)
        return weight

    def _down(self, m: Tensor, rad: Tensor) -> Tensor:
        return gated_down(self.dense, m, self.dense_db, rad, self.mlp_rbf, self.scale_rbf, self.down_projection)

    def _observed(self, graph: Graph, tables: BasisTables, m: Tensor, gate: Tensor) -> Tensor:
        """The same for the fit of scale factors, whose variances are over all edges: messages [E_r, quad_out]."""
        quads = graph.quadruplets
        rows = replace(graph.middle_rows, feature=Gather(quads.in_edge, m.shape[0]))
        middles = with_joint(tables.quadruplet, rows)
        x = self._down(m, tables.rad_quad).to(gate.dtype)
        y = middle_messages(x, gate, middles, rows)
        y = self.scale_cbf.observe(x.index_select(0, quads.in_edge), y)
        o = middle_read(y, middles, rows)
        out = self.dense.linear(o.flatten(1).to(m.dtype), self._scaled_bilinear)
        of_all = out.new_zeros(m.shape[0], out.shape[1]).index_copy(0, quads.reading, out)
        return self.scale_sbf_sum.observe(y, of_all, lambda: self._counts(graph)).index_select(0, quads.reading)

    @staticmethod
    def _counts(graph: Graph) -> Tensor:
        """How many quadruplets every in-triplet is part of."""
        quads = graph.quadruplets
        out_pairs = torch.bincount(quads.out_middle, minlength=graph.qint.num_edges)[quads.by_middle.index]
        same = quads.same.index[quads.same.found]
        return out_pairs - torch.zeros_like(out_pairs).index_add(0, same, torch.ones_like(same))


def both_ways(y: Tensor, reverse: Tensor, up_ca: Dense, up_ac: Dense) -> list[Part]:
    """Messages of c→a and, swapped while still narrow, of a→c."""
    return [(y, up_ca.weight, None), (y.index_select(0, reverse), up_ac.weight, None)]


def _incoming(graph: Graph, atoms: Tensor) -> Tensor:
    """Number of main edges into each of the atoms."""
    return torch.bincount(graph.main.target, minlength=graph.num_atoms)[atoms]
