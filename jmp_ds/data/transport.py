"""Batches from a worker process to the trainer: all tensors in one block of shared memory, the rest beside it.

A batch holds about a hundred tensors. Sent as they are, each would take a file of shared memory and a descriptor; in one
block they cost one, however the batch is nested.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Tensors start at multiples of this many bytes, enough for every dtype.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Parcel:
    """A value taken apart for the way between two processes of this program.

    Attributes:
        skeleton: everything but the tensors.
        places: (start in bytes, dtype, shape) of each tensor in `block`.
        block: uint8, all tensors one after the other.
    """

    skeleton: bytes
    places: list[tuple[int, torch.dtype, torch.Size]]
    block: Tensor


def pack(value: Any) -> Parcel:
    """Take any nest of dataclasses, containers and CPU tensors apart."""
    text = io.BytesIO()
    pickler = _Pickler(text)
    pickler.dump(value)
    places, start = [], 0
    for tensor in pickler.tensors:
        places.append((start, tensor.dtype, tensor.shape))
        start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    block = torch.empty(start, dtype=torch.uint8)
    for (begin, _, _), tensor in zip(places, pickler.tensors, strict=True):
        if tensor.numel():
            block[begin : begin + tensor.nbytes] = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return Parcel(text.getvalue(), places, block)


def unpack(parcel: Parcel) -> Any:
    """Put a parcel together again; its tensors are views of the one block."""
    return _Unpickler(parcel).load()


class _Pickler(pickle.Pickler):
    """Leaves tensors out and collects them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._numbers:  # the same tensor twice is one tensor
            self._numbers[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._numbers[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Fills the tensors in. It reads only what a worker of this program has just written, never a file."""

    def __init__(self, parcel: Parcel) -> None:
        super().__init__(io.BytesIO(parcel.skeleton))
        self._tensors = [
            parcel.block[start : start + shape.numel() * dtype.itemsize].view(dtype).reshape(shape)
            for start, dtype, shape in parcel.places
        ]

    def persistent_load(self, pid: Any) -> Tensor:
        return self._tensors[pid]
