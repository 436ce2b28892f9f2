"""Quadruplets in PyTorch: moments of middle bonds and their read-out as padded batched products.

Symbols follow linear message passing, section 2. All out-pairs of an atom a are the edges c→a that read times the middle
bonds b→a, so what depends on geometry alone is one matrix per atom and azimuth channel, made once per batch:

    joint[a,h] = [(c, l) × (b, part)]    P̃_l(cos φ_cab) · Re/Im z_c^h

and a block's read-out is that matrix times the moments of the atom's middle bonds. The in-triplet d = c, which is no
quadruplet, is taken off after the radial contraction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_kernels import trilinear
from jmp_kernels.segments import Gather, LookUp, Segments, cached_index


@dataclass(frozen=True)
class MiddleTables:
    """Tables of in-triplets d→b→a and out-pairs (c→a, b→a) of middle bonds q = b→a; H azimuth channels.

    A backend fills either the tables of out-pairs or the joint ones, and leaves the others empty.

    Attributes:
        circular: [R_in, cbf], the angular gate of every in-triplet.
        write: [R_in, 2H], azimuth powers of d about b→a.
        radial: [E_r, sbf, L·H], radial basis times weights, in Fourier form, of the edges that read.
        zonal: [R_out, L], P̃_l(cos φ_cab).
        read: [R_out, H, 2], azimuth powers of c about b→a.
        same: [R_out, H], what the in-triplet d = c contributes and must not.
        joint: [A·H, W·L, Q·2], zonal and read together by atom, in the layout of `Joint`.
        own: [E_r, sbf, Q], what is taken off for the in-triplet d = c.
    """

    circular: Tensor
    write: Tensor
    radial: Tensor
    zonal: Tensor
    read: Tensor
    same: Tensor
    joint: Tensor
    own: Tensor


@dataclass(frozen=True)
class Joint:
    """Padded layout of the A atoms whose edges read: at most W such edges and Q middle bonds each.

    Attributes:
        atoms, edges, middles: A, W, Q.
        of_pair: int64 [R_out], place of every out-pair in [A, W, Q].
        of_edge: int64 [E_r], place of every edge that reads in [A, W].
        middle: int64 [A·Q], the middle bond at every place, the number of middle bonds where there is none.
        same: int64 [E_r·Q], the in-triplet d = c of every (edge, middle bond), the number of in-triplets for none.
    """

    atoms: int
    edges: int
    middles: int
    of_pair: Tensor
    of_edge: Tensor
    middle: Tensor
    same: Tensor


@dataclass(frozen=True)
class MiddleRows:
    """Which rows the in-triplets and out-pairs of a batch take, and where they end.

    Attributes:
        feature: of every in-triplet, the feature row of d→b.
        by_middle: the in-triplets as segments, one per middle bond.
        middle: of every out-pair, its middle bond.
        by_reader: the out-pairs as segments, one per edge that reads.
        same: for every out-pair the in-triplet of the same middle bond with d = c.
        reader_target: int64 [E_r], ascending: the atom a of every edge that reads.
        middle_target: int64 [Q_all], ascending: the atom a of every middle bond.
    """

    feature: Gather
    by_middle: Segments
    middle: Gather
    by_reader: Segments
    same: LookUp
    reader_target: Tensor
    middle_target: Tensor

    @cached_index
    def joint(self) -> Joint:
        """The layout by atom; looks at sizes, so the host waits for a device."""
        atoms, of_reader = torch.unique_consecutive(self.reader_target, return_inverse=True)
        count = atoms.shape[0]
        readers = torch.bincount(of_reader, minlength=count)
        device = of_reader.device
        rank = torch.arange(of_reader.shape[0], device=device) - (torch.cumsum(readers, 0) - readers)[of_reader]
        begin = torch.searchsorted(self.middle_target, atoms)
        bonds = torch.searchsorted(self.middle_target, atoms, right=True) - begin
        width, depth = (int(n.max()) if count else 0 for n in (readers, bonds))
        of_edge = of_reader * width + rank
        column = torch.arange(depth, device=device)
        none = self.middle_target.shape[0]
        middle = torch.where(column < bonds[:, None], begin[:, None] + column, none).flatten()
        edge = self.by_reader.index
        place = self.middle.index - begin[of_reader[edge]]
        same = torch.full((of_reader.shape[0] * depth,), self.feature.index.shape[0], device=device)
        same[edge * depth + place] = torch.where(self.same.found, self.same.index, self.feature.index.shape[0])
        return Joint(count, width, depth, of_edge[edge] * depth + place, of_edge, middle, same)


def joint_tables(
    circular: Tensor, write: Tensor, radial: Tensor, zonal: Tensor, read: Tensor, same: Tensor, rows: MiddleRows
) -> MiddleTables:
    """Tables of this form; arguments as in `MiddleTables`."""
    layout, orders, channels = rows.joint, zonal.shape[1], read.shape[1]
    shape = (layout.atoms, layout.edges, layout.middles)
    places = layout.atoms * layout.edges * layout.middles
    angle = _placed(zonal, layout.of_pair, places).view(*shape, orders)
    azimuth = _placed(read.flatten(1), layout.of_pair, places).view(*shape, channels, 2)
    joint = angle.permute(0, 1, 3, 2)[:, None, :, :, :, None] * azimuth.permute(0, 3, 1, 2, 4)[:, :, :, None]
    off = (zonal[:, :, None] * same[:, None]).flatten(1)
    edge_place = rows.by_reader.index * layout.middles + layout.of_pair % max(layout.middles, 1)
    off = _placed(off, edge_place, radial.shape[0] * layout.middles)
    off = off.view(radial.shape[0], layout.middles, orders * channels)
    empty = zonal.new_empty(0)
    return MiddleTables(
        circular=circular,
        write=write,
        radial=radial,
        zonal=empty,
        read=empty,
        same=empty,
        joint=joint.reshape(layout.atoms * channels, layout.edges * orders, layout.middles * 2),
        own=torch.bmm(radial, off.transpose(1, 2)),
    )


def with_joint(tables: MiddleTables, rows: MiddleRows) -> MiddleTables:
    """Tables of this form, made from those of out-pairs where another backend filled those."""
    if tables.joint.dim() == 3:
        return tables
    t = tables
    return joint_tables(t.circular, t.write, t.radial, t.zonal, t.read, t.same, rows)


def middle_messages(x: Tensor, gate: Tensor, tables: MiddleTables, rows: MiddleRows) -> Tensor:
    """y of every in-triplet, the feature of d→b times its angular gate: [E_f, C] and [C, cbf] to [R_in, C]."""
    return x.to(gate.dtype).index_select(0, rows.feature.index) * (tables.circular @ gate.t())


def middle_read(y: Tensor, tables: MiddleTables, rows: MiddleRows) -> Tensor:
    """Moments per middle bond, read by every out-pair, summed into the edge: [R_in, C] to [E_r, sbf, C]."""
    layout, width = rows.joint, y.shape[1]
    channels = tables.write.shape[1] // 2
    orders = tables.radial.shape[2] // channels
    zero = y.new_zeros(1, width)
    moments = trilinear.segment_outer(tables.write, y, rows.by_middle).flatten(1)
    moments = torch.cat([moments, moments.new_zeros(1, moments.shape[1])]).index_select(0, layout.middle)
    moments = moments.view(layout.atoms, layout.middles, channels, 2, width).permute(0, 2, 1, 3, 4)
    sums = torch.bmm(tables.joint, moments.reshape(layout.atoms * channels, layout.middles * 2, width))
    sums = sums.view(layout.atoms, channels, layout.edges, orders, width).permute(0, 2, 3, 1, 4)
    per_edge = sums.reshape(layout.atoms * layout.edges, orders * channels, width).index_select(0, layout.of_edge)
    same = torch.cat([y, zero]).index_select(0, layout.same).view(per_edge.shape[0], layout.middles, width)
    return torch.bmm(tables.radial, per_edge) - torch.bmm(tables.own, same)


def _placed(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Rows at their places, zeros elsewhere: [R, C] to [count, C]."""
    return rows.new_zeros(count, rows.shape[1]).index_copy(0, places, rows)
