"""All pairs of atoms of one structure within a cutoff, each undirected pair once, in a fixed order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

#: Squared length (Å²) up to which two atoms count as one and are not joined (specification section 3.3).
COINCIDENT = 1e-4
#: Structures wider than this (Å) are refused: their coordinates are in another unit, or damaged.
LARGEST = 1e5
#: What is said about positions that are not finite.
NOT_FINITE = "positions contain NaN or infinite values: this structure has no neighbour list"
#: Bins of the radius search above which it looks further than it must, with fewer bins.
MOST_BINS = 50_000


class Candidates(NamedTuple):
    """Every possible edge, both directions: rows k and k + P, with P = len(rows) // 2, are each other's reverse.

    Attributes:
        rows: int64 [2P, 5], columns (source, target, o1, o2, o3); o is the cell offset of the source. The first P rows
            are canonical (source < target, or source == target and the first non-zero offset is negative), sorted by
            their columns.
        squared: float64 [2P], squared lengths in Å², exactly equal for an edge and its reverse.
    """

    rows: IntArray
    squared: FloatArray

    @property
    def num_pairs(self) -> int:
        """P."""
        return len(self.rows) // 2


def search(pos: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float) -> Candidates:
    """Every pair of atoms, periodic images included, whose distance is at most slightly above the cutoff.

    The neighbour library only proposes pairs, with a margin; lengths are recomputed here from the float64 positions, so
    what is kept in the end does not depend on its arithmetic. Selection rules apply their own limit to `squared`.

    Args:
        pos: float64 [n, 3] in Å.
        cell: float64 [3, 3], rows in Å; rows of axes without periodicity are ignored and may be zero.
        pbc: bool [3].
        cutoff: in Å.

    Raises:
        UserError: positions or periodic cell rows that are not finite, periodic rows that are linearly dependent, or a
            structure wider than `LARGEST`.
    """
    _check(pos, cell, pbc)
    reach = margin(cutoff)
    pairs = _canonical(_propose(pos, cell, pbc, reach))
    # (pos_t - pos_s) - o·cell changes its sign exactly when the edge is reversed: equal lengths to the last bit.
    # Product by product, sum by sum: the same bits wherever graphs are built.
    steps = [pairs[:, 2 + k : 3 + k].astype(np.float64) * row for k, row in enumerate(_periodic_rows(cell, pbc))]
    vectors = (pos[pairs[:, 1]] - pos[pairs[:, 0]]) - ((steps[0] + steps[1]) + steps[2])
    x, y, z = vectors.T
    squared = (x * x + y * y) + z * z
    kept = (squared > COINCIDENT) & (squared <= reach * reach)
    pairs, squared = pairs[kept], squared[kept]
    return Candidates(np.concatenate([pairs, reverse(pairs)]), np.concatenate([squared, squared]))


def margin(cutoff: float) -> float:
    """The length in Å up to which pairs are looked for: the rules have the last word about the cutoff."""
    return cutoff * (1.0 + 1e-6) + 1e-6


def reverse(rows: IntArray) -> IntArray:
    """The same edges [E, 5] the other way round: atoms swapped, offset negated."""
    return np.concatenate([rows[:, 1:2], rows[:, 0:1], -rows[:, 2:]], axis=1)


def _propose(pos: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float) -> IntArray:
    """Undirected pairs [P, 5] from vesin, in no particular order or direction, longer ones than asked for among them.

    Vesin 0.6 takes minutes, or divides by zero and ends the process, when thin cells or missing periodicity meet a wide
    spread of atoms. It is therefore given a box that is periodic along all axes, wide enough along those that are not for
    no image to come near, and a search length that keeps its number of bins moderate.
    """
    from vesin import NeighborList

    if len(pos) == 0:
        return np.zeros((0, 5), dtype=np.int64)
    box = _padded_box(pos, cell, pbc, cutoff)
    # One thread: graphs are made in data workers, of which there are as many as cores.
    finder = NeighborList(cutoff=_search_length(box, cutoff), full_list=False, n_threads=1)
    pairs, shifts = finder.compute(pos, box, np.ones(3, dtype=bool), "PS")
    # Vesin's vector is pos[j] + shift·cell - pos[i]: its second atom is our source, which carries the offset.
    rows = np.column_stack([pairs[:, 1], pairs[:, 0], shifts]).astype(np.int64)
    return rows[(shifts[:, ~pbc] == 0).all(axis=1)]


def _padded_box(pos: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float) -> FloatArray:
    """The periodic rows of the cell, and perpendicular to them rows longer than the structure and the cutoff together."""
    periodic = cell[pbc]
    spread = float(np.linalg.norm(np.ptp(pos, axis=0)))
    box = cell.copy()
    # the last right-singular vectors of the periodic rows are an orthonormal basis of what is perpendicular to them
    box[~pbc] = np.linalg.svd(periodic)[2][len(periodic) :] * (spread + 2.0 * cutoff)
    widest = max(spread, float((1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)).max()))
    check_width(widest)
    return box


def _search_length(box: FloatArray, cutoff: float) -> float:
    """The cutoff, or as much more as it takes for bins of that size to be at most `MOST_BINS`."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)
    length = cutoff
    while np.prod(np.maximum(heights / length, 1.0)) > MOST_BINS:
        length *= 1.25
    return length


def _canonical(pairs: IntArray) -> IntArray:
    """Every pair turned to its canonical direction, sorted by its columns."""
    source, target, o1, o2, o3 = pairs.T
    positive = (o1 > 0) | ((o1 == 0) & ((o2 > 0) | ((o2 == 0) & (o3 > 0))))
    turned = (source > target) | ((source == target) & positive)
    pairs = np.where(turned[:, None], reverse(pairs), pairs)
    return pairs[np.lexsort(pairs.T[::-1])]


def _periodic_rows(cell: FloatArray, pbc: BoolArray) -> FloatArray:
    """The cell with zeros where an axis is not periodic."""
    return np.where(pbc[:, None], cell, 0.0)


def _check(pos: FloatArray, cell: FloatArray, pbc: BoolArray) -> None:
    """Refuse what has no neighbour list."""
    if not np.isfinite(pos).all():
        raise UserError(NOT_FINITE)
    check_cell(cell, pbc)


def check_width(widest: float) -> None:
    """Refuse a structure or a cell wider than `LARGEST` (in Å)."""
    if widest > LARGEST:
        raise UserError(f"the atoms or the cell span {widest:.3g} Å: are positions and cell really in Å?")


def check_cell(cell: FloatArray, pbc: BoolArray) -> None:
    """Refuse a cell [3, 3] that is not finite, or not of full rank, along its periodic axes."""
    periodic = cell[pbc]
    if not np.isfinite(periodic).all():
        raise UserError("the cell contains NaN or infinite values along a periodic axis")
    if len(periodic) and np.linalg.matrix_rank(periodic) < len(periodic):
        raise UserError(
            f"the cell vectors of the periodic axes {np.flatnonzero(pbc).tolist()} are zero or linearly dependent: "
            f"{periodic.tolist()}; mend the cell, or set pbc to false for axes that are not periodic"
        )
