"""The graph of one structure that moves: pairs are looked for within a skin, and what still holds is used again.

Which edges there are is decided anew for every geometry, by the same rules as in training; reused are the pairs of atoms
that can be edges at all, as long as no atom has moved by half the skin, and the whole graph, as long as the rules choose
the same edges. A graph that is used again differs from a new one by the order of edges at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure
from jmp_ds.graphs.graph import Graph, collate_graph
from jmp_ds.graphs.neighbors import EdgeLists
from jmp_ds.graphs.radius import COINCIDENT, Candidates, FloatArray, IntArray, search
from jmp_ds.graphs.selection import Masks, invariant_masks, published_masks, row_order, touches_tag
from jmp_ds.graphs.settings import GraphSettings


@dataclass
class Counts:
    """How much was done: graphs asked for, searches for pairs, graphs made."""

    asked: int = 0
    searched: int = 0
    made: int = 0


@dataclass(frozen=True)
class _Pairs:
    """Pairs of atoms that are near each other, and the structure they were found for.

    Attributes:
        structure: as it was.
        rows: int64 [2P, 5], see `Candidates`.
        shift: float64 [P, 3], cell offset of the source of the first P rows, Å.
    """

    structure: Structure
    rows: IntArray
    shift: FloatArray


class MovingGraph:
    """Graphs of one structure after another, at little cost where they are geometries of the same atoms.

    Attributes:
        settings: what decides the edges.
        skin: Å by which pairs are looked for beyond the cutoff; 0 looks for them every time.
        counts: how much was reused.
    """

    def __init__(self, settings: GraphSettings, skin: float) -> None:
        """Args: as the attributes.

        Raises:
            UserError: a negative skin.
        """
        if not skin >= 0.0:
            raise UserError(f"skin: must be 0 Å or more, got {skin}")
        self.settings, self.skin = settings, skin
        self.counts = Counts()
        self._pairs: _Pairs | None = None
        self._masks: Masks | None = None
        self._graph: Graph | None = None

    def graph(self, structure: Structure) -> Graph:
        """The graph, on the host.

        Raises:
            UserError: the structure has no neighbour list, or two atoms are at the same place.
        """
        self.counts.asked += 1
        pairs = self._pairs
        if pairs is None or not self._hold(pairs.structure, structure):
            pairs = self._searched(structure)
        candidates = _measured(pairs, structure)
        order = row_order(candidates)
        masks = _masks(candidates, order, structure, self.settings)
        if self._graph is None or not _same(masks, self._masks):
            lists = EdgeLists(*(candidates.rows[order[mask[order]]] for mask in masks))
            self._graph = collate_graph([lists], [structure.natoms], [structure.cell], [self.settings])
            self._masks = masks
            self.counts.made += 1
        self._pairs = pairs
        return self._graph

    def _hold(self, old: Structure, new: Structure) -> bool:
        """Whether every pair within the cutoff is still among those that were found."""
        same = (
            np.array_equal(old.atomic_numbers, new.atomic_numbers)
            and np.array_equal(old.cell, new.cell)
            and np.array_equal(old.pbc, new.pbc)
            and np.array_equal(old.ocp_tags, new.ocp_tags)
        )
        if not same or not self.skin:
            return False
        furthest = float(np.square(new.pos - old.pos).sum(axis=1).max(initial=0.0))
        return furthest < (0.5 * self.skin) ** 2

    def _searched(self, structure: Structure) -> _Pairs:
        """Pairs of this geometry; graphs of former ones are forgotten."""
        self.counts.searched += 1
        self._pairs = self._masks = self._graph = None
        cell, pbc = structure.cell, structure.pbc
        _check_places(structure)
        rows = search(structure.pos, cell, pbc, self.settings.cutoff + self.skin).rows
        first = rows[: len(rows) // 2, 2:].astype(np.float64)
        periodic = np.where(pbc[:, None], cell, 0.0)
        # product by product, sum by sum, as the search does: the same lengths to the last bit
        shift = (first[:, 0:1] * periodic[0] + first[:, 1:2] * periodic[1]) + first[:, 2:3] * periodic[2]
        return _Pairs(structure, rows, shift)


def _check_places(structure: Structure) -> None:
    """The search for edges leaves out pairs at the same place, for which a model has no edge.

    Raises:
        UserError: there is such a pair.
    """
    from ase.neighborlist import primitive_neighbor_list

    if not np.isfinite(structure.pos).all():
        return  # the search says so
    pairs = primitive_neighbor_list("ij", structure.pbc, structure.cell, structure.pos, COINCIDENT**0.5)
    _refuse_places(np.stack(pairs, axis=1))


def _refuse_places(pairs: IntArray) -> None:
    if len(pairs):
        raise UserError(f"atoms {pairs[0, 0]} and {pairs[0, 1]} are at the same place")


def _measured(pairs: _Pairs, structure: Structure) -> Candidates:
    """The pairs with their lengths in this geometry.

    Raises:
        UserError: two atoms are at the same place.
    """
    half = pairs.rows[: len(pairs.shift)]
    x, y, z = ((structure.pos[half[:, 1]] - structure.pos[half[:, 0]]) - pairs.shift).T
    squared = (x * x + y * y) + z * z
    _refuse_places(half[squared <= COINCIDENT])
    return Candidates(pairs.rows, np.concatenate([squared, squared]))


def _masks(candidates: Candidates, order: IntArray, structure: Structure, settings: GraphSettings) -> Masks:
    """Which candidates are edges, by the rule of the settings (as `build_edges` without edge dropout)."""
    n, cutoff, caps = structure.natoms, settings.cutoff, settings.caps_of(structure.natoms)
    if settings.symmetrize == "jmp":
        masks = published_masks(candidates, order, n, cutoff, caps, bool(structure.pbc.any()), None, 0.0)
    else:
        masks = invariant_masks(candidates, order, n, cutoff, caps, None, 0.0)
    return masks._replace(qint=masks.qint & touches_tag(candidates, structure.ocp_tags, settings.qint_tags))


def _same(one: Masks, other: Masks | None) -> bool:
    return other is not None and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
