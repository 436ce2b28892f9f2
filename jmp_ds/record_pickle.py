"""Reads pickled records of structures (PyTorch Geometric's `Data`, old and new layout) without running what is in them.

Stricter than `legacy_pickle`: a record needs tensors, arrays and plain values, so any name outside the list here is
refused, not replaced. Even the admitted names are never imported: tensors and arrays are rebuilt here from their bytes,
and `Data` becomes a dictionary. PyTorch Geometric need not be installed.
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from jmp_ds.legacy_pickle import (
    DAMAGE,
    STORAGE_DTYPES,
    Admitted,
    Kind,
    RefusedFile,
    RestrictedUnpickler,
    Storage,
    read_stream,
)
from jmp_ds.legacy_pickle import Placeholder as Inert
from jmp_ds.pickle_scan import scan

#: An expanded tensor may have more elements than its storage, but no more than this.
_LARGEST_EXPANSION = 1 << 20
_DATA = ("torch_geometric.data.data.Data", "torch_geometric.data.Data")
#: Classes that records name; they stand for their fields alone.
_INERT = (
    *_DATA,
    "torch_geometric.data.storage.GlobalStorage",
    "torch_geometric.data.storage.BaseStorage",
    "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr",
    "builtins.object",
    "numpy.ndarray",
)
_PARTS_OF_A_STREAM = 5


class Numbers(NamedTuple):
    """A tensor or array of a record, as NumPy sees it."""

    array: NDArray[Any]


class _Dtype:
    """A NumPy type while it is rebuilt: plain numbers and texts only."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "biufcSU" or self.dtype.subdtype is not None:
            raise RefusedFile(f"holds an array of {code!r}, which is not one of numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])
        if any(part is not None for part in state[2:5]):
            raise RefusedFile("holds an array with named fields, which is not one of numbers")


class _Array:
    """A NumPy array while it is rebuilt."""

    __slots__ = ("array",)

    def __init__(self, *_: Any) -> None:
        self.array: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, raw = state
        self.array = _from_bytes(raw, dtype, shape, "F" if fortran else "C")


def read_record(data: bytes) -> Any:
    """What a pickle of a record, or of a list of records, holds.

    Tensors and arrays become NumPy arrays, each `Data` a dictionary of its fields, in whatever order of nesting lists,
    tuples and dictionaries they stand.

    Raises:
        RefusedFile: the bytes are no such pickle, name anything that records do not need, or claim more than there is.
    """
    try:
        scan(data)
        return _Plain(len(data)).of(_RecordUnpickler(io.BytesIO(data)).load())
    except RefusedFile:
        raise
    except (*DAMAGE, RecursionError, MemoryError) as error:
        raise RefusedFile(f"is no record, or a damaged one ({error})") from None


def fields_of(value: Any) -> Any:
    """The fields of an inert `Data`, whichever release of PyTorch Geometric wrote it, as far as they have values.

    Raises:
        RefusedFile: it is no such record.
    """
    state = value.state if isinstance(value, Inert) and value.name in _DATA else None
    store = state.get("_store") if isinstance(state, Mapping) else None
    if isinstance(store, Inert):
        state = store.state.get("_mapping") if isinstance(store.state, Mapping) else None
    if not isinstance(state, Mapping):
        raise RefusedFile("holds a record without fields")
    return {str(key): field for key, field in state.items() if field is not None}


class _Plain:
    """Turns what was unpickled into arrays, dictionaries, lists and plain values.

    A few bytes can make lists that hold one another a billion times over; what takes more visits than the pickle has
    bytes is refused.
    """

    def __init__(self, visits: int) -> None:
        self._left = visits

    def of(self, value: Any) -> Any:
        """The plain form of a value; what stands for nothing here is None."""
        self._left -= 1
        if self._left < 0:
            raise RefusedFile("holds the same values over and over")
        if isinstance(value, Numbers | _Array):
            return value.array
        if isinstance(value, Inert):
            return self.of(fields_of(value)) if value.name in _DATA else None
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item) for item in value]
        return value if isinstance(value, str | bytes | int | float) else None


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> NDArray[Any]:
    """An array of exactly these bytes."""
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise RefusedFile("holds an array of objects, which are not read")
    return np.frombuffer(bytes(raw), dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, raw: Any = b"") -> Numbers:
    return Numbers(_from_bytes(raw, dtype, ()))


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> Numbers:
    return Numbers(_from_bytes(raw, dtype, shape, order))


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Numbers:
    """A view into a storage, as an array; PyTorch checks that it stays inside."""
    if not isinstance(storage, Storage):
        raise RefusedFile("holds a tensor without a storage")
    available = storage.bytes.numel() // storage.dtype.itemsize
    if math.prod(size) > max(available, _LARGEST_EXPANSION):
        raise RefusedFile(f"claims a tensor of {math.prod(size)} elements in a storage of {available}")
    tensor = torch.as_strided(storage.bytes.view(storage.dtype), size, stride, offset)
    return Numbers((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _typed_tensor(storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, *rest: Any) -> Numbers:
    """The same for a storage without a type."""
    return _tensor(Storage(storage.bytes, rest[0]), offset, size, stride)


def _storage_of(data: Any) -> Storage:
    """A storage that was saved as a file within the pickle; nothing but a storage may be in that file."""
    if not isinstance(data, bytes | bytearray):
        raise RefusedFile("holds a storage without bytes")
    data = bytes(data)
    at = 0
    for _ in range(_PARTS_OF_A_STREAM):
        at = scan(data, at)
    stored = read_stream(io.BytesIO(data), len(data), _StorageUnpickler)
    if not isinstance(stored, Storage):
        raise RefusedFile("holds a file within the file that is no storage")
    return stored


def _made(kind: Any, *_: Any) -> Inert:
    """How the oldest protocols make an object from its class."""
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise RefusedFile("makes an object of something that is no class")
    return kind()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """How old protocols write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedFile("holds bytes in an unknown encoding")
    return text.encode("latin1")


_ADMITTED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda *arguments: OrderedDict(*arguments),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch.storage._load_from_bytes": _storage_of,
    "torch.Size": tuple,
    "copyreg._reconstructor": _made,
    "_codecs.encode": _encoded,
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}
_STREAM_ADMITTED = frozenset({"collections.OrderedDict"})
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _StrictUnpickler(RestrictedUnpickler):
    """Admits what is on its list; refuses the rest by name."""

    admitted: frozenset[str] = frozenset()
    inert: frozenset[str] = frozenset()

    def find_class(self, module: str, name: str, /) -> Any:
        """What a name stands for here; none but those admitted stands for anything."""
        full = f"{_OLD_MODULES.get(module, module)}.{name}"
        if full in self.admitted:
            return Admitted(_ADMITTED[full])
        if full in self.inert:
            return type("Inert", (Inert,), {"name": full, "__slots__": ()})
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return Kind(STORAGE_DTYPES[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise RefusedFile(f"names {full}, which no record of a structure needs. Nothing was executed")


class _StorageUnpickler(_StrictUnpickler):
    """For the file of one storage."""

    admitted = _STREAM_ADMITTED


class _RecordUnpickler(_StrictUnpickler):
    """For a record."""

    admitted = frozenset(_ADMITTED)
    inert = frozenset(_INERT)

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse: a record is whole."""
        raise RefusedFile(f"refers to something outside itself ({str(pid)[:60]})")
