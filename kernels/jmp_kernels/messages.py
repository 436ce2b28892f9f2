"""Message passing on plain tensors, in PyTorch: what the network asks of a backend, and the form that runs anywhere.

The sums are contractions of the trilinear family (`trilinear`); symbols follow linear message passing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_kernels import trilinear
from jmp_kernels.segments import Gather, LookUp, Segments


@dataclass(frozen=True)
class ReadOut:
    """How every edge reads the moments of its target (linear message passing, section 1).

    Attributes:
        radial: R [E, K, L], radial basis times weights.
        harmonics: Y [E, L²].
        table: U[e,k,p] = sqrt(4π/(2l+1)) R[e,k,l(p)] Y_p in the padded layout, [N, width · K, L²]; empty where the backend
            builds it on the fly.
        own: Σ_l P̃_l(1) R[e,k,l], what the excluded twin contributes: [E, K].
    """

    radial: Tensor
    harmonics: Tensor
    table: Tensor
    own: Tensor


@dataclass(frozen=True)
class MiddleTables:
    """Tables of in-triplets d→b→a and out-pairs (c→a, b→a) of middle bonds q = b→a (section 2); H azimuth channels.

    Attributes:
        circular: [R_in, cbf], the angular gate of every in-triplet.
        write: [R_in, 2H], azimuth powers of d about b→a.
        zonal: [R_out, L], P̃_l(cos φ_cab).
        read: [R_out, H, 2], azimuth powers of c about b→a.
        same: [R_out, H], what the in-triplet d = c contributes and must not.
        radial: [E_r, sbf, L·H], radial basis times weights, in Fourier form, of the edges that read.
    """

    circular: Tensor
    write: Tensor
    zonal: Tensor
    read: Tensor
    same: Tensor
    radial: Tensor


@dataclass(frozen=True)
class MiddleRows:
    """Which rows the in-triplets and out-pairs of a batch take, and where they end.

    Attributes:
        feature: of every in-triplet, the feature row of d→b.
        by_middle: the in-triplets as segments, one per middle bond.
        middle: of every out-pair, its middle bond.
        by_reader: the out-pairs as segments, one per edge that reads.
        same: for every out-pair the in-triplet of the same middle bond with d = c.
    """

    feature: Gather
    by_middle: Segments
    middle: Gather
    by_reader: Segments
    same: LookUp


class TorchMessages:
    """Padded batched products; runs anywhere and differentiates any number of times."""

    name = "torch"

    @staticmethod
    def segment_sum(x: Tensor, segments: Segments) -> Tensor:
        """Sum of the rows of every segment, float32 at least: [R, C] to [S, C]."""
        return trilinear.segment_sum(x.to(torch.promote_types(x.dtype, torch.float32)), segments)

    @staticmethod
    def spread(y: Tensor, segments: Segments) -> Tensor:
        """Every row's own segment: [S, C] to [R, C]."""
        return y.index_select(0, segments.index)

    @staticmethod
    def gather(y: Tensor, taken: Gather) -> Tensor:
        """The named rows: [S, C] to [R, C]."""
        return y.index_select(0, taken.index)

    @staticmethod
    def sum_into(x: Tensor, taken: Gather) -> Tensor:
        """Sums of the rows that name the same row there: [R, C] to [S, C]."""
        return x.new_zeros(taken.count, x.shape[1]).index_add(0, taken.index, x)

    segment_outer = staticmethod(trilinear.segment_outer)
    expand_feature = staticmethod(trilinear.expand_feature)
    expand_basis = staticmethod(trilinear.expand_basis)

    @staticmethod
    def read_out(radial: Tensor, harmonics: Tensor, addition: Tensor, at_one: Tensor, segments: Segments) -> ReadOut:
        """Prepare a read-out once per batch.

        Args:
            radial: R [E, K, L].
            harmonics: Y [E, L²].
            addition: sqrt(4π/(2l+1)) where l is the order of p, else 0: [L, L²].
            at_one: P̃_l(1) [L].
            segments: the edges by target atom.
        """
        table = trilinear.padded((radial @ addition) * harmonics[:, None], segments)
        return ReadOut(radial, harmonics, table.flatten(1, 2), radial @ at_one)

    @staticmethod
    def triplet(
        x: Tensor, harmonics: Tensor, into: Segments, read: ReadOut, out_of: Segments, twin: LookUp | None
    ) -> Tensor:
        """o[e,k,i] = Σ_p U[e,k,p] A[t(e),p,i] - own[e,k] x[twin(e),i] with A[a,p,i] = Σ_{r→a} Y[r,p] x[r,i].

        Args:
            x: [R, C] messages.
            harmonics: Y [R, L²] of the edges that carry them.
            into: these edges by target atom.
            read: of the edges that read.
            out_of: these edges by target atom.
            twin: for every edge that reads the one that carries and is the same edge; None: they are the same list.

        Returns:
            [E, K, C].
        """
        x = x.to(harmonics.dtype)
        moments = trilinear.segment_outer(harmonics, x, into)
        same = x if twin is None else taken(x, twin)
        o = trilinear.expand_padded(read.table, moments, out_of, read.own.shape[1])
        return torch.addcmul(o, read.own[:, :, None], same[:, None], value=-1)

    @staticmethod
    def pair(rad: Tensor, x: Tensor, source: Gather, by_target: Segments) -> Tensor:
        """O[a,k,i] = Σ_{pairs b→a} rad[ba,k] x[b,i]: [P, K] and [N, C] to [N, K, C]."""
        return trilinear.segment_outer(rad, x.to(rad.dtype).index_select(0, source.index), by_target)

    @staticmethod
    def middle_messages(x: Tensor, gate: Tensor, tables: MiddleTables, rows: MiddleRows) -> Tensor:
        """y of every in-triplet, the feature of d→b times its angular gate: [E_f, C] and [C, cbf] to [R_in, C]."""
        return x.to(gate.dtype).index_select(0, rows.feature.index) * (tables.circular @ gate.t())

    @staticmethod
    def middle_read(y: Tensor, tables: MiddleTables, rows: MiddleRows) -> Tensor:
        """Moments per middle bond, read by every out-pair, summed into the edge: [R_in, C] to [E_r, sbf, C]."""
        middles, channels, width = rows.by_middle.count, tables.read.shape[1], y.shape[1]
        moments = trilinear.segment_outer(tables.write, y, rows.by_middle).view(middles, channels, 2, width)
        real, imaginary = moments.index_select(0, rows.middle.index).unbind(2)
        t = torch.addcmul(tables.read[:, :, :1] * real, tables.read[:, :, 1:], imaginary)
        if y.shape[0]:
            t = torch.addcmul(t, tables.same[..., None], y.index_select(0, rows.same.index)[:, None], value=-1)
        per_edge = trilinear.segment_outer(tables.zonal, t.flatten(1), rows.by_reader)
        return torch.bmm(tables.radial, per_edge.view(per_edge.shape[0], tables.radial.shape[2], width))

    def quadruplet(self, x: Tensor, gate: Tensor, tables: MiddleTables, taken: MiddleRows) -> Tensor:
        """Both in one: features [E_f, C] of the edges that feed to [E_r, sbf, C] of those that read."""
        return self.middle_read(self.middle_messages(x, gate, tables, taken), tables, taken)


def taken(x: Tensor, rows: LookUp) -> Tensor:
    """x of the rows named, zero where there is none: [R', C] to [R, C]."""
    found = rows.found[:, None].to(x.dtype)
    if not x.shape[0]:
        return x.new_zeros(found.shape[0], x.shape[1])
    return x.index_select(0, rows.index) * found
