"""Which of the possible edges each of the four graphs keeps: the published rule and the invariant one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jmp_ds.graphs.radius import BoolArray, Candidates, FloatArray, IntArray
from jmp_ds.graphs.settings import Caps

#: Edges at most this much longer (Å) than the last one under a cap are tied with it (invariant rule).
TIE = 1e-4
#: The invariant rule keeps edges shorter than the cutoff by more than this (Å): a shell at the cutoff goes as a whole.
EDGE_OF_CUTOFF = 1e-5

#: Gives as many uniform numbers in [0, 1) as asked for; None where nothing is dropped.
Draw = Callable[[int], FloatArray]


class Masks(NamedTuple):
    """One bool per candidate row for every graph."""

    main: BoolArray
    a2a: BoolArray
    a2ee2a: BoolArray
    qint: BoolArray


def row_order(candidates: Candidates) -> IntArray:
    """Permutation that sorts candidate rows by (target, squared length, source, offset): the stable order of the caps."""
    rows = candidates.rows
    return np.lexsort((rows[:, 4], rows[:, 3], rows[:, 2], rows[:, 0], candidates.squared, rows[:, 1]))


def published_masks(
    candidates: Candidates,
    order: IntArray,
    natoms: int,
    cutoff: float,
    caps: Caps,
    periodic: bool,
    drop: Draw | None,
    p: float,
) -> Masks:
    """The published rule (specification sections 3.1 to 3.5), ties cut in the order of `row_order`.

    Non-periodic structures keep lengths strictly below the cutoff, periodic ones also the cutoff itself. Every target
    keeps its `cap` shortest incoming edges. Dropout takes directed a2a edges after a2a's own cap and before the other
    three caps. main keeps the canonical direction of what its cap leaves and adds the reverse, dropped or not.
    """
    limit = cutoff * cutoff
    inside = candidates.squared <= limit if periodic else candidates.squared < limit
    target = candidates.rows[:, 1]
    a2a = _strict_cap(inside, order, target, natoms, caps.a2a)
    if drop is not None:
        a2a &= drop(len(a2a)) >= p
    directed = _strict_cap(a2a, order, target, natoms, caps.main)
    canonical = directed[: candidates.num_pairs]
    return Masks(
        main=np.concatenate([canonical, canonical]),
        a2a=a2a,
        a2ee2a=_strict_cap(a2a, order, target, natoms, caps.a2ee2a),
        qint=_strict_cap(a2a, order, target, natoms, caps.qint),
    )


def invariant_masks(
    candidates: Candidates, order: IntArray, natoms: int, cutoff: float, caps: Caps, drop: Draw | None, p: float
) -> Masks:
    """The invariant rule: an edge is kept iff either end has it among its nearest, ties kept, in all four graphs.

    An atom's reach under a cap is the length of its cap-th shortest edge plus `TIE` (infinite if it has no more than cap
    edges); an edge is kept, in both directions, iff it is no longer than the reach of at least one of its two atoms. All
    four graphs are therefore symmetric. Ties are measured from the last edge under the cap and not by rounding every
    length to a grid: with a grid, a shell of equal lengths that lies on a rounding boundary (2.00005 Å, say) is split by
    the last bits of the arithmetic, which differ between a primitive cell and its repetition. For the same reason the
    limit of the cutoff lies a little below its round number, where crystals may well have a shell. What is kept then
    depends on the geometry alone, not on the order of atoms, the orientation or the cell, as long as coordinates are exact
    to some 1e-6 Å, as float32 ones of usual size are, and no two shells differ by `TIE` to that accuracy.

    Dropout takes undirected pairs, each periodic image by itself, after a2a's own cap and before the other three.
    """
    length = np.sqrt(candidates.squared)
    ends = candidates.rows[:, :2]
    a2a = _either_end(length < cutoff - EDGE_OF_CUTOFF, length, order, ends, natoms, caps.a2a)
    if drop is not None:
        a2a &= np.tile(drop(candidates.num_pairs) >= p, 2)
    return Masks(
        main=_either_end(a2a, length, order, ends, natoms, caps.main),
        a2a=a2a,
        a2ee2a=_either_end(a2a, length, order, ends, natoms, caps.a2ee2a),
        qint=_either_end(a2a, length, order, ends, natoms, caps.qint),
    )


def touches_tag(candidates: Candidates, tags: IntArray, wanted: tuple[int, ...]) -> BoolArray:
    """Rows whose source or target carries one of the wanted tags (specification section 3.1, step 4)."""
    chosen = np.isin(tags, wanted)
    return chosen[candidates.rows[:, 0]] | chosen[candidates.rows[:, 1]]


def _strict_cap(mask: BoolArray, order: IntArray, target: IntArray, natoms: int, cap: int) -> BoolArray:
    """Of the rows in the mask, the first `cap` of every target in the given order (which goes by target)."""
    kept = order[mask[order]]
    targets = target[kept]
    first = _first_of_target(targets, natoms)
    result = np.zeros_like(mask)
    result[kept[np.arange(len(kept)) - first[targets] < cap]] = True
    return result


def _either_end(
    mask: BoolArray, length: FloatArray, order: IntArray, ends: IntArray, natoms: int, cap: int
) -> BoolArray:
    """Of the rows in the (symmetric) mask, those within the reach of their source or of their target."""
    kept = order[mask[order]]
    targets = ends[kept, 1]
    first = _first_of_target(targets, natoms)
    degree = np.bincount(targets, minlength=natoms)
    reach = np.full(natoms, np.inf if cap > 0 else -np.inf)
    if cap > 0:
        full = degree > cap
        reach[full] = length[kept[first[full] + cap - 1]] + TIE
    return mask & (length <= np.maximum(reach[ends[:, 0]], reach[ends[:, 1]]))


def _first_of_target(targets: IntArray, natoms: int) -> IntArray:
    """Where every target's rows begin in a list sorted by target."""
    return np.searchsorted(targets, np.arange(natoms))
