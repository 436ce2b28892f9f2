"""The four graphs of a batch as integers: edges sorted by target, and the look-ups between them.

No distance is stored and no triplet or quadruplet is listed; the longest lists are pairs (edge, quadruplet middle bond).
Geometry is computed from positions by the model, so that it can be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jmp_kernels import Gather, LookUp, MiddleRows, Segments, cached_index, segments_of
from numpy.typing import NDArray
from torch import Tensor

from jmp_ds.graphs.lookup import EdgeTable, expand_ranges
from jmp_ds.graphs.neighbors import EdgeLists
from jmp_ds.graphs.settings import GraphSettings

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class EdgeSet:
    """Directed edges s→t, sorted by target.

    Attributes:
        source, target: int64 [E], atoms of the batch.
        offset: int64 [E, 3], the cell of the source's image; the edge runs from pos[s] + offset·cell to pos[t].
        shift: float64 [E, 3], offset·cell in Å.
        by_target: the edges as segments, one per atom.
    """

    source: Tensor
    target: Tensor
    offset: Tensor
    shift: Tensor
    by_target: Segments

    @property
    def num_edges(self) -> int:
        """E."""
        return self.source.shape[0]

    @cached_property
    def by_source(self) -> Gather:
        """The source atom of every edge."""
        return Gather(self.source, self.by_target.count)


@dataclass(frozen=True)
class PairSums:
    """The atom-atom graph with the periodic images of one atom pair taken together.

    Attributes:
        pair: int64 [E_a2a], the pair of every a2a edge.
        source: int64 [P], source atom of every pair.
        by_target: the pairs as segments, one per target atom.
    """

    pair: Tensor
    source: Tensor
    by_target: Segments

    @cached_property
    def by_pair(self) -> Gather:
        """The pair of every a2a edge."""
        return Gather(self.pair, self.source.shape[0])

    @cached_property
    def by_source(self) -> Gather:
        """The source atom of every pair."""
        return Gather(self.source, self.by_target.count)


@dataclass(frozen=True)
class Quadruplets:
    """Quadruplets d→b→a←c as two lists of pairs that share the middle bond q = (b→a) of the qint graph.

    Attributes:
        in_edge: int64 [R_in], main edge d→b of every in-triplet (d is not a); `by_middle` gives its q.
        by_middle: the in-triplets as segments, one per qint edge.
        out_middle: int64 [R_out], q of every out-pair; `by_edge` gives its main edge c→a (c is not b).
        by_edge: the out-pairs as segments, one per main edge.
        same: for every out-pair the in-triplet of the same q with d = c, which is not a quadruplet.
        feeding: int64 [E_f], the main edges that are part of an in-triplet, ascending.
        in_row: int64 [R_in], where `in_edge` stands in `feeding`.
        reading: int64 [E_r], the main edges that are part of an out-pair, ascending.
        by_reading: the out-pairs as segments, one per edge of `reading`.
    """

    in_edge: Tensor
    by_middle: Segments
    out_middle: Tensor
    by_edge: Segments
    same: LookUp
    feeding: Tensor
    in_row: Tensor
    reading: Tensor
    by_reading: Segments


@dataclass(frozen=True)
class Graph:
    """The four graphs over the N atoms of B structures (specification section 3; linear message passing, section 4).

    Attributes:
        main: edges that carry embeddings; symmetric.
        a2a, a2ee2a, qint: atom-atom, atom-edge and quadruplet-middle graphs.
        reverse: int64 [E], index of the reverse of every main edge.
        twin: for every main edge the a2ee2a edge with the same ends and offset.
        pairs: a2a edges by atom pair.
        quadruplets: in-triplets and out-pairs.
        envelope_end_of_atom: float64 [N], length in Å at which the radial envelope of an atom's structure ends.
        num_atoms, num_structures: N, B.
    """

    main: EdgeSet
    a2a: EdgeSet
    a2ee2a: EdgeSet
    qint: EdgeSet
    reverse: Tensor
    twin: LookUp
    pairs: PairSums
    quadruplets: Quadruplets
    envelope_end_of_atom: Tensor
    num_atoms: int
    num_structures: int

    @property
    def num_edges(self) -> int:
        """Edges of the main graph."""
        return self.main.num_edges

    @cached_index
    def middle_rows(self) -> MiddleRows:
        """What the sums over quadruplets take, where features are those of `feeding` and results those of `reading`."""
        quads = self.quadruplets
        return MiddleRows(
            feature=Gather(quads.in_row, quads.feeding.shape[0]),
            by_middle=quads.by_middle,
            middle=Gather(quads.out_middle, quads.by_middle.count),
            by_reader=quads.by_reading,
            same=quads.same,
            reader_target=self.main.target.index_select(0, quads.reading),
            middle_target=self.qint.target,
        )


def collate_graph(
    edge_lists: Sequence[EdgeLists],
    natoms: Sequence[int],
    cells: Sequence[NDArray[np.float64]],
    settings: Sequence[GraphSettings],
) -> Graph:
    """Graph of a batch from the edge lists of its structures (each sorted by target, atoms counted from 0).

    Args:
        edge_lists: per structure.
        natoms: per structure.
        cells: [3, 3] per structure, rows in Å.
        settings: per structure; decides the envelope's end and the precision of offsets.

    Raises:
        ValueError: a main graph is not symmetric, or an edge list is not sorted by target.
    """
    num_atoms = int(sum(natoms))
    first = np.concatenate([[0], np.cumsum(np.asarray(natoms, dtype=np.int64))])
    tables = {}
    edge_sets = {}
    for name in EdgeLists._fields:
        rows, shift = _concatenated([getattr(e, name) for e in edge_lists], first, cells, settings)
        tables[name] = EdgeTable(rows, num_atoms)
        edge_sets[name] = _edge_set(rows, shift, num_atoms)
    main = tables["main"]
    reverse = main.find(main.target, main.source, -main.offset)
    if (reverse < 0).any():
        raise ValueError("the main graph is not symmetric: some edge has no reverse")
    return Graph(
        **edge_sets,
        reverse=torch.from_numpy(reverse),
        twin=_look_up(tables["a2ee2a"].find(main.source, main.target, main.offset), tables["a2ee2a"].num_edges),
        pairs=_pair_sums(tables["a2a"], num_atoms),
        quadruplets=_quadruplets(main, tables["qint"]),
        envelope_end_of_atom=torch.from_numpy(np.repeat([float(s.envelope_end) for s in settings], natoms)),
        num_atoms=num_atoms,
        num_structures=len(natoms),
    )


def _concatenated(
    lists: Sequence[IntArray],
    first: IntArray,
    cells: Sequence[NDArray[np.float64]],
    settings: Sequence[GraphSettings],
) -> tuple[IntArray, NDArray[np.float64]]:
    """Edge rows of a batch with atoms counted through, and the Cartesian shift of every edge."""
    rows, shifts = [np.empty((0, 5), dtype=np.int64)], [np.empty((0, 3))]
    for k, edges in enumerate(lists):
        edges = np.asarray(edges, dtype=np.int64).reshape(-1, 5)
        rows.append(edges + np.array([first[k], first[k], 0, 0, 0]))
        shifts.append(_shift(edges[:, 2:], cells[k], settings[k]))
    return np.concatenate(rows), np.concatenate(shifts)


def _shift(offset: IntArray, cell: NDArray[np.float64], settings: GraphSettings) -> NDArray[np.float64]:
    """offset · cell; with the published rules in single precision, as published checkpoints saw it (specification 3.3)."""
    if settings.symmetrize == "jmp":
        single = np.asarray(cell, dtype=np.float32)
        steps = [offset[:, k : k + 1].astype(np.float32) * single[k] for k in range(3)]
        # product by product, each rounded: a fused product would differ in the last bit, and where bonds of a crystal are
        # straight but for rounding, the published dihedral reads its azimuth from that bit
        return ((steps[0] + steps[1]) + steps[2]).astype(np.float64)
    return offset.astype(np.float64) @ np.asarray(cell, dtype=np.float64)


def _edge_set(rows: IntArray, shift: NDArray[np.float64], num_atoms: int) -> EdgeSet:
    columns = torch.from_numpy(rows)
    target = columns[:, 1].contiguous()
    return EdgeSet(
        source=columns[:, 0].contiguous(),
        target=target,
        offset=columns[:, 2:].contiguous(),
        shift=torch.from_numpy(shift),
        by_target=segments_of(target, num_atoms),
    )


def _look_up(index: IntArray, count: int) -> LookUp:
    """A look-up among `count` rows, from the row or -1."""
    return LookUp(index=torch.from_numpy(np.maximum(index, 0)), found=torch.from_numpy(index >= 0), count=count)


def _pair_sums(a2a: EdgeTable, num_atoms: int) -> PairSums:
    pairs, pair = np.unique(a2a.target * max(num_atoms, 1) + a2a.source, return_inverse=True)
    target, source = np.divmod(pairs, max(num_atoms, 1))
    return PairSums(
        pair=torch.from_numpy(pair.reshape(-1)),
        source=torch.from_numpy(source),
        by_target=segments_of(torch.from_numpy(target), num_atoms),
    )


def _quadruplets(main: EdgeTable, qint: EdgeTable) -> Quadruplets:
    """In-triplets and out-pairs (specification section 3.8, without the quadruplets themselves)."""
    # in-triplets: every main edge d→b into the source of q, except the one that comes from a itself
    middle, in_edge = expand_ranges(main.first[qint.source], main.first[qint.source + 1])
    back = main.find(qint.target, qint.source, -qint.offset)
    kept = in_edge != back[middle]
    middle, in_edge = middle[kept], in_edge[kept]
    # out-pairs: every q into the target of c→a, except c→a itself
    edge, out_middle = expand_ranges(qint.first[main.target], qint.first[main.target + 1])
    own = qint.find(main.source, main.target, main.offset)
    kept = out_middle != own[edge]
    edge, out_middle = edge[kept], out_middle[kept]
    # the in-triplet d = c: c→b exists in the main graph with offset(ca) - offset(ba)
    c_to_b = main.find(main.source[edge], qint.source[out_middle], main.offset[edge] - qint.offset[out_middle])
    key = middle * max(main.num_edges, 1) + in_edge
    wanted = out_middle * max(main.num_edges, 1) + c_to_b
    at = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
    same = np.where((c_to_b >= 0) & (key[at] == wanted), at, -1) if len(key) else np.full(len(edge), -1)
    feeding, in_row = np.unique(in_edge, return_inverse=True)
    reading, out_row = np.unique(edge, return_inverse=True)
    return Quadruplets(
        in_edge=torch.from_numpy(in_edge),
        by_middle=segments_of(torch.from_numpy(middle), qint.num_edges),
        out_middle=torch.from_numpy(out_middle),
        by_edge=segments_of(torch.from_numpy(edge), main.num_edges),
        same=_look_up(same.astype(np.int64), len(in_edge)),
        feeding=torch.from_numpy(feeding),
        in_row=torch.from_numpy(in_row.reshape(-1)),
        reading=torch.from_numpy(reading),
        by_reading=segments_of(torch.from_numpy(out_row.reshape(-1)), len(reading)),
    )
