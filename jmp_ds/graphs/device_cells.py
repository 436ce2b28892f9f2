"""Candidate edges of a large structure by a cell list, in tensor operations without host synchronisation.

Atoms are sorted by the bin they lie in; every atom looks into the bins around its own. How many pairs that gives is not
known on the host. Room is made for a density of `DENSITY`; if it does not suffice, `needed` says so, and the caller
starts again with as much room as it takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jmp_ds.graphs.device_plan import Plan
from jmp_ds.graphs.device_search import OnDevice, Rows, measured, positions, sent
from jmp_ds.graphs.radius import FloatArray, IntArray

#: Atoms per Å³ for which room is made: most metals (0.06 to 0.09) and molecular crystals (0.1).
DENSITY = 0.12
#: Bins per cutoff: finer bins fit the sphere better and are more.
FINENESS = 2
#: Bins are at least this long (Å), so that `MOST_ALONG_AXIS` of them are more than any structure has.
SHORTEST = 0.5
#: Bins along an axis that keys can tell apart.
MOST_ALONG_AXIS = 2**20


class Room(NamedTuple):
    """Rows that there is room for, or that are needed: before lengths are known, and within reach."""

    looked_at: int
    within: int


@dataclass(frozen=True)
class Bins:
    """How one structure's space is divided (host).

    Attributes:
        axes: float64 [3, 3]; pos · axes are the coordinates that bins count, cell vectors being of length one along
            periodic axes.
        per_unit: float64 [3], bins per unit of these coordinates.
        around: int64 [3], bins along a periodic axis (they repeat), 0 along the others.
        stencil: int64 [M, 3], bins to look into, counted from an atom's own; no two are the same.
        room: of the stencil in Å³.
    """

    axes: FloatArray
    per_unit: FloatArray
    around: IntArray
    stencil: IntArray
    room: float


def bins_of(plan: Plan, number: int) -> Bins:
    """The bins of one structure."""
    reach = float(plan.reach[number])
    periodic, cell, axes = plan.pbc[number], plan.cell[number], plan.dual[number].copy()
    # perpendicular to the periodic vectors any orthonormal basis does
    axes[:, ~periodic] = np.linalg.svd(cell[periodic])[2][periodic.sum() :].T
    height = 1.0 / np.linalg.norm(axes, axis=0)
    # a little longer than need be: the number of steps below must not hang on the last bit
    length = max(reach / FINENESS, SHORTEST) * (1.0 + 1e-9)
    around = np.where(periodic, np.maximum(np.floor(height / length), 1.0), 0.0)
    per_unit = np.where(periodic, around, 1.0 / length)
    steps = np.ceil(reach * per_unit / height).astype(np.int64)
    ranges = [
        np.arange(n) if p and n <= 2 * s + 1 else np.arange(-s, s + 1)
        for p, n, s in zip(periodic, around.astype(np.int64), steps, strict=True)
    ]
    stencil = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)
    # a bin is a parallelepiped with these heights; its volume follows from the axes' directions
    volume = float(np.prod(1.0 / per_unit) / abs(np.linalg.det(axes)))
    return Bins(axes, per_unit, around.astype(np.int64), stencil, len(stencil) * volume)


def room_for(plan: Plan, number: int) -> Room:
    """Room for a structure whose density is at most `DENSITY` wherever an atom looks."""
    n, images = int(plan.natoms[number]), len(plan.images[number])
    looked_at = n * min(n, math.ceil(DENSITY * bins_of(plan, number).room))
    every = n * (n + 1) // 2 * images
    sphere = 4.0 / 3.0 * math.pi * float(plan.reach[number]) ** 3
    return Room(looked_at, min(every, math.ceil(n * DENSITY * sphere / 2)))


def cell_list(pos: Tensor, plan: Plan, here: OnDevice, number: int, room: Room) -> tuple[Rows, Tensor]:
    """Rows of one structure, `room.within` of them, and as a tensor [2] how much room was needed.

    Args:
        pos: float64 [N, 3] in Å, of the whole batch.
        plan, here: of the batch.
        number: of the structure.
        room: pairs to look at, and rows to keep.
    """
    source, target, exists, looked_at = _neighbours(pos, plan, number, room.looked_at)
    images = len(plan.images[number])
    pair = torch.arange(source.shape[0] * images, device=pos.device) // images
    image = torch.arange(source.shape[0] * images, device=pos.device) - pair * images
    columns = measured(pos, here, source, target, pair, image)
    n, first = int(plan.natoms[number]), int(plan.first_atom[number])
    key = ((columns["source"] - first) * n + (columns["target"] - first)) * images + image
    last = n * n * images
    valid = columns["valid"] & exists[pair]
    key, order = torch.sort(torch.where(valid, key, last))
    key, order = key[: room.within], order[: room.within]
    new = torch.ones_like(key, dtype=torch.bool)
    new[1:] = torch.div(key[1:], images, rounding_mode="floor") != torch.div(key[:-1], images, rounding_mode="floor")
    group = torch.cumsum(new, 0) - 1
    begin, end = torch.searchsorted(group, group), torch.searchsorted(group, group, right=True)
    rows = Rows(
        **{name: column[order] for name, column in (columns | {"valid": valid}).items()},
        pair=group,
        mirror=begin + end - 1 - torch.arange(group.shape[0], device=pos.device),
        num_pairs=group.shape[0],
    )
    return rows, torch.stack([looked_at, valid.sum()])


def _neighbours(pos: Tensor, plan: Plan, number: int, room: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs of atoms in bins near each other, source ≤ target: both ends, whether the place is used, and a tensor that
    says how much of the room (for both directions) was needed.
    """
    begin, end = int(plan.first_atom[number]), int(plan.first_atom[number + 1])
    bins = bins_of(plan, number)
    own, wanted = _bin_keys(pos[begin:end], bins)
    keys, atoms = torch.sort(own)
    first, last = torch.searchsorted(keys, wanted), torch.searchsorted(keys, wanted, right=True)
    total = torch.cumsum(last - first, 0)
    place = torch.arange(room, device=pos.device)
    # beyond the end of the list any bin will do: such places are not used
    owner = torch.searchsorted(total, place, right=True).clamp(max=wanted.shape[0] - 1)
    within = place - (total - (last - first))[owner]
    target = atoms[(first[owner] + within).clamp(0, end - begin - 1)]
    source = torch.div(owner, bins.stencil.shape[0], rounding_mode="floor")
    forward = (source <= target) & (place < total[-1])
    # Both atoms of a pair see each other, an atom itself once: little more than half of the room is enough.
    kept = positions(forward, (room + end - begin) // 2 + 1)
    exists = torch.arange(kept.shape[0], device=pos.device) < forward.sum()
    return source[kept] + begin, target[kept] + begin, exists, total[-1]


def _bin_keys(pos: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """Key of every atom's own bin [n], and of the bins around it [n · M]."""
    around = sent(bins.around, pos.device)
    repeats = around > 0
    place = pos @ sent(bins.axes, pos.device)
    place = torch.where(repeats, place - torch.floor(place), place - place.amin(0))
    own = torch.floor(place * sent(bins.per_unit, pos.device)).long()
    own = torch.where(repeats, torch.minimum(own, around - 1), own)
    near = own[:, None] + sent(bins.stencil, pos.device)
    near = torch.where(repeats, torch.remainder(near, around.clamp(min=1)), near)
    return _key(own), _key(near).flatten()


def _key(bin_of: Tensor) -> Tensor:
    """One number for a bin [..., 3] whose coordinates may be a little below zero."""
    shifted = bin_of + MOST_ALONG_AXIS // 4
    return (shifted[..., 0] * MOST_ALONG_AXIS + shifted[..., 1]) * MOST_ALONG_AXIS + shifted[..., 2]
