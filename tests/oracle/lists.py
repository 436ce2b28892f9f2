"""Triplets and quadruplets by direct enumeration of all pairs of rows (specification section 3.8).

Nothing is clever here: every list is a filter over all combinations. Only for tests, on small graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lists:
    """Index lists; all int64. An edge number counts in its own graph, in the order in which the edges were given.

    Attributes:
        e2e, a2e, e2a: triplets [T, 2], columns (input edge, output edge).
        quad_in: [T_in, 2], columns (main edge d→b, qint edge b→a).
        quad_out: [T_out, 2], columns (qint edge b→a, main edge c→a).
        quads: [Q, 2], rows of (quad_in, quad_out) that share b→a.
    """

    e2e: Tensor
    a2e: Tensor
    e2a: Tensor
    quad_in: Tensor
    quad_out: Tensor
    quads: Tensor

    @property
    def quad_edges(self) -> Tensor:
        """Quadruplets as edge numbers [Q, 3]: (d→b main, b→a qint, c→a main)."""
        inner, outer = self.quad_in[self.quads[:, 0]], self.quad_out[self.quads[:, 1]]
        return torch.stack([inner[:, 0], inner[:, 1], outer[:, 1]], 1)


def enumerate_lists(main: Tensor, a2ee2a: Tensor, qint: Tensor) -> Lists:
    """All lists of a batch.

    Args:
        main, a2ee2a, qint: int64 [E, 5], columns (source, target, o1, o2, o3), atoms counted through the batch.
    """
    quad_in = _quad_in(main, qint)
    quad_out = _triplets(qint, main)
    return Lists(
        e2e=_other_edges(main),
        a2e=_triplets(a2ee2a, main),
        e2a=_triplets(main, a2ee2a),
        quad_in=quad_in,
        quad_out=quad_out,
        quads=_quads(main, qint, quad_in, quad_out),
    )


def _other_edges(edges: Tensor) -> Tensor:
    """(b→a, c→a) of one graph with different edge numbers."""
    pairs = _pairs(edges[:, 1], edges[:, 1])
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _triplets(inputs: Tensor, outputs: Tensor) -> Tensor:
    """(b→a, c→a) of two graphs, without those of the same source atom and the same cell offset."""
    pairs = _pairs(inputs[:, 1], outputs[:, 1])
    b, c = inputs[pairs[:, 0]], outputs[pairs[:, 1]]
    same = (b[:, 0] == c[:, 0]) & (b[:, 2:] == c[:, 2:]).all(1)
    return pairs[~same]


def _quad_in(main: Tensor, qint: Tensor) -> Tensor:
    """(d→b, b→a) without d being a in the same cell."""
    pairs = _pairs(main[:, 1], qint[:, 0])
    db, ba = main[pairs[:, 0]], qint[pairs[:, 1]]
    same = (db[:, 0] == ba[:, 1]) & (db[:, 2:] + ba[:, 2:] == 0).all(1)
    return pairs[~same]


def _quads(main: Tensor, qint: Tensor, quad_in: Tensor, quad_out: Tensor) -> Tensor:
    """(in-triplet, out-triplet) with the same b→a, without c being d in the same cell."""
    pairs = _pairs(quad_in[:, 1], quad_out[:, 0])
    db, ba = main[quad_in[pairs[:, 0], 0]], qint[quad_in[pairs[:, 0], 1]]
    ca = main[quad_out[pairs[:, 1], 1]]
    same = (db[:, 0] == ca[:, 0]) & (db[:, 2:] + ba[:, 2:] - ca[:, 2:] == 0).all(1)
    return pairs[~same]


def _pairs(left: Tensor, right: Tensor) -> Tensor:
    """All (i, j) with left[i] == right[j], sorted by j."""
    return (right[:, None] == left[None, :]).nonzero().flip(1)
