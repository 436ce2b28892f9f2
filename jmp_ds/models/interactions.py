"""The five interactions between atoms and edges, in time linear in the edges (specification section 5.1-5.6).

Sums over triplets and quadruplets are moments in, read-out out (linear message passing). They run in the precision of the
basis tables; dense layers run in that of the features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jmp_kernels import expand_feature, segment_outer
from torch import Tensor, nn
from torch.nn import functional as F

from jmp_ds.graphs.graph import Graph
from jmp_ds.models.bases import BasisTables, ReadOut
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.layers import INV_SQRT_2, Dense
from jmp_ds.models.scaling import ScaleFactor


class Bilinear(nn.Module):
    """The dense layer of the efficient bilinear form; key `bilinear.linear.weight` as published."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.bilinear = Dense(in_features, out_features, activation=False)

    @property
    def weight(self) -> Tensor:
        """[out, basis · in], basis channel first."""
        return self.bilinear.weight


def up_to_edges(y: Tensor, reverse: Tensor, up_ca: Dense, up_ac: Dense) -> Tensor:
    """[E, out] to [E, edge]: (up_ca(y[e]) + up_ac(y[reverse of e]))/√2; swapped while still narrow."""
    return (up_ca(y) + up_ac(y.index_select(0, reverse))) * INV_SQRT_2


def gated(x: Tensor, rad: Tensor, mlp_rbf: Dense, scale: ScaleFactor) -> Tensor:
    """Features times their radial gate, [R, C]: x ⊙ (rad Wᵀ), scaled."""
    y = x * F.linear(rad.to(mlp_rbf.weight.dtype), scale(mlp_rbf.weight))
    return scale.observe(x, y)


def contracted(o: Tensor, like: Tensor, layer: Dense, scale: ScaleFactor) -> Tensor:
    """The bilinear layer on read-outs [R, K, C], flattened basis channel first, in the precision of the features."""
    return F.linear(o.flatten(1).to(like.dtype), scale(layer.weight))


def triplet_read_out(graph: Graph, read: ReadOut, moments: Tensor, twin: Tensor) -> Tensor:
    """o[e,k,i] = Σ_p U[e,k,p] A[t(e),p,i] - own[e,k] x[twin(e),i]: [E, K, C]."""
    return expand_feature(read.table, moments, graph.main.by_target) - read.own[:, :, None] * twin[:, None]


class TripletLayers(nn.Module):
    """The layers that the three triplet interactions have in common; names as published."""

    def __init__(self, config: BackboneConfig, size: int, out: int) -> None:
        """Layers for messages made of features of width `size`, ending on features of width `out`."""
        super().__init__()
        c = config
        self.dense_ba = Dense(size, size)
        self.mlp_rbf = Dense(c.emb_size_rbf, size, activation=False)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = Bilinear(c.emb_size_cbf * c.emb_size_trip_in, c.emb_size_trip_out)
        self.scale_cbf_sum = ScaleFactor()
        self.down_projection = Dense(size, c.emb_size_trip_in)
        self.up_projection_ca = Dense(c.emb_size_trip_out, out)

    def down(self, x: Tensor, rad: Tensor, dtype: torch.dtype) -> Tensor:
        """Radial gate and down-projection: [R, size] and [R, rbf] to [R, trip_in], in the precision of the tables."""
        return self.down_projection(gated(x, rad, self.mlp_rbf, self.scale_rbf)).to(dtype)

    def bilinear(self, o: Tensor, like: Tensor, x: Tensor, counts: Callable[[], Tensor]) -> Tensor:
        """Read-outs [R, cbf, trip_in] to [R, trip_out]; `x` are the messages, `counts` the triplets each is part of."""
        y = contracted(o, like, self.mlp_cbf.bilinear, self.scale_cbf_sum)
        return self.scale_cbf_sum.observe(x, y, counts)


class TripletInteraction(TripletLayers):
    """Edge→edge: o of c→a from all b→a of the main graph (specification 5.2)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, config.emb_size_edge, config.emb_size_edge)
        self.up_projection_ac = Dense(config.emb_size_trip_out, config.emb_size_edge)

    def forward(self, graph: Graph, tables: BasisTables, m: Tensor) -> Tensor:
        """Edges [E, edge] to [E, edge]."""
        x = self.down(self.dense_ba(m), tables.rad_e2e, tables.harmonics.dtype)
        with torch.autocast(x.device.type, enabled=False):
            moments = segment_outer(tables.harmonics, x, graph.main.by_target)
            o = triplet_read_out(graph, tables.e2e, moments, x)
        y = self.bilinear(o, m, x, lambda: _incoming(graph, graph.main.target) - 1)
        return up_to_edges(y, graph.reverse, self.up_projection_ca, self.up_projection_ac)


class AtomEdgeInteraction(TripletLayers):
    """Atom→edge: o of c→a from atoms b by the a2ee2a graph (specification 5.4)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, config.emb_size_atom, config.emb_size_edge)
        self.up_projection_ac = Dense(config.emb_size_trip_out, config.emb_size_edge)

    def forward(self, graph: Graph, tables: BasisTables, h: Tensor, m: Tensor) -> Tensor:
        """Atoms [N, atom] to edges [E, edge]; `m` gives the precision only."""
        of_source = self.dense_ba(h).index_select(0, graph.a2ee2a.source)
        x = self.down(of_source, tables.rad_a2e, tables.harmonics.dtype)
        with torch.autocast(x.device.type, enabled=False):
            moments = segment_outer(tables.harmonics_a2ee2a, x, graph.a2ee2a.by_target)
            o = triplet_read_out(graph, tables.a2e, moments, _twins(graph, x))
        y = self.bilinear(o, m, x, lambda: self._counts(graph))
        return up_to_edges(y, graph.reverse, self.up_projection_ca, self.up_projection_ac)

    @staticmethod
    def _counts(graph: Graph) -> Tensor:
        twins = graph.twin.index[graph.twin.found]
        own = torch.zeros_like(graph.a2ee2a.target).index_add(0, twins, torch.ones_like(twins))
        return _incoming(graph, graph.a2ee2a.target) - own


class EdgeAtomInteraction(TripletLayers):
    """Edge→atom: o of a from edges b→a, by the a2ee2a graph (specification 5.5)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, config.emb_size_edge, config.emb_size_atom)

    def forward(self, graph: Graph, tables: BasisTables, m: Tensor) -> Tensor:
        """Edges [E, edge] to atoms [N, atom]."""
        x = self.down(self.dense_ba(m), tables.rad_e2a, tables.harmonics.dtype)
        with torch.autocast(x.device.type, enabled=False):
            o = torch.bmm(tables.e2a_readout, segment_outer(tables.e2a_moments, x, graph.main.by_target))
        return self.up_projection_ca(self.bilinear(o, m, x, lambda: self._counts(graph)))

    @staticmethod
    def _counts(graph: Graph) -> Tensor:
        incoming = torch.bincount(graph.a2ee2a.target, minlength=graph.num_atoms)
        return incoming[graph.main.target] - graph.twin.found.to(incoming.dtype)


class AtomInteraction(nn.Module):
    """Atom→atom by the a2a graph (specification 5.6); images of one pair share their features."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        c = config
        self.bilinear = Dense(c.emb_size_rbf * c.emb_size_aint_in, c.emb_size_aint_out, activation=False)
        self.scale_rbf_sum = ScaleFactor()
        self.down_projection = Dense(c.emb_size_atom, c.emb_size_aint_in)
        self.up_projection = Dense(c.emb_size_aint_out, c.emb_size_atom)

    def forward(self, graph: Graph, tables: BasisTables, h: Tensor) -> Tensor:
        """Atoms [N, atom] to the same."""
        x = self.down_projection(h)
        with torch.autocast(x.device.type, enabled=False):
            of_pair = x.to(tables.rad_a2a.dtype).index_select(0, graph.pairs.source)
            o = segment_outer(tables.rad_a2a, of_pair, graph.pairs.by_target)
        y = contracted(o, h, self.bilinear, self.scale_rbf_sum)
        y = self.scale_rbf_sum.observe(x, y, lambda: torch.bincount(graph.a2a.source, minlength=graph.num_atoms))
        return self.up_projection(y)


class QuadrupletInteraction(nn.Module):
    """Edge→edge through middle bonds: c→a from d→b for all b→a of the qint graph (specification 5.3)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        c = config
        self.dense_db = Dense(c.emb_size_edge, c.emb_size_edge)
        self.mlp_rbf = Dense(c.emb_size_rbf, c.emb_size_edge, activation=False)
        self.scale_rbf = ScaleFactor()
        self.mlp_cbf = Dense(c.emb_size_cbf, c.emb_size_quad_in, activation=False)
        self.scale_cbf = ScaleFactor()
        self.mlp_sbf = Bilinear(c.emb_size_sbf * c.emb_size_quad_in, c.emb_size_quad_out)
        self.scale_sbf_sum = ScaleFactor()
        self.down_projection = Dense(c.emb_size_edge, c.emb_size_quad_in)
        self.up_projection_ca = Dense(c.emb_size_quad_out, c.emb_size_edge)
        self.up_projection_ac = Dense(c.emb_size_quad_out, c.emb_size_edge)

    def forward(self, graph: Graph, tables: BasisTables, m: Tensor) -> Tensor:
        """Edges [E, edge] to [E, edge]."""
        x = self.down_projection(gated(self.dense_db(m), tables.rad_quad, self.mlp_rbf, self.scale_rbf))
        with torch.autocast(x.device.type, enabled=False):
            y = self._messages(graph, tables, x.to(tables.harmonics.dtype))
            o = self._read_out(graph, tables, y)
        out = contracted(o, m, self.mlp_sbf.bilinear, self.scale_sbf_sum)
        out = self.scale_sbf_sum.observe(y, out, lambda: self._counts(graph))
        return up_to_edges(out, graph.reverse, self.up_projection_ca, self.up_projection_ac)

    def _messages(self, graph: Graph, tables: BasisTables, x: Tensor) -> Tensor:
        """y of every in-triplet d→b→a: the feature of d→b times its angular gate, [R_in, quad_in]."""
        of_triplet = x.index_select(0, graph.quadruplets.in_edge)
        gate = tables.quadruplet.circular @ self.scale_cbf(self.mlp_cbf.weight).to(x.dtype).T
        return self.scale_cbf.observe(of_triplet, of_triplet * gate)

    @staticmethod
    def _read_out(graph: Graph, tables: BasisTables, y: Tensor) -> Tensor:
        """Moments per middle bond, read by every out-pair, summed into the edge: [E, sbf, quad_in]."""
        quads, quad = graph.quadruplets, tables.quadruplet
        middles, channels, width = quads.by_middle.count, quad.read.shape[1], y.shape[1]
        moments = segment_outer(quad.write, y, quads.by_middle).view(middles, channels, 2, width)
        real, imaginary = moments.index_select(0, quads.out_middle).unbind(2)
        t = torch.addcmul(quad.read[:, :, :1] * real, quad.read[:, :, 1:], imaginary)
        if y.shape[0]:
            t = torch.addcmul(t, quad.same[..., None], y.index_select(0, quads.same.index)[:, None], value=-1)
        per_edge = segment_outer(quad.zonal, t.flatten(1), quads.by_edge)
        return torch.bmm(quad.radial, per_edge.view(per_edge.shape[0], quad.radial.shape[2], width))

    @staticmethod
    def _counts(graph: Graph) -> Tensor:
        """How many quadruplets every in-triplet is part of."""
        quads = graph.quadruplets
        out_pairs = torch.bincount(quads.out_middle, minlength=graph.qint.num_edges)[quads.by_middle.index]
        same = quads.same.index[quads.same.found]
        return out_pairs - torch.zeros_like(out_pairs).index_add(0, same, torch.ones_like(same))


def _incoming(graph: Graph, atoms: Tensor) -> Tensor:
    """Number of main edges into each of the atoms."""
    return torch.bincount(graph.main.target, minlength=graph.num_atoms)[atoms]


def _twins(graph: Graph, x: Tensor) -> Tensor:
    """The a2ee2a feature of every main edge's twin, zero where it has none: [E, C]."""
    found = graph.twin.found[:, None].to(x.dtype)
    if not x.shape[0]:
        return x.new_zeros(found.shape[0], x.shape[1])
    return x.index_select(0, graph.twin.index) * found
