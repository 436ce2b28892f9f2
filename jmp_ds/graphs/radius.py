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
        UserError: positions or periodic cell rows that are not finite, or periodic rows that are linearly dependent.
    """
    _check(pos, cell, pbc)
    pairs = _propose(pos, cell, pbc, cutoff * (1.0 + 1e-6) + 1e-6)
    pairs = _canonical(pairs)
    # (pos_t - pos_s) - o·cell changes its sign exactly when the edge is reversed: equal lengths to the last bit.
    vectors = pos[pairs[:, 1]] - pos[pairs[:, 0]] - pairs[:, 2:].astype(np.float64) @ _periodic_rows(cell, pbc)
    squared = np.einsum("ei,ei->e", vectors, vectors)
    apart = squared > COINCIDENT
    pairs, squared = pairs[apart], squared[apart]
    return Candidates(np.concatenate([pairs, reverse(pairs)]), np.concatenate([squared, squared]))


def reverse(rows: IntArray) -> IntArray:
    """The same edges [E, 5] the other way round: atoms swapped, offset negated."""
    return np.concatenate([rows[:, 1:2], rows[:, 0:1], -rows[:, 2:]], axis=1)


def _propose(pos: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float) -> IntArray:
    """Undirected pairs [P, 5] from vesin, in no particular order or direction."""
    from vesin import NeighborList

    if len(pos) == 0:
        return np.zeros((0, 5), dtype=np.int64)
    # One thread: graphs are made in data workers, of which there are as many as cores.
    finder = NeighborList(cutoff=cutoff, full_list=False, n_threads=1)
    pairs, shifts = finder.compute(pos, _periodic_rows(cell, pbc), pbc, "PS")
    # Vesin's vector is pos[j] + shift·cell - pos[i]: its second atom is our source, which carries the offset.
    return np.column_stack([pairs[:, 1], pairs[:, 0], shifts]).astype(np.int64)


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
        raise UserError("positions contain NaN or infinite values: this structure has no neighbour list")
    periodic = cell[pbc]
    if not np.isfinite(periodic).all():
        raise UserError("the cell contains NaN or infinite values along a periodic axis")
    if len(periodic) and np.linalg.matrix_rank(periodic) < len(periodic):
        raise UserError(
            f"the cell vectors of the periodic axes {np.flatnonzero(pbc).tolist()} are zero or linearly dependent: "
            f"{periodic.tolist()}; mend the cell, or set pbc to false for axes that are not periodic"
        )
