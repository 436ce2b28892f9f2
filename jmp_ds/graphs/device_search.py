"""All pairs of atoms of a batch within their structures' cutoffs, in tensor operations without host synchronisation.

The rows are those of `radius.search`, in its order and with the same squared lengths to the last bit, among further rows
that are marked as not valid: how many rows there are is then known beforehand. Small structures try all pairs of atoms
with all images that can be within reach, large ones take their pairs of atoms from a cell list (`device_cells`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jmp_ds.graphs.device_plan import Plan
from jmp_ds.graphs.radius import COINCIDENT, IntArray


@dataclass(frozen=True)
class Rows:
    """K candidate edges in their canonical direction, and beside them room that was not needed.

    Attributes:
        source, target: int64 [K], atoms of the batch; source ≤ target.
        offset: int64 [K, 3], cell of the source's image.
        squared: float64 [K], squared length in Å².
        valid: bool [K]; valid rows of one structure are sorted by (source, target, offset).
        pair: int64 [K], ascending number of the row's (source, target), below `num_pairs`.
        mirror: int64 [K], the row at the mirrored place among the rows of its pair.
        num_pairs: numbers that are given to pairs.
    """

    source: Tensor
    target: Tensor
    offset: Tensor
    squared: Tensor
    valid: Tensor
    pair: Tensor
    mirror: Tensor
    num_pairs: int

    @property
    def num_rows(self) -> int:
        """K."""
        return self.source.shape[0]


@dataclass(frozen=True)
class OnDevice:
    """What the search needs of a plan, as tensors on the device.

    Attributes:
        structure: int64 [N].
        cell, dual: float64 [B, 3, 3].
        squared_reach: float64 [B] in Å².
        images: int64 [ΣI, 3], the offsets of all structures one after the other.
        first_image: int64 [B], where those of a structure begin.
    """

    structure: Tensor
    cell: Tensor
    dual: Tensor
    squared_reach: Tensor
    images: Tensor
    first_image: Tensor


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on the device, without waiting for it."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)


def on_device(plan: Plan, device: torch.device) -> OnDevice:
    """Send a plan to the device."""
    counts = np.array([len(i) for i in plan.images], dtype=np.int64)
    return OnDevice(
        structure=sent(plan.structure, device),
        cell=sent(plan.cell, device),
        dual=sent(plan.dual, device),
        squared_reach=sent(plan.reach * plan.reach, device),
        images=sent(np.concatenate([np.empty((0, 3), dtype=np.int64), *plan.images]), device),
        first_image=sent(np.cumsum(counts) - counts, device),
    )


def brute_force(pos: Tensor, plan: Plan, here: OnDevice) -> tuple[Rows, IntArray]:
    """Rows of all small structures, and how many each structure of the batch has there (host).

    Args:
        pos: float64 [N, 3] in Å.
        plan, here: of the batch.
    """
    small = ~np.array(plan.large, dtype=bool)
    sizes = np.where(small, plan.natoms, 0)
    pairs_of = sizes * (sizes + 1) // 2
    images_of = np.array([len(i) for i in plan.images], dtype=np.int64)
    rows_of = pairs_of * images_of
    # Atom s of n is joined with itself (its images) and with the atoms after it: n - s pairs.
    atoms = np.flatnonzero(small[plan.structure])
    partners = plan.first_atom[1:][plan.structure[atoms]] - atoms
    source, within = ranges(sent(partners, pos.device), int(pairs_of.sum()))
    source = sent(atoms, pos.device)[source]
    target = source + within
    images = sent(images_of, pos.device)[here.structure[source]]
    pair, image = ranges(images, int(rows_of.sum()))
    first = torch.cumsum(images, 0) - images
    return Rows(
        **measured(pos, here, source, target, pair, image),
        pair=pair,
        mirror=taken(2 * first + images - 1, pair) - torch.arange(pair.shape[0], device=pos.device),
        num_pairs=source.shape[0],
    ), rows_of


def measured(
    pos: Tensor, here: OnDevice, source: Tensor, target: Tensor, pair: Tensor, image: Tensor
) -> dict[str, Tensor]:
    """Ends, offsets, squared lengths and validity of rows.

    Args:
        pos: float64 [N, 3] in Å.
        here: of the batch.
        source, target: int64 [T], ends of pairs of atoms.
        pair: int64 [K], the pair of every row.
        image: int64 [K], number of the row's image in its structure's list.
    """
    structure = here.structure[source]
    apart = taken(pos, target) - taken(pos, source)
    dual = here.dual[structure]
    nearest = torch.round(apart[:, 0:1] * dual[:, 0] + apart[:, 1:2] * dual[:, 1] + apart[:, 2:3] * dual[:, 2]).long()
    row_structure = taken(structure, pair)
    offset = taken(nearest, pair) + taken(here.images, taken(here.first_image, row_structure) + image)
    vector = taken(apart, pair) - shifted(offset, here.cell, row_structure)
    x, y, z = vector.unbind(1)
    squared = (x * x + y * y) + z * z
    valid = (squared > COINCIDENT) & (squared <= taken(here.squared_reach, row_structure))
    source, target = taken(source, pair), taken(target, pair)
    valid &= (source != target) | _leads_down(offset)
    return {"source": source, "target": target, "offset": offset, "squared": squared, "valid": valid}


def shifted(offset: Tensor, cell: Tensor, structure: Tensor) -> Tensor:
    """offset · cell in Å, [K, 3] in the cell's precision; each product and each sum rounded, as on the host.

    Args:
        offset: int64 [K, 3].
        cell: float64 or float32 [B, 3, 3].
        structure: int64 [K].
    """
    steps = [offset[:, k : k + 1].to(cell.dtype) * taken(cell[:, k], structure) for k in range(3)]
    return (steps[0] + steps[1]) + steps[2]


def joined(parts: Sequence[Rows]) -> Rows:
    """Several lists of rows, one after the other."""
    if len(parts) == 1:
        return parts[0]
    rows = np.cumsum([0, *(p.num_rows for p in parts)])
    pairs = np.cumsum([0, *(p.num_pairs for p in parts)])
    columns = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name in ("source", "target", "offset", "squared", "valid")
    }
    return Rows(
        **columns,
        pair=torch.cat([p.pair + int(start) for p, start in zip(parts, pairs, strict=False)]),
        mirror=torch.cat([p.mirror + int(start) for p, start in zip(parts, rows, strict=False)]),
        num_pairs=int(pairs[-1]),
    )


def taken(values: Tensor, index: Tensor) -> Tensor:
    """values[index] along the first axis; on a CPU several times faster than indexing."""
    return values.index_select(0, index)


def positions(mask: Tensor, size: int) -> Tensor:
    """Where the mask [K] holds, ascending, int64 [size]: cut off at `size`, and 0 in places that are left over."""
    place = torch.cumsum(mask, 0) - 1
    place = torch.where(mask & (place < size), place, size)
    out = torch.zeros(size + 1, dtype=torch.int64, device=mask.device)
    return out.scatter_(0, place, torch.arange(mask.shape[0], device=mask.device))[:size]


def ranges(length: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For ranges of the given lengths, one after the other: number of the range, place within it; `total` places."""
    owner = torch.repeat_interleave(torch.arange(length.shape[0], device=length.device), length, output_size=total)
    first = torch.cumsum(length, 0) - length
    return owner, torch.arange(total, device=length.device) - taken(first, owner)


def _leads_down(offset: Tensor) -> Tensor:
    """Whether the first component that is not zero is negative: the canonical direction of an atom and its own image."""
    a, b, c = offset.unbind(1)
    return (a < 0) | ((a == 0) & ((b < 0) | ((b == 0) & (c < 0))))
