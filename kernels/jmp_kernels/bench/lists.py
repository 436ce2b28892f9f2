"""Who belongs where in a batch: the integer lists that the operators take, from degrees shipped for real batches.

Degrees, sizes and the places of contiguous runs are those of the batch; which row of a run is left out, and which atom
of its structure a pair comes from, is regular instead. That keeps the shipped file small and the memory traffic as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jmp_kernels.middles import MiddleRows
from jmp_kernels.segments import Gather, LookUp, Segments, segments_of

DEGREES = Path(__file__).with_name("degrees.npz")

#: Of the out-pairs (c→a, b→a), one in this many has no in-triplet d = c.
_WITHOUT_SAME = 4

#: Middle bonds into one atom, as the published cap has it.
_MOST_MIDDLES = 8


@dataclass(frozen=True)
class Degrees:
    """Sizes of the lists of one batch.

    Attributes:
        natoms: [B], atoms of every structure.
        main: [N], main edges into every atom.
        atom_edge: [N], a2ee2a edges into every atom.
        pairs: [N], atom pairs into every atom.
        in_start, in_count: [Q], the in-triplets of every middle bond: a run of the edges that feed.
        out_start, out_count: [E_r], the out-pairs of every edge that reads: a run of middle bonds.
        middles: [N], middle bonds into every atom.
        readers: [N], edges that read, into every atom.
        feeding: edges that feed, E_f.
    """

    natoms: Tensor
    main: Tensor
    atom_edge: Tensor
    pairs: Tensor
    in_start: Tensor
    in_count: Tensor
    out_start: Tensor
    out_count: Tensor
    middles: Tensor
    readers: Tensor
    feeding: int


@dataclass(frozen=True)
class Lists:
    """The lists of a batch on a device.

    Attributes:
        name: of the batch.
        main: main edges by target atom.
        atom_edge: a2ee2a edges by target atom.
        source: source atom of every a2ee2a edge.
        twin: the a2ee2a edge that is the same as a main edge.
        pairs: atom pairs by target atom.
        pair_source: source atom of every pair.
        middles: rows of the quadruplets.
    """

    name: str
    main: Segments
    atom_edge: Segments
    source: Gather
    twin: LookUp
    pairs: Segments
    pair_source: Gather
    middles: MiddleRows


def shipped() -> tuple[str, ...]:
    """Names of the batches whose degrees are shipped."""
    with np.load(DEGREES, allow_pickle=False) as held:
        return tuple(dict.fromkeys(key.split("/")[0] for key in held.files))


def read_degrees(name: str) -> Degrees:
    """Degrees of a shipped batch.

    Raises:
        ValueError: no such batch.
    """
    if name not in shipped():
        raise ValueError(f"no batch {name!r}; there are {', '.join(shipped())}")
    with np.load(DEGREES, allow_pickle=False) as held:
        fields = {field: held[f"{name}/{field}"] for field in Degrees.__dataclass_fields__}
    feeding = int(fields.pop("feeding"))
    return Degrees(**{key: torch.from_numpy(value.astype(np.int64)) for key, value in fields.items()}, feeding=feeding)


def write_degrees(path: Path, batches: Mapping[str, Degrees]) -> None:
    """Inverse of `read_degrees`, for all batches at once."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, degrees in batches.items():
        for field in Degrees.__dataclass_fields__:
            value = np.asarray(getattr(degrees, field))
            arrays[f"{name}/{field}"] = value.astype(np.min_scalar_type(int(value.max(initial=0))))
    np.savez_compressed(path, allow_pickle=False, **arrays)


def small_degrees(sizes: Sequence[int]) -> Degrees:
    """One structure whose atoms have these numbers of incoming edges of every kind; for checks at awkward sizes."""
    degrees = torch.tensor(sizes, dtype=torch.int64)
    middles = degrees.clamp(max=_MOST_MIDDLES)
    first_edge, first_middle = (torch.cumsum(d, 0) - d for d in (degrees, middles))
    of_middle = torch.arange(int(middles.sum())) % max(len(sizes), 1)
    of_edge = torch.repeat_interleave(torch.arange(len(sizes)), degrees)
    return Degrees(
        natoms=torch.tensor([len(sizes)]),
        main=degrees,
        atom_edge=degrees // 2 + degrees % 2,
        pairs=degrees,
        in_start=first_edge[of_middle],
        in_count=degrees[of_middle],
        out_start=first_middle[of_edge],
        out_count=middles[of_edge],
        middles=middles,
        readers=degrees,
        feeding=int(degrees.sum()),
    )


def lists_of(name: str, degrees: Degrees, device: torch.device) -> Lists:
    """The lists that degrees stand for."""
    atoms = len(degrees.main)
    main, atom_edge, pairs = (_segments(d) for d in (degrees.main, degrees.atom_edge, degrees.pairs))
    rank = torch.arange(main.num_rows) - main.first[main.index]
    exists = rank < degrees.atom_edge[main.index]
    twin = LookUp(torch.where(exists, atom_edge.first[main.index] + rank, 0), exists, atom_edge.num_rows)
    made = Lists(
        name=name,
        main=main,
        atom_edge=atom_edge,
        source=Gather(_sources(atom_edge, degrees.natoms), atoms),
        twin=twin,
        pairs=pairs,
        pair_source=Gather(_sources(pairs, degrees.natoms), atoms),
        middles=_middles(degrees),
    )
    return _on(made, device)


def _segments(degrees: Tensor) -> Segments:
    return segments_of(torch.repeat_interleave(torch.arange(len(degrees)), degrees), len(degrees))


def _ranks(segments: Segments) -> Tensor:
    """Place of every row within its segment."""
    return torch.arange(segments.num_rows) - segments.first[segments.index]


def _sources(segments: Segments, natoms: Tensor) -> Tensor:
    """For every row an atom of the structure of its target, one after the other from the target on."""
    structure = torch.repeat_interleave(torch.arange(len(natoms)), natoms)[segments.index]
    first = (torch.cumsum(natoms, 0) - natoms)[structure]
    return first + (segments.index - first + 1 + _ranks(segments)) % natoms[structure]


def _middles(degrees: Degrees) -> MiddleRows:
    by_middle, by_reader = _segments(degrees.in_count), _segments(degrees.out_count)
    feature = degrees.in_start[by_middle.index] + _ranks(by_middle)
    middle = degrees.out_start[by_reader.index] + _ranks(by_reader)
    size = degrees.in_count[middle]
    number = torch.arange(by_reader.num_rows)
    found = (size > 0) & (number % _WITHOUT_SAME != 0)
    same = torch.where(found, by_middle.first[middle] + number // _WITHOUT_SAME % size.clamp(min=1), 0)
    return MiddleRows(
        feature=Gather(feature, degrees.feeding),
        by_middle=by_middle,
        middle=Gather(middle, by_middle.count),
        by_reader=by_reader,
        same=LookUp(same, found, by_middle.num_rows),
        reader_target=_segments(degrees.readers).index,
        middle_target=_segments(degrees.middles).index,
    )


def _on(value: Any, device: torch.device) -> Any:
    """A nest of the dataclasses above with its tensors on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Lists | Segments | Gather | LookUp | MiddleRows):
        fields = type(value).__dataclass_fields__
        return type(value)(**{name: _on(getattr(value, name), device) for name in fields})
    return value
