"""Geometry to tables that every block shares: lengths, angles and azimuths, contracted with the shared basis weights.

Nothing here depends on features. Everything is computed in float32 at least, whatever the precision of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jmp_kernels import MiddleTables, Operators, ReadOut, Segments
from jmp_kernels.messages import taken
from torch import Tensor, nn

from jmp_ds.graphs.graph import EdgeSet, Graph
from jmp_ds.graphs.settings import Dihedral
from jmp_ds.models.angular import (
    addition_factors,
    azimuth_powers,
    fourier_coefficients,
    perpendicular_frame,
    spherical_harmonics,
    zonal_harmonics,
)
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.layers import BasisEmbedding, Dense, EdgeEmbedding, he_orthogonal_
from jmp_ds.models.radial import RadialBasis


@dataclass(frozen=True)
class BasisTables:
    """All tables of one batch.

    Attributes:
        vectors: [E, 3] unit vectors of main edges, source to target.
        radial: [E, num_radial], radial basis of main edges.
        rad_e2e, rad_quad, rad_e2a, rad_update, rad_out: [E, rbf], its projections.
        rad_a2e: [E_a2ee2a, rbf].
        rad_a2a: [pairs, rbf], summed over the periodic images of a pair.
        harmonics, harmonics_a2ee2a: [E, L²] and [E_a2ee2a, L²].
        e2e, a2e: read-outs on main edges.
        e2a_moments: [E, L² + cbf], harmonics and the exclusion's rows.
        e2a_readout: [N, cbf, L² + cbf].
        quadruplet: tables of the quadruplet interaction.
    """

    vectors: Tensor
    radial: Tensor
    rad_e2e: Tensor
    rad_quad: Tensor
    rad_e2a: Tensor
    rad_update: Tensor
    rad_out: Tensor
    rad_a2e: Tensor
    rad_a2a: Tensor
    harmonics: Tensor
    harmonics_a2ee2a: Tensor
    e2e: ReadOut
    a2e: ReadOut
    e2a_moments: Tensor
    e2a_readout: Tensor
    quadruplet: MiddleTables


class AtomAtomBasis(nn.Module):
    """The weight that projects the radial basis of atom-atom edges; key `weight` [rbf, num_radial] as published."""

    def __init__(self, num_radial: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(he_orthogonal_(torch.empty(size, num_radial)))


def edge_geometry(edges: EdgeSet, pos: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Length [E] in Å and unit vector [E, 3] of every edge; the difference is taken in the precision of `pos`."""
    vector = pos.index_select(0, edges.target) - pos.index_select(0, edges.source) - edges.shift.to(pos.dtype)
    vector = vector.to(dtype)
    length = vector.square().sum(-1).sqrt()
    return length, vector / length[:, None]


class Bases(nn.Module):
    """The shared basis layers (specification section 4); names as published."""

    addition: Tensor
    fourier: Tensor
    zonal_at_one: Tensor

    def __init__(self, config: BackboneConfig, dihedral: Dihedral, operators: Operators) -> None:
        super().__init__()
        self.messages, self.dense = operators.messages, operators.dense
        c, radial, orders = config, config.num_radial, config.num_spherical
        self.dihedral: Dihedral = dihedral
        self.radial_basis = RadialBasis(radial)
        self.mlp_rbf_qint = Dense(radial, c.emb_size_rbf)
        self.mlp_cbf_qint = BasisEmbedding(radial, orders, c.emb_size_cbf)
        self.mlp_sbf_qint = BasisEmbedding(radial, orders**2, c.emb_size_sbf)
        self.mlp_rbf_aeint = Dense(radial, c.emb_size_rbf)
        self.mlp_cbf_aeint = BasisEmbedding(radial, orders, c.emb_size_cbf)
        self.mlp_rbf_eaint = Dense(radial, c.emb_size_rbf)
        self.mlp_cbf_eaint = BasisEmbedding(radial, orders, c.emb_size_cbf)
        self.mlp_rbf_aint = AtomAtomBasis(radial, c.emb_size_rbf)
        self.mlp_rbf_tint = Dense(radial, c.emb_size_rbf)
        self.mlp_cbf_tint = BasisEmbedding(radial, orders, c.emb_size_cbf)
        self.mlp_rbf_h = Dense(radial, c.emb_size_rbf)
        self.mlp_rbf_out = Dense(radial, c.emb_size_rbf)
        self.edge_emb = EdgeEmbedding(c.emb_size_atom, radial, c.emb_size_edge, operators)
        self._orders = orders
        self.register_buffer("addition", addition_factors(orders), persistent=False)
        self.register_buffer("fourier", fourier_coefficients(orders, dihedral), persistent=False)
        one = zonal_harmonics(torch.ones((), dtype=torch.float64), orders)
        self.register_buffer("zonal_at_one", one, persistent=False)

    def forward(self, graph: Graph, pos: Tensor, dtype: torch.dtype) -> BasisTables:
        """Tables of a batch.

        Args:
            graph: its graphs.
            pos: [N, 3] in Å.
            dtype: precision of the tables, float32 or float64.
        """
        with torch.autocast(pos.device.type, enabled=False):
            return self._tables(graph, pos, dtype)

    def _tables(self, graph: Graph, pos: Tensor, dtype: torch.dtype) -> BasisTables:
        length, vectors = edge_geometry(graph.main, pos, dtype)
        length_ae, vectors_ae = edge_geometry(graph.a2ee2a, pos, dtype)
        length_aa, _ = edge_geometry(graph.a2a, pos, dtype)
        length_q, vectors_q = edge_geometry(graph.qint, pos, dtype)
        end = graph.envelope_end_of_atom.to(dtype)
        radial = self.radial_basis(length, end.index_select(0, graph.main.target))
        radial_ae = self.radial_basis(length_ae, end.index_select(0, graph.a2ee2a.target))
        radial_aa = self.radial_basis(length_aa, end.index_select(0, graph.a2a.target))
        radial_q = self.radial_basis(length_q, end.index_select(0, graph.qint.target))
        harmonics = spherical_harmonics(vectors, self._orders)
        harmonics_ae = spherical_harmonics(vectors_ae, self._orders)
        moments, readout = self._edge_to_atom(graph, radial_ae, harmonics, harmonics_ae)
        project = self.dense.linear
        return BasisTables(
            vectors=vectors,
            radial=radial,
            rad_e2e=project(radial, self.mlp_rbf_tint.weight),
            rad_quad=project(radial, self.mlp_rbf_qint.weight),
            rad_e2a=project(radial, self.mlp_rbf_eaint.weight),
            rad_update=project(radial, self.mlp_rbf_h.weight),
            rad_out=project(radial, self.mlp_rbf_out.weight),
            rad_a2e=project(radial_ae, self.mlp_rbf_aeint.weight),
            rad_a2a=self.messages.sum_into(project(radial_aa, self.mlp_rbf_aint.weight), graph.pairs.by_pair),
            harmonics=harmonics,
            harmonics_a2ee2a=harmonics_ae,
            e2e=self._read_out(self.mlp_cbf_tint, radial, harmonics, graph.main.by_target),
            a2e=self._read_out(self.mlp_cbf_aeint, radial, harmonics, graph.main.by_target),
            e2a_moments=moments,
            e2a_readout=readout,
            quadruplet=self._quadruplets(graph, vectors, vectors_q, radial, radial_q),
        )

    def _read_out(self, embedding: BasisEmbedding, radial: Tensor, harmonics: Tensor, by_target: Segments) -> ReadOut:
        """The read-out of edges, and the twin's weight in it."""
        addition, at_one = self.addition.to(radial.dtype), self.zonal_at_one.to(radial.dtype)
        return self.messages.read_out(embedding(radial, self.dense), harmonics, addition, at_one, by_target)

    def _edge_to_atom(
        self, graph: Graph, radial_ae: Tensor, harmonics: Tensor, harmonics_ae: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Moments and read-out of edge→atom: the read-out collapses onto atoms, the exclusion rides along as moments."""
        weights = self.mlp_cbf_eaint(radial_ae, self.dense)
        table = (weights @ self.addition.to(weights.dtype)) * harmonics_ae[:, None]
        size, orders = table.shape[1:]
        per_atom = self.messages.segment_sum(table.flatten(1), graph.a2ee2a.by_target).view(-1, size, orders)
        excluded = taken(weights @ self.zonal_at_one.to(weights.dtype), graph.twin)
        minus_one = -torch.eye(size, dtype=per_atom.dtype, device=per_atom.device)
        readout = torch.cat([per_atom, minus_one.expand(per_atom.shape[0], -1, -1)], dim=2)
        return torch.cat([harmonics, excluded], dim=1), readout

    def _quadruplets(
        self, graph: Graph, vectors: Tensor, vectors_q: Tensor, radial: Tensor, radial_q: Tensor
    ) -> MiddleTables:
        quads, orders = graph.quadruplets, self._orders
        first, second = perpendicular_frame(vectors_q)
        # in-triplets d→b→a: the cosine is head to tail (specification section 4)
        middle = quads.by_middle.index
        bond, axis = vectors.index_select(0, quads.in_edge), vectors_q.index_select(0, middle)
        zonal_in = zonal_harmonics(self._cosine(bond, axis), orders)
        frame = first.index_select(0, middle), second.index_select(0, middle)
        write = azimuth_powers(bond, *frame, orders, self.dihedral, reads=False)
        gates = self.mlp_cbf_qint(radial_q, self.dense).transpose(1, 2)
        circular = self.messages.expand_feature(zonal_in, gates, quads.by_middle)
        # out-pairs (c→a, b→a)
        bond = vectors.index_select(0, quads.by_edge.index)
        axis = vectors_q.index_select(0, quads.out_middle)
        frame = first.index_select(0, quads.out_middle), second.index_select(0, quads.out_middle)
        read = azimuth_powers(bond, *frame, orders, self.dihedral, reads=True)
        return self.messages.middle_tables(
            circular,
            write.flatten(1),
            self._quadruplet_radial(radial.index_select(0, quads.reading)),
            zonal_harmonics(self._cosine(bond, axis), orders),
            read,
            _same_terms(graph, read, write),
            graph.middle_rows,
        )

    def _cosine(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product of unit vectors; the published rule clamps it, the smooth one is a polynomial as it stands."""
        cosine = (a * b).sum(-1)
        return cosine.clamp(-1.0, 1.0) if self.dihedral == "jmp" else cosine

    def _quadruplet_radial(self, radial: Tensor) -> Tensor:
        """Σ_l' W1[e,k,l,l'] a[l',n]: the dihedral's Legendre series as a Fourier series, folded into the weight."""
        weight = self.mlp_sbf_qint.weight.to(radial.dtype)
        num_radial, _, size = weight.shape
        fourier = self.fourier.to(radial.dtype)
        folded = weight.reshape(num_radial, size, self._orders, self._orders) @ fourier
        return self.dense.linear(radial, folded.flatten(1).T).view(
            radial.shape[0], size, self._orders * fourier.shape[1]
        )


def _same_terms(graph: Graph, read: Tensor, write: Tensor) -> Tensor:
    """For every out-pair, per azimuth channel, the share of the in-triplet d = c: [R_out, H]."""
    same = graph.quadruplets.same
    if not write.shape[0]:
        return read.new_zeros(read.shape[:2])
    share = (read * write.index_select(0, same.index)).sum(-1)
    return share * same.found[:, None].to(share.dtype)
