"""The edges of one structure: radius search, caps, symmetrisation, edge dropout (numpy, on the CPU).

Specification section 3 and decisions, "Graphs". The search is in `radius`, the rules are in `selection`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jmp_ds.graphs.radius import BoolArray, Candidates, FloatArray, IntArray, search
from jmp_ds.graphs.selection import Draw, Masks, invariant_masks, published_masks, row_order, touches_tag
from jmp_ds.graphs.settings import GraphSettings


class EdgeLists(NamedTuple):
    """The four graphs of one structure, each int64 [E, 5] with columns (source, target, o1, o2, o3).

    The offset o belongs to the source: the edge's vector is pos[target] - pos[source] - o·cell (rows of the cell are its
    vectors), from source to target. Rows are sorted by target, within a target by length, then source, then offset. Every
    edge of `main` has its reverse in `main`; under the invariant rule this holds for all four.

    Attributes:
        main: edges that carry embeddings.
        a2a: atom-to-atom interaction.
        a2ee2a: atom-to-edge and edge-to-atom interactions.
        qint: middle bonds of quadruplets.
    """

    main: IntArray
    a2a: IntArray
    a2ee2a: IntArray
    qint: IntArray


@dataclass(frozen=True, kw_only=True)
class EdgeDropout:
    """Random removal of edges in training, a function of these four values and the structure alone.

    Attributes:
        probability: chance of an edge (`jmp`) or undirected pair (`invariant`) to go, in [0, 1).
        seed: of the run, not negative.
        epoch: not negative.
        sample: number of the sample within the run's data, not negative.
    """

    probability: float
    seed: int
    epoch: int
    sample: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability < 1.0:
            raise ValueError(f"edge dropout: the probability must be in [0, 1), got {self.probability}")

    def draw(self, count: int) -> FloatArray:
        """The first `count` uniform numbers in [0, 1) of this sample's own random stream."""
        key = np.random.SeedSequence([self.seed, self.epoch, self.sample])
        return np.random.Generator(np.random.Philox(key)).random(count)

    def kept(self, count: int) -> BoolArray:
        """Which of the first `count` numbers leave their edge."""
        return self.draw(count) >= self.probability


def build_edges(
    pos: NDArray[np.floating[Any]],
    cell: NDArray[np.floating[Any]],
    pbc: NDArray[Any],
    tags: NDArray[np.integer[Any]],
    settings: GraphSettings,
    *,
    dropout: EdgeDropout | None = None,
) -> EdgeLists:
    """The four edge lists of one structure.

    Args:
        pos: [n, 3] in Å; lengths are computed in float64.
        cell: [3, 3], rows are the cell vectors in Å; ignored along axes that are not periodic.
        pbc: bool [3], periodicity of every axis.
        tags: integers [n] as OCP defines them; decide which bonds are middle bonds of quadruplets.
        settings: cutoff, caps and rule.
        dropout: edges to take away at random, or None.

    Returns:
        The lists; any of them may be empty ([0, 5]).

    Raises:
        UserError: coordinates that are not finite, or periodic cell vectors that are linearly dependent.
    """
    positions = np.asarray(pos, dtype=np.float64).reshape(-1, 3)
    axes = np.asarray(pbc, dtype=bool).reshape(3)
    candidates = search(positions, np.asarray(cell, dtype=np.float64).reshape(3, 3), axes, settings.cutoff)
    order = row_order(candidates)
    masks = _masks(candidates, order, len(positions), bool(axes.any()), settings, dropout)
    qint = masks.qint & touches_tag(candidates, np.asarray(tags), settings.qint_tags)
    return EdgeLists(*(candidates.rows[order[mask[order]]] for mask in masks._replace(qint=qint)))


def _masks(
    candidates: Candidates,
    order: IntArray,
    natoms: int,
    periodic: bool,
    settings: GraphSettings,
    dropout: EdgeDropout | None,
) -> Masks:
    """What the rule of the settings keeps, before the filter by tags."""
    drop: Draw | None = None
    probability = 0.0
    if dropout is not None and dropout.probability > 0.0:
        drop, probability = dropout.draw, dropout.probability
    cutoff, caps = settings.cutoff, settings.caps_of(natoms)
    if settings.symmetrize == "jmp":
        return published_masks(candidates, order, natoms, cutoff, caps, periodic, drop, probability)
    return invariant_masks(candidates, order, natoms, cutoff, caps, drop, probability)
