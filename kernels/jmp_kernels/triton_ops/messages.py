"""Message passing by the Triton operators: the methods of `jmp_kernels.messages.TorchMessages`, on GPUs.

Features keep their precision; geometry, moments and sums are float32 at least. No list is padded, no sum uses atomics.
"""

from __future__ import annotations

from torch import Tensor

from jmp_kernels.messages import ReadOut
from jmp_kernels.middles import MiddleRows, MiddleTables
from jmp_kernels.segments import Gather, LookUp, Segments
from jmp_kernels.triton_ops import family, launch, rows
from jmp_kernels.triton_ops.pair import pair
from jmp_kernels.triton_ops.quadruplet_moments import quadruplet_moments
from jmp_kernels.triton_ops.quadruplet_read import quadruplet_read
from jmp_kernels.triton_ops.triplet import triplet


class TritonMessages:
    """Sums over edges, triplets and quadruplets as `torch.ops.jmp` operators; differentiable any number of times."""

    name = "triton"

    @staticmethod
    def segment_sum(x: Tensor, segments: Segments) -> Tensor:
        """Sum of the rows of every segment, float32 at least: [R, C] to [S, C]."""
        return rows.segment_sum(x, segments.first, segments.index, None, launch.accumulator(x.dtype))

    @staticmethod
    def spread(y: Tensor, segments: Segments) -> Tensor:
        """Every row's own segment: [S, C] to [R, C]."""
        return rows.gather_rows(y, segments.first, segments.index)

    @staticmethod
    def gather(y: Tensor, taken: Gather) -> Tensor:
        """The named rows: [S, C] to [R, C]."""
        transposed = taken.transposed
        return rows.gather_rows(y, transposed.first, taken.index, transposed.order)

    @staticmethod
    def sum_into(x: Tensor, taken: Gather) -> Tensor:
        """Sums of the rows that name the same row there: [R, C] to [S, C]."""
        transposed = taken.transposed
        return rows.segment_sum(x, transposed.first, taken.index, transposed.order)

    @staticmethod
    def segment_outer(u: Tensor, x: Tensor, segments: Segments) -> Tensor:
        """O[s,p,i] = Σ_{r in s} u[r,p] x[r,i]: [R, P] and [R, C] to [S, P, C]."""
        return family.segment_outer(u, x, segments.first)

    @staticmethod
    def expand_feature(u: Tensor, outer: Tensor, segments: Segments) -> Tensor:
        """x[r,…,i] = Σ_p u[r,…,p] O[seg(r),p,i]: [R, P] or [R, K, P] and [S, P, C] to [R, C] or [R, K, C]."""
        return family.expand_feature(u, outer.contiguous(), segments.first)

    @staticmethod
    def read_out(radial: Tensor, harmonics: Tensor, addition: Tensor, at_one: Tensor, segments: Segments) -> ReadOut:
        """What the triplet operator reads: it builds U and the twin's weight on the fly."""
        return ReadOut(radial, harmonics, table=radial.new_empty(0), own=radial.new_empty(0))

    @staticmethod
    def triplet(
        x: Tensor, harmonics: Tensor, into: Segments, read: ReadOut, out_of: Segments, twin: LookUp | None
    ) -> Tensor:
        """Messages read by every edge, [E, K, C] (linear message passing, section 1)."""
        if twin is None:
            index = inverse = into.rows
        else:
            index, inverse = twin.signed, twin.inverse
        return triplet(x, harmonics, into.first, read.radial, read.harmonics, out_of.first, index, inverse)

    @staticmethod
    def pair(rad: Tensor, x: Tensor, source: Gather, by_target: Segments) -> Tensor:
        """O[a,k,i] = Σ_{pairs b→a} rad[ba,k] x[b,i]: [P, K] and [N, C] to [N, K, C]."""
        transposed = source.transposed
        return pair(rad, x, source.index, by_target.first, transposed.order, transposed.first)

    @staticmethod
    def middle_tables(
        circular: Tensor, write: Tensor, radial: Tensor, zonal: Tensor, read: Tensor, same: Tensor, rows: MiddleRows
    ) -> MiddleTables:
        """What the quadruplet operators read: the tables of out-pairs as they are."""
        empty = radial.new_empty(0)
        return MiddleTables(circular, write, radial, zonal, read, same, joint=empty, own=empty)

    @staticmethod
    def quadruplet(x: Tensor, gate: Tensor, tables: MiddleTables, taken: MiddleRows) -> Tensor:
        """Features [E_f, C] of the edges that feed to [E_r, sbf, C] of those that read (section 2)."""
        feature, middle, from_same = taken.feature.transposed, taken.middle.transposed, taken.same.transposed
        moments = quadruplet_moments(
            x, tables.circular, gate, tables.write,
            taken.by_middle.first, feature.first, taken.feature.index, feature.order,
        )  # fmt: skip
        return quadruplet_read(
            moments, tables.zonal, tables.read.flatten(1), tables.same, tables.radial, x, tables.circular, gate,
            taken.by_reader.first, middle.first, taken.middle.index, middle.order,
            from_same.first, taken.same.signed, from_same.order, feature.first, taken.feature.index, feature.order,
        )  # fmt: skip
