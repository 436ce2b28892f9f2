"""What building graphs on a device settles beforehand on the host, from sizes, cells and settings alone.

Positions are on the device and are not looked at here: how many periodic images a structure needs follows from its cell,
since images are counted from the one nearest to each pair of atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jmp_ds.graphs.radius import BoolArray, FloatArray, IntArray, check_cell, check_width, margin
from jmp_ds.graphs.settings import GraphSettings

#: Rows (pairs of atoms times images) of one structure above which a cell list proposes the pairs of atoms.
BRUTE_ROWS = 4_000_000


@dataclass(frozen=True)
class Plan:
    """Host-side description of a batch of B structures with N atoms.

    Attributes:
        natoms: int64 [B].
        first_atom: int64 [B + 1].
        structure: int64 [N], the structure of every atom.
        pbc: bool [B, 3].
        cell: float64 [B, 3, 3] in Å, zero rows along axes that are not periodic.
        dual: float64 [B, 3, 3] in 1/Å; v · dual is v in units of the cell vectors, zero along open axes.
        reach: float64 [B], the length in Å that the search goes to.
        images: per structure int64 [I, 3] in ascending order: offsets to try, counted from a pair's nearest image.
        large: per structure whether a cell list is used.
        settings: per structure.
    """

    natoms: IntArray
    first_atom: IntArray
    structure: IntArray
    pbc: BoolArray
    cell: FloatArray
    dual: FloatArray
    reach: FloatArray
    images: tuple[IntArray, ...]
    large: tuple[bool, ...]
    settings: tuple[GraphSettings, ...]


def plan_batch(
    natoms: Sequence[int],
    cell: NDArray[np.floating],
    pbc: NDArray[np.bool_],
    settings: Sequence[GraphSettings],
    brute_rows: int = BRUTE_ROWS,
) -> Plan:
    """The plan of a batch.

    Args:
        natoms: per structure.
        cell: [B, 3, 3] in Å, rows are the cell vectors; rows of axes without periodicity are ignored.
        pbc: bool [B, 3].
        settings: per structure.
        brute_rows: rows of one structure up to which all pairs of atoms are tried.

    Raises:
        UserError: a cell that is not finite, or linearly dependent along periodic axes, or too wide.
    """
    sizes = np.asarray(natoms, dtype=np.int64).reshape(-1)
    axes = np.asarray(pbc, dtype=bool).reshape(-1, 3)
    rows = np.asarray(cell, dtype=np.float64).reshape(-1, 3, 3)
    if not len(sizes) == len(axes) == len(rows) == len(settings):
        raise ValueError(
            f"graph: {len(sizes)} structures, {len(rows)} cells, {len(axes)} pbc, {len(settings)} settings"
        )
    for one, periodic in zip(rows, axes, strict=True):
        check_cell(one, periodic)
    rows = np.where(axes[:, :, None], rows, 0.0)
    dual = np.where(axes[:, None, :], np.linalg.pinv(rows), 0.0)  # rounding leaves something in the open columns
    inverse_height = np.linalg.norm(dual, axis=1)
    check_width(float((1.0 / inverse_height[inverse_height > 0]).max(initial=0.0)))
    reach = np.array([margin(s.cutoff) for s in settings], dtype=np.float64)
    # An image within reach differs from the nearest one by at most reach / height + 1/2 cells along each axis.
    steps = np.floor(reach[:, None] * inverse_height + 0.5 + 1e-6).astype(np.int64)
    images = tuple(_offsets(s) for s in steps)
    return Plan(
        natoms=sizes,
        first_atom=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        structure=np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
        pbc=axes,
        cell=rows,
        dual=dual,
        reach=reach,
        images=images,
        large=tuple(bool(n * (n + 1) // 2 * len(i) > brute_rows) for n, i in zip(sizes, images, strict=True)),
        settings=tuple(settings),
    )


def _offsets(steps: IntArray) -> IntArray:
    """All offsets with |o_k| ≤ steps_k, [I, 3] in ascending order."""
    shape = 2 * steps + 1
    return np.indices(tuple(shape)).reshape(3, -1).T.astype(np.int64) - steps
