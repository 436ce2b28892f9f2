"""From masks over sorted rows to the lists of a `Graph`: sizes first, and once the host knows them, the lists.

Every graph is a subset of one sorted list, so that the reverse, the twin or the own middle bond of an edge is found by
looking at one place; only the third side of a quadruplet is searched for (`device_quadruplets`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jmp_kernels import LookUp, Segments
from torch import Tensor

from jmp_ds.graphs.device_search import Rows, positions, shifted, taken
from jmp_ds.graphs.device_selection import Graphs, Sorted, before_each
from jmp_ds.graphs.graph import EdgeSet, PairSums


class Size(NamedTuple):
    """Length of a list, and its longest segment."""

    rows: int
    width: int


class Sizes(NamedTuple):
    """What the host must know before the lists can be made.

    Attributes:
        edges: of every graph, most into one atom.
        pairs: pairs of atoms joined by a2a edges, most into one atom.
        in_triplets: most of one middle bond.
        out_pairs: most of one main edge.
        feeding, reading: main edges in some in-triplet, in some out-pair.
        span: largest |component| of a candidate's offset.
    """

    edges: Graphs[Size]
    pairs: Size
    in_triplets: Size
    out_pairs: Size
    feeding: int
    reading: int
    span: int

    @classmethod
    def read(cls, values: list[int]) -> Sizes:
        """From the numbers of `count_lists`."""
        size = [Size(*values[k : k + 2]) for k in range(0, 14, 2)]
        feeding, reading, span = values[14:]
        return cls(Graphs(*size[:4]), size[4], size[5], size[6], feeding, reading, span)


@dataclass(frozen=True)
class Counted:
    """Where the edges of every graph stand in its list.

    Attributes:
        rows: sorted.
        masks: bool [R] over them.
        number: int64 [R], edges of the graph before this place: an edge's own number in the graph's list.
        first: int64 [N + 1], where the edges into every atom begin.
        degree: int64 [N], edges into every atom.
    """

    rows: Sorted
    masks: Graphs[Tensor]
    number: Graphs[Tensor]
    first: Graphs[Tensor]
    degree: Graphs[Tensor]


def counted(rows: Sorted, masks: Graphs[Tensor]) -> Counted:
    """Count through the edges of every graph."""
    before = [before_each(mask) for mask in masks]
    first = Graphs(*(b[rows.first] for b in before))
    degree = Graphs(*(f[1:] - f[:-1] for f in first))
    return Counted(rows, masks, Graphs(*(b[:-1] for b in before)), first, degree)


def uses(at: Counted) -> tuple[Tensor, Tensor, Tensor]:
    """Per sorted row, int64 [R]: in-triplets of a middle bond, in-triplets that a main edge is part of, its out-pairs.

    Zero for other rows.
    """
    rows, main, qint = at.rows, at.masks.main, at.masks.qint
    leaving = torch.zeros_like(at.degree.qint).index_add_(0, rows.source, qint.long())
    of_middle = torch.where(qint, taken(at.degree.main, rows.source) - taken(main, rows.reverse).long(), 0)
    of_edge = torch.where(main, taken(leaving, rows.target) - taken(qint, rows.reverse).long(), 0)
    out_pairs = torch.where(main, taken(at.degree.qint, rows.target) - qint.long(), 0)
    return of_middle, of_edge, out_pairs


def count_lists(at: Counted, candidates: Rows) -> Tensor:
    """Every number of `Sizes`, int64 [17], in their order."""
    values = []
    for degree in at.degree:
        values += [degree.sum(), _largest(degree)]
    present, into = _pairs_present(at, candidates)
    values += [present.sum(), _largest(torch.zeros_like(at.degree.main).index_add_(0, into, present))]
    of_middle, of_edge, out_pairs = uses(at)
    values += [of_middle.sum(), _largest(of_middle), out_pairs.sum(), _largest(out_pairs)]
    values += [(of_edge > 0).sum(), (out_pairs > 0).sum()]
    span = torch.where(candidates.valid[:, None], candidates.offset.abs(), 0)
    return torch.stack([*values, _largest(span.flatten())])


def _pairs_present(at: Counted, candidates: Rows) -> tuple[Tensor, Tensor]:
    """For every possible ordered pair of atoms whether an a2a edge joins it (0 or 1), and its target."""
    rows, some = at.rows, candidates.num_pairs
    pair = taken(candidates.pair, rows.canonical)
    # both directions of an atom's own images are one and the same pair
    turned = ~rows.is_canonical & (rows.source != rows.target)
    pair = torch.where(at.masks.a2a, pair + turned.long() * some, 2 * some)
    present = pair.new_zeros(2 * some + 1).scatter_(0, pair, 1)
    into = pair.new_zeros(2 * some + 1).scatter_(0, pair, rows.target)
    return present[:-1], into[:-1]


def _largest(values: Tensor) -> Tensor:
    """The largest of int64 [...] that are not negative; 0 if there are none."""
    return torch.cat([values, values.new_zeros(1)]).amax()


def segments(index: Tensor, first: Tensor, width: int) -> Segments:
    """Segments whose parts are known already."""
    rank = torch.arange(index.shape[0], device=index.device) - first[index]
    return Segments(index=index, first=first, slot=index * width + rank, count=first.shape[0] - 1, width=width)


def edge_set(place: Tensor, first: Tensor, width: int, rows: Sorted, candidates: Rows, shifts: Shifts) -> EdgeSet:
    """One graph's edges.

    Args:
        place: int64 [E], where they stand among the sorted rows.
        first: int64 [N + 1], where those into every atom begin.
        width: most edges into one atom.
        rows, candidates: sorted, and as found.
        shifts: makes lengths of offsets.
    """
    offset = taken(candidates.offset, taken(rows.canonical, place))
    offset = torch.where(taken(rows.is_canonical, place)[:, None], offset, -offset)
    target = rows.target[place]
    return EdgeSet(
        source=rows.source[place],
        target=target,
        offset=offset,
        shift=shifts(offset, target),
        by_target=segments(target, first, width),
    )


@dataclass(frozen=True)
class Shifts:
    """Offsets to shifts in Å: with the published rules in single precision, as `graph.collate_graph` does.

    Attributes:
        structure: int64 [N].
        cell: float64 [B, 3, 3], with all three rows also where an axis is not periodic.
        published: bool [B].
    """

    structure: Tensor
    cell: Tensor
    published: Tensor

    def __call__(self, offset: Tensor, target: Tensor) -> Tensor:
        """float64 [E, 3] for offsets int64 [E, 3] of edges into the given atoms."""
        structure = self.structure[target]
        single = shifted(offset, self.cell.float(), structure).double()
        return torch.where(self.published[structure][:, None], single, shifted(offset, self.cell, structure))


def found(index: Tensor, mask: Tensor, count: int) -> LookUp:
    """A look-up among `count` rows, with 0 where there is nothing."""
    return LookUp(index=torch.where(mask, index, 0), found=mask, count=count)


def pair_sums(a2a: EdgeSet, size: Size, num_atoms: int) -> PairSums:
    """The a2a edges by pair of atoms, pairs sorted by target and source."""
    key, order = torch.sort(a2a.target * num_atoms + a2a.source, stable=True)
    new = torch.ones_like(key, dtype=torch.bool)
    new[1:] = key[1:] != key[:-1]
    pair = torch.empty_like(order).scatter_(0, order, torch.cumsum(new, 0) - 1)
    pairs = key[positions(new, size.rows)]
    target = torch.div(pairs, max(num_atoms, 1), rounding_mode="floor")
    first = torch.searchsorted(target, torch.arange(num_atoms + 1, device=key.device))
    return PairSums(pair=pair, source=pairs - target * num_atoms, by_target=segments(target, first, size.width))
