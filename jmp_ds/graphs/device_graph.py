"""The graph of a whole batch, built where its positions are, with one host synchronisation.

The same as `neighbors.build_edges` for every structure and `graph.collate_graph` over them, edge for edge and index for
index. What is known on the host (sizes, cells, settings) decides how much room every step has; all sizes that depend on
positions are read in one transfer, before the lists themselves are made.

Operations that wait for the device, or whose result has a size that the device decides, are not used: `item` and
`tolist` of a tensor, `nonzero`, `masked_select`, indexing by a mask, `unique`, `bincount`, and `repeat_interleave`
without the size of its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jmp_ds.errors import UserError
from jmp_ds.graphs.device_cells import Room, cell_list, room_for
from jmp_ds.graphs.device_dropout import left_by_dropout
from jmp_ds.graphs.device_lists import (
    Counted,
    Shifts,
    Sizes,
    count_lists,
    counted,
    edge_set,
    found,
    pair_sums,
)
from jmp_ds.graphs.device_plan import BRUTE_ROWS, Plan, plan_batch
from jmp_ds.graphs.device_quadruplets import quadruplets
from jmp_ds.graphs.device_search import OnDevice, Rows, brute_force, joined, on_device, positions, sent
from jmp_ds.graphs.device_selection import Graphs, Selection, sorted_rows
from jmp_ds.graphs.graph import Graph
from jmp_ds.graphs.neighbors import EdgeDropout
from jmp_ds.graphs.radius import NOT_FINITE, IntArray, check_width
from jmp_ds.graphs.settings import GraphSettings


class Built(NamedTuple):
    """A graph on the device, and what the host knows of it.

    Attributes:
        graph: of the batch.
        first_edge: int64 [B + 1], where the main edges of every structure begin.
    """

    graph: Graph
    first_edge: IntArray


class Found(NamedTuple):
    """Everything that is made before the host synchronisation.

    Attributes:
        candidates: rows of the search.
        counted: the four graphs over them, sorted.
        numbers: float64 [...], all that the host is to read.
        rooms: the room that was made for each large structure, by its number.
    """

    candidates: Rows
    counted: Counted
    numbers: Tensor
    rooms: dict[int, Room]


def device_graph(
    pos: Tensor,
    natoms: Sequence[int],
    cell: NDArray[np.floating],
    pbc: NDArray[np.bool_],
    tags: Tensor,
    settings: Sequence[GraphSettings],
    dropout: Sequence[EdgeDropout | None] | None = None,
    brute_rows: int = BRUTE_ROWS,
) -> Built:
    """The graph of a batch of B structures with N atoms, on the device that its positions are on.

    Waits for the device once; again, up to twice, if a large structure is denser than `device_cells.DENSITY`.

    Args:
        pos: [N, 3] in Å; lengths are computed in float64.
        natoms: B sizes.
        cell: [B, 3, 3] on the host, rows in Å; ignored along axes that are not periodic.
        pbc: bool [B, 3] on the host.
        tags: int64 [N] on the device.
        settings: per structure.
        dropout: per structure, edges to take away at random, or None.
        brute_rows: candidate edges of one structure above which a cell list is used.

    Raises:
        UserError: coordinates that are not finite or span too much, or cell vectors that are linearly dependent.
        ValueError: arguments that do not fit together.
    """
    plan = plan_batch(natoms, cell, pbc, settings, brute_rows)
    if pos.shape != (int(plan.natoms.sum()), 3) or tags.shape != pos.shape[:1]:
        raise ValueError(
            f"graph: positions {tuple(pos.shape)} and tags {tuple(tags.shape)} for {plan.natoms.sum()} atoms"
        )
    dropped = list(dropout) if dropout is not None else [None] * len(plan.natoms)
    here = on_device(plan, pos.device)
    positions64 = pos.detach().double()
    rooms = {k: room_for(plan, k) for k, large in enumerate(plan.large) if large}
    while True:
        made = _find(positions64, tags, plan, here, dropped, rooms)
        read = read_on_host(made.numbers)
        needed = _checked(read, plan, rooms)
        if all(need.looked_at <= rooms[k].looked_at and need.within <= rooms[k].within for k, need in needed.items()):
            break
        rooms = {k: Room(*map(max, need, rooms[k])) for k, need in needed.items()}
    begin = 1 + 2 * len(rooms)
    first_edge = np.array(read[begin : begin + len(plan.natoms) + 1], dtype=np.int64)
    sizes = Sizes.read([int(v) for v in read[begin + len(plan.natoms) + 1 :]])
    return Built(_lists(made, sizes, plan, here, np.asarray(cell, dtype=np.float64).reshape(-1, 3, 3)), first_edge)


def read_on_host(numbers: Tensor) -> list[float]:
    """The one transfer from the device, for which the host waits."""
    values: list[float] = numbers.cpu().tolist()
    return values


def _find(
    pos: Tensor,
    tags: Tensor,
    plan: Plan,
    here: OnDevice,
    dropout: Sequence[EdgeDropout | None],
    rooms: dict[int, Room],
) -> Found:
    """Search, rules, and all numbers that the host needs."""
    small, rows_of = brute_force(pos, plan, here)
    parts, needed = [small], []
    end = np.cumsum(rows_of)
    begin = end - rows_of
    for k, room in rooms.items():
        large, need = cell_list(pos, plan, here, k, room)
        begin[k] = sum(p.num_rows for p in parts)
        end[k] = begin[k] + large.num_rows
        parts.append(large)
        needed.append(need)
    candidates = joined(parts)
    rows = sorted_rows(candidates, len(plan.structure))
    kept = left_by_dropout(dropout, plan, candidates, rows, begin, end)
    at = counted(rows, Selection(plan, here.structure, tags).graphs(rows, kept))
    first_edge = at.first.main[sent(plan.first_atom, pos.device)]
    numbers = torch.cat([*needed, first_edge, count_lists(at, candidates)])
    return Found(candidates, at, torch.cat([_widest(pos, here)[None], numbers.double()]), rooms)


def _widest(pos: Tensor, here: OnDevice) -> Tensor:
    """Largest diagonal (Å) of a box around a structure; NaN if some position is not finite."""
    count = here.cell.shape[0]
    where = here.structure[:, None].expand(-1, 3)
    low = pos.new_full((count, 3), torch.inf).scatter_reduce_(0, where, pos, "amin")
    high = pos.new_full((count, 3), -torch.inf).scatter_reduce_(0, where, pos, "amax")
    diagonal = torch.linalg.vector_norm((high - low).clamp(min=0.0), dim=1)
    finite = torch.where(torch.isfinite(pos).all(), 0.0, torch.nan)
    return torch.cat([diagonal, diagonal.new_zeros(1)]).amax() + finite


def _checked(read: list[float], plan: Plan, rooms: dict[int, Room]) -> dict[int, Room]:
    """The room that large structures need, after checking the positions."""
    if not np.isfinite(read[0]):
        raise UserError(NOT_FINITE)
    check_width(read[0])
    return {k: Room(int(read[1 + 2 * i]), int(read[2 + 2 * i])) for i, k in enumerate(rooms)}


def _lists(made: Found, sizes: Sizes, plan: Plan, here: OnDevice, cell: NDArray[np.float64]) -> Graph:
    """The graph, once all sizes are known."""
    at, device = made.counted, here.structure.device
    rows, num_atoms = at.rows, len(plan.structure)
    published = np.array([s.symmetrize == "jmp" for s in plan.settings], dtype=bool)
    shifts = Shifts(here.structure, sent(cell, device), sent(published, device))
    place = Graphs(*(positions(mask, size.rows) for mask, size in zip(at.masks, sizes.edges, strict=True)))
    edges = Graphs(
        *(
            edge_set(p, first, size.width, rows, made.candidates, shifts)
            for p, first, size in zip(place, at.first, sizes.edges, strict=True)
        )
    )
    ends = np.array([s.envelope_end for s in plan.settings], dtype=np.float64)
    return Graph(
        **edges._asdict(),
        reverse=at.number.main[rows.reverse[place.main]],
        twin=found(at.number.a2ee2a[place.main], at.masks.a2ee2a[place.main], edges.a2ee2a.num_edges),
        pairs=pair_sums(edges.a2a, sizes.pairs, num_atoms),
        quadruplets=quadruplets(at, sizes, edges.main, edges.qint, place.main, place.qint),
        envelope_end_of_atom=sent(ends, device)[here.structure],
        num_atoms=num_atoms,
        num_structures=len(plan.natoms),
    )
