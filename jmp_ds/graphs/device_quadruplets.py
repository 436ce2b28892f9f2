"""In-triplets and out-pairs of quadruplets from counted graphs, in tensor operations without host synchronisation."""

from __future__ import annotations

import torch
from jmp_kernels import LookUp
from torch import Tensor

from jmp_ds.graphs.device_lists import Counted, Size, Sizes, found, segments, uses
from jmp_ds.graphs.device_search import positions, ranges
from jmp_ds.graphs.graph import EdgeSet, Quadruplets


def quadruplets(at: Counted, sizes: Sizes, main: EdgeSet, qint: EdgeSet, edges: Tensor, middles: Tensor) -> Quadruplets:
    """The two lists of pairs that share a middle bond (specification section 3.8).

    Args:
        at, sizes: of the batch.
        main, qint: edges of the two graphs.
        edges, middles: int64 [E], [Q], where these stand among the sorted rows.
    """
    rows, masks, number = at.rows, at.masks, at.number
    of_middle, of_edge, out_pairs = uses(at)
    # in-triplets: every main edge d→b into the source of q, except the one that comes from a itself
    back = rows.reverse[middles]
    no_edge = torch.where(masks.main[back], number.main[back], main.num_edges)
    first_in = at.first.main[qint.source]
    middle, in_edge = _without_one(first_in, of_middle[middles], no_edge, sizes.in_triplets)
    # out-pairs: every q into the target of c→a, except c→a itself
    own = torch.where(masks.qint[edges], number.qint[edges], qint.num_edges)
    edge, out_middle = _without_one(at.first.qint[main.target], out_pairs[edges], own, sizes.out_pairs)
    by_middle = segments(middle, _starts(of_middle[middles]), sizes.in_triplets.width)
    by_edge = segments(edge, _starts(out_pairs[edges]), sizes.out_pairs.width)
    # the in-triplet d = c: c→b exists in the main graph with offset(ca) - offset(ba)
    c_to_b = _find(
        main, main.source[edge], qint.source[out_middle], main.offset[edge] - qint.offset[out_middle], sizes.span
    )
    within = c_to_b.index - first_in[out_middle] - (c_to_b.index > no_edge[out_middle]).long()
    exists = c_to_b.found & (c_to_b.index != no_edge[out_middle])
    same = found(by_middle.first[out_middle] + within, exists, by_middle.num_rows)
    feeds, reads = of_edge[edges] > 0, out_pairs[edges] > 0
    feeding, reading = positions(feeds, sizes.feeding), positions(reads, sizes.reading)
    out_row = (torch.cumsum(reads, 0) - 1)[edge]
    return Quadruplets(
        in_edge=in_edge,
        by_middle=by_middle,
        out_middle=out_middle,
        by_edge=by_edge,
        same=same,
        feeding=feeding,
        in_row=(torch.cumsum(feeds, 0) - 1)[in_edge],
        reading=reading,
        by_reading=segments(out_row, _starts(out_pairs[edges][reading]), sizes.out_pairs.width),
    )


def _without_one(start: Tensor, count: Tensor, left_out: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """The integers from start on, `count` of them after leaving one out: (number of the range, integer).

    Args:
        start, count: int64 [S].
        left_out: int64 [S]; beyond the range where none is left out.
        size: of the result.
    """
    owner, within = ranges(count, size.rows)
    value = start[owner] + within
    return owner, value + (value >= left_out[owner]).long()


def _starts(count: Tensor) -> Tensor:
    """Row pointer int64 [S + 1] of segments with these counts."""
    return torch.cat([count.new_zeros(1), torch.cumsum(count, 0)])


def _find(main: EdgeSet, source: Tensor, target: Tensor, offset: Tensor, span: int) -> LookUp:
    """Main edges by their ends and offset."""
    base = 2 * span + 1

    def key(s: Tensor, t: Tensor, o: Tensor) -> Tensor:
        value = s * main.by_target.count + t
        for axis in range(3):
            value = value * base + o[:, axis] + span
        return value

    have, order = torch.sort(key(main.source, main.target, main.offset))
    within = (offset.abs() <= span).all(1)
    wanted = key(source, target, torch.where(within[:, None], offset, 0))
    at = torch.searchsorted(have, wanted).clamp(max=max(main.num_edges - 1, 0))
    return LookUp(index=order[at], found=within & (have[at] == wanted), count=main.num_edges)
