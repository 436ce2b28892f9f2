"""Message passing on plain tensors, in PyTorch: what the network asks of a backend, and the form that runs anywhere.

The sums are contractions of the trilinear family (`trilinear`); symbols follow linear message passing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_kernels import middles, trilinear
from jmp_kernels.middles import MiddleRows, MiddleTables
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

    middle_tables = staticmethod(middles.joint_tables)

    @staticmethod
    def quadruplet(x: Tensor, gate: Tensor, tables: MiddleTables, taken: MiddleRows) -> Tensor:
        """Features [E_f, C] of the edges that feed to [E_r, sbf, C] of those that read (section 2)."""
        return middles.middle_read(middles.middle_messages(x, gate, tables, taken), tables, taken)


def taken(x: Tensor, rows: LookUp) -> Tensor:
    """x of the rows named, zero where there is none: [R', C] to [R, C]."""
    found = rows.found[:, None].to(x.dtype)
    if not x.shape[0]:
        return x.new_zeros(found.shape[0], x.shape[1])
    return x.index_select(0, rows.index) * found
