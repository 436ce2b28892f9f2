"""Caps, ties and rules of `selection` over the rows of a whole batch, in tensor operations without host synchronisation.

Both directions of every candidate stand in one list, sorted by (target, squared length, source, offset); all four graphs
are masks over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from jmp_ds.graphs.device_plan import Plan
from jmp_ds.graphs.device_search import Rows, sent, taken
from jmp_ds.graphs.selection import EDGE_OF_CUTOFF, TIE

Each = TypeVar("Each")


@dataclass(frozen=True)
class Sorted:
    """R = 2K directed rows in the stable order of the caps; rows that are not valid stand at the end.

    Attributes:
        row: int64 [R], the row of the list [canonical rows, reversed rows].
        canonical: int64 [R], which of the K canonical rows it is or reverses.
        source, target: int64 [R].
        squared: float64 [R] in Å².
        valid: bool [R].
        first: int64 [N + 1], where the valid rows into every atom begin.
        reverse: int64 [R], place of the reverse.
    """

    row: Tensor
    canonical: Tensor
    source: Tensor
    target: Tensor
    squared: Tensor
    valid: Tensor
    first: Tensor
    reverse: Tensor

    @property
    def is_canonical(self) -> Tensor:
        """Whether the row runs in its canonical direction."""
        return self.row < self.row.shape[0] // 2


class Graphs(NamedTuple, Generic[Each]):
    """Something of each of the four graphs."""

    main: Each
    a2a: Each
    a2ee2a: Each
    qint: Each


def sorted_rows(rows: Rows, num_atoms: int) -> Sorted:
    """Both directions of all rows, sorted.

    Reversed rows are listed with the images of a pair the other way round, so that places in the list break ties as
    (source, offset) do: into one atom canonical rows come from atoms before it, reversed ones from atoms after it.
    """
    device, k = rows.source.device, rows.num_rows
    mirror = rows.mirror
    squared = torch.where(rows.valid, rows.squared, torch.inf)
    squared = torch.cat([squared, taken(squared, mirror)])
    target = torch.where(rows.valid, rows.target, num_atoms)
    source = torch.where(rows.valid, rows.source, num_atoms)
    into = torch.cat([target, taken(source, mirror)])
    # Squares are not negative: their bits sort as they do, and faster.
    by_length = torch.argsort(squared.view(torch.int64), stable=True)
    into_sorted, by_target = torch.sort(taken(into, by_length), stable=True)
    row = taken(by_length, by_target)
    place = torch.empty_like(row).scatter_(0, row, torch.arange(2 * k, device=device))
    other_direction = torch.cat([mirror + k, mirror])
    return Sorted(
        row=row,
        canonical=taken(torch.cat([torch.arange(k, device=device), mirror]), row),
        source=taken(torch.cat([rows.source, taken(rows.target, mirror)]), row),
        target=into_sorted.clamp(max=num_atoms - 1),
        squared=taken(squared, row),
        valid=into_sorted < num_atoms,
        first=torch.searchsorted(into_sorted, torch.arange(num_atoms + 1, device=device)),
        reverse=taken(place, taken(other_direction, row)),
    )


class Selection:
    """The rules of a batch: limits and caps of every atom's structure."""

    def __init__(self, plan: Plan, structure: Tensor, tags: Tensor) -> None:
        """Take the plan, the structure of every atom (int64 [N]) and tags (int64 [N]); both on the device."""
        device, settings = structure.device, plan.settings
        self._rules = {s.symmetrize for s in settings}
        published = np.array([s.symmetrize == "jmp" for s in settings], dtype=bool)
        self._published = sent(published, device)[structure]
        self._periodic = sent(np.asarray(plan.pbc.any(axis=1)), device)[structure]
        cutoffs = np.array([s.cutoff for s in settings], dtype=np.float64)
        self._limit = sent(cutoffs * cutoffs, device)[structure]
        self._below = sent(cutoffs - EDGE_OF_CUTOFF, device)[structure]
        of_structures = [s.caps_of(int(n)) for s, n in zip(settings, plan.natoms, strict=True)]
        caps = sent(np.array(of_structures, dtype=np.int64).reshape(-1, 4), device)[structure]
        self._caps: Graphs[Tensor] = Graphs(*caps.unbind(1))
        wanted = {tag for s in settings for tag in s.qint_tags}
        takes = np.array([[tag in s.qint_tags for tag in sorted(wanted)] for s in settings], dtype=bool)
        tagged = tags[:, None] == sent(np.array(sorted(wanted), dtype=np.int64), device)
        self._touched = (tagged & sent(takes.reshape(len(settings), len(wanted)), device)[structure]).any(1)

    def graphs(self, rows: Sorted, kept: Tensor | None) -> Graphs[Tensor]:
        """Which rows belong to each of the four graphs, bool [R].

        Args:
            rows: candidates of the batch.
            kept: bool [R], what edge dropout leaves, or None.
        """
        length = torch.sqrt(rows.squared)
        results = []
        if "jmp" in self._rules:
            results.append(self._published_graphs(rows, kept))
        if "invariant" in self._rules or not results:
            results.append(self._invariant_graphs(rows, length, kept))
        graphs = results[0]
        if len(results) == 2:
            rule = self._published[rows.target]
            graphs = Graphs(*(torch.where(rule, a, b) for a, b in zip(*results, strict=True)))
        touched = taken(self._touched, rows.source) | taken(self._touched, rows.target)
        return graphs._replace(qint=graphs.qint & touched)

    def _published_graphs(self, rows: Sorted, kept: Tensor | None) -> Graphs[Tensor]:
        """`selection.published_masks`."""
        limit = taken(self._limit, rows.target)
        inside = (rows.squared < limit) | ((rows.squared == limit) & taken(self._periodic, rows.target))
        a2a = _strict_cap(inside & rows.valid, rows, self._caps.a2a)
        if kept is not None:
            a2a &= kept
        directed = _strict_cap(a2a, rows, self._caps.main)
        return Graphs(
            main=torch.where(rows.is_canonical, directed, taken(directed, rows.reverse)),
            a2a=a2a,
            a2ee2a=_strict_cap(a2a, rows, self._caps.a2ee2a),
            qint=_strict_cap(a2a, rows, self._caps.qint),
        )

    def _invariant_graphs(self, rows: Sorted, length: Tensor, kept: Tensor | None) -> Graphs[Tensor]:
        """`selection.invariant_masks`."""
        inside = rows.valid & (length < taken(self._below, rows.target))
        a2a = _either_end(inside, length, rows, self._caps.a2a)
        if kept is not None:
            a2a &= kept
        return Graphs(
            main=_either_end(a2a, length, rows, self._caps.main),
            a2a=a2a,
            a2ee2a=_either_end(a2a, length, rows, self._caps.a2ee2a),
            qint=_either_end(a2a, length, rows, self._caps.qint),
        )


def before_each(mask: Tensor) -> Tensor:
    """How many rows of the mask [R] stand before each place, int64 [R + 1]."""
    return torch.cat([mask.new_zeros(1, dtype=torch.int64), torch.cumsum(mask, 0)])


def _strict_cap(mask: Tensor, rows: Sorted, cap: Tensor) -> Tensor:
    """Of the rows in the mask, the first `cap` (int64 [N]) of every target."""
    before = before_each(mask)
    last = before[rows.first[:-1]] + cap
    return mask & (before[:-1] < taken(last, rows.target))


def _either_end(mask: Tensor, length: Tensor, rows: Sorted, cap: Tensor) -> Tensor:
    """Of the rows in the (symmetric) mask, those within the reach of their source or of their target."""
    before = before_each(mask)
    start = before[rows.first]
    degree = start[1:] - start[:-1]
    # the cap-th row of an atom is the first one with as many rows up to it
    at = torch.searchsorted(before[1:], start[:-1] + cap).clamp(max=max(mask.shape[0] - 1, 0))
    reach = torch.where(degree > cap, length[at] + TIE, torch.inf)
    reach = torch.where(cap > 0, reach, -torch.inf)
    return mask & (length <= torch.maximum(taken(reach, rows.source), taken(reach, rows.target)))
