"""Lists of triplets and quadruplets, and where each entry stands in a zero-padded matrix (specification section 3.8).

Everything is made from the four edge lists by sorted ranges and masks, on the device of the batch. Lists belong to a batch
and are made before a step is timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.graph import EdgeSet
from jmp_ds.models.config import BackboneConfig


@dataclass(frozen=True)
class Padding:
    """Rows in groups, laid out as a matrix [count, width].

    Attributes:
        place: int64 [T], group · width + rank in the group.
        count: number of groups.
        width: size of the largest group.
    """

    place: Tensor
    count: int
    width: int


@dataclass(frozen=True)
class Triplets:
    """Pairs of edges that end at one atom, sorted by the output edge.

    Attributes:
        into: int64 [T], input edge b→a.
        out: int64 [T], output edge c→a.
        padding: of the triplets, by output edge.
    """

    into: Tensor
    out: Tensor
    padding: Padding


@dataclass(frozen=True)
class Quadruplets:
    """Quadruplets d→b→a←c: pairs of an input triplet (d→b, b→a) and an output triplet (b→a, c→a).

    Attributes:
        in_edge, in_middle: int64 [T_in], main edge d→b and qint edge b→a.
        out_edge, out_middle: int64 [T_out], main edge c→a and qint edge b→a, sorted by c→a.
        into, out: int64 [Q], input and output triplet of every quadruplet, sorted by c→a.
        padding: of the quadruplets, by c→a.
    """

    in_edge: Tensor
    in_middle: Tensor
    out_edge: Tensor
    out_middle: Tensor
    into: Tensor
    out: Tensor
    padding: Padding


@dataclass(frozen=True)
class EnumeratedLists:
    """All lists of one batch.

    Attributes:
        e2e: main to main edges.
        a2e: a2ee2a to main edges.
        e2a: main to a2ee2a edges.
        quadruplets: over main and qint edges.
        a2a, a2ee2a: those edges by target atom.
    """

    e2e: Triplets
    a2e: Triplets
    e2a: Triplets
    quadruplets: Quadruplets
    a2a: Padding
    a2ee2a: Padding


def enumerate_batch(batch: Batch) -> EnumeratedLists:
    """The lists of a batch, on its device."""
    graph, atoms = batch.graph, batch.num_atoms
    return EnumeratedLists(
        e2e=_triplets(graph.main, graph.main, atoms),
        a2e=_triplets(graph.a2ee2a, graph.main, atoms),
        e2a=_triplets(graph.main, graph.a2ee2a, atoms),
        quadruplets=_quadruplets(graph.main, graph.qint, atoms),
        a2a=_padding(graph.a2a.target, atoms),
        a2ee2a=_padding(graph.a2ee2a.target, atoms),
    )


def padded_bytes(batch: Batch, config: BackboneConfig, element_size: int = 4, gradient_forces: bool = False) -> int:
    """Memory that the padded tensors of one training step take, from edge counts alone: the lists are not made.

    Counted is what autograd keeps: bases once per step, of every block the messages whose bases depend on parameters or,
    for forces that are gradients of the energy, on positions; and twice the largest message, for what comes and goes.
    Terms that the lists exclude count as if present, so the estimate is high, for real structures by some percent.

    Args:
        batch: with its graph.
        config: sizes.
        element_size: bytes of one feature.
        gradient_forces: whether forces are gradients of the energy.
    """
    graph, c, atoms = batch.graph, config, batch.num_atoms
    degree = {name: torch.bincount(getattr(graph, name).target, minlength=atoms) for name in _GRAPHS}
    width = {name: int(each.max()) if atoms else 0 for name, each in degree.items()}
    # of every atom a, the quadruplets that an edge into a ends: main edges into the sources of its qint edges
    per_qint = degree["main"][graph.qint.source]
    per_atom = torch.zeros_like(degree["main"]).index_add_(0, graph.qint.target, per_qint)
    main, a2ee2a = graph.main.num_edges, graph.a2ee2a.num_edges
    quadruplets = main * (int(per_atom.max()) if atoms else 0)
    triplets = main * (width["main"] + width["a2ee2a"]) + a2ee2a * width["main"]
    pairs, orders = atoms * width["a2a"], c.num_spherical
    second_level = atoms * width["a2ee2a"] * orders
    bases = triplets * orders + quadruplets * orders**2 + pairs * c.emb_size_rbf + second_level * c.emb_size_cbf
    per_block = pairs * c.emb_size_aint_in + second_level * c.emb_size_trip_in
    largest = max(quadruplets * c.emb_size_quad_in, triplets * c.emb_size_trip_in)
    if gradient_forces:
        per_block += triplets * c.emb_size_trip_in + quadruplets * c.emb_size_quad_in
    return element_size * (bases + c.num_blocks * per_block + 2 * largest)


_GRAPHS = ("main", "a2a", "a2ee2a")


def _triplets(inputs: EdgeSet, outputs: EdgeSet, atoms: int) -> Triplets:
    """(b→a, c→a) of two graphs, without those of the same source atom and the same cell offset."""
    into, out = _joined(_first(inputs.target, atoms), outputs.target)
    same = (inputs.source[into] == outputs.source[out]) & _equal(inputs.offset[into], outputs.offset[out])
    into, out = into[~same], out[~same]
    return Triplets(into=into, out=out, padding=_padding(out, outputs.num_edges))


def _quadruplets(main: EdgeSet, qint: EdgeSet, atoms: int) -> Quadruplets:
    # d→b into b→a, but not from a itself
    in_edge, in_middle = _joined(_first(main.target, atoms), qint.source)
    back = (main.source[in_edge] == qint.target[in_middle]) & _equal(main.offset[in_edge], -qint.offset[in_middle])
    in_edge, in_middle = in_edge[~back], in_middle[~back]
    outer = _triplets(qint, main, atoms)
    # both triplets of one b→a, but not with d = c
    into, out = _joined(_first(in_middle, qint.num_edges), outer.into)
    db, ba, ca = in_edge[into], in_middle[into], outer.out[out]
    same = (main.source[db] == main.source[ca]) & _equal(main.offset[db] + qint.offset[ba], main.offset[ca])
    into, out = into[~same], out[~same]
    return Quadruplets(
        in_edge=in_edge,
        in_middle=in_middle,
        out_edge=outer.out,
        out_middle=outer.into,
        into=into,
        out=out,
        padding=_padding(outer.out[out], main.num_edges),
    )


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Rows [T, 3] that agree."""
    return (a == b).all(dim=1)


def _first(group: Tensor, count: int) -> Tensor:
    """Where every group begins in rows sorted by group, and where the last ends: int64 [count + 1]."""
    size = torch.bincount(group, minlength=count)
    return torch.cat([size.new_zeros(1), torch.cumsum(size, 0)])


def _joined(first: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """All (left, right) of which left is in the group of right, sorted by right and then by left.

    Args:
        first: where every group of left rows begins.
        group: of every right row.
    """
    start = first[group]
    length = first[group + 1] - start
    right = torch.repeat_interleave(torch.arange(group.shape[0], device=group.device), length)
    begins = torch.cumsum(length, 0) - length
    rank = torch.arange(right.shape[0], device=group.device) - begins[right]
    return start[right] + rank, right


def _padding(group: Tensor, count: int) -> Padding:
    """Places of rows that are sorted by group."""
    first = _first(group, count)
    width = int((first[1:] - first[:-1]).max()) if count else 0
    rank = torch.arange(group.shape[0], device=group.device) - first[group]
    return Padding(place=group * width + rank, count=count, width=width)
