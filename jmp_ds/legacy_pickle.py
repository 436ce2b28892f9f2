"""Reads files written by `torch.save` without running anything that is in them.

Such files are pickles, and a pickle is a program. The reader here admits tensors, ordered dictionaries and the built-in
containers. Any other class or function that a file names becomes an inert `Placeholder`, which remembers its name and
what it was given; it is never imported, let alone called. A file that names something made for running code
(`os.system`, `eval`) is refused.

Both formats of `torch.save` are read: the zip file of PyTorch ≥ 1.6, whose tensors stay on disk until they are used,
and the older stream of pickles.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from jmp_ds.errors import UserError

_ZIP_START = b"PK\x03\x04"
_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_PROTOCOL = 1001

#: What unpickling, the zip module and PyTorch raise on bytes that make no sense.
DAMAGE = (
    *(pickle.UnpicklingError, EOFError, zipfile.BadZipFile, UnicodeDecodeError, OverflowError),
    *(ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError),
)

#: Modules whose names have no place in a file of weights.
_REFUSED_MODULES = frozenset(
    {"code", "codeop", "commands", "ctypes", "imp", "importlib", "marshal", "nt", "os", "pdb", "pickle", "_pickle"}
    | {"posix", "pty", "runpy", "shutil", "socket", "subprocess", "_posixsubprocess", "sys", "webbrowser"}
)
_REFUSED_BUILTINS = frozenset(
    {"eval", "exec", "execfile", "compile", "open", "file", "input", "raw_input", "breakpoint", "exit", "quit"}
    | {"globals", "locals", "vars", "setattr", "delattr", "__import__"}
)
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class RefusedFile(UserError):
    """A file that cannot be read, or that must not be."""


class Placeholder:
    """Stands for an object of a class, or the result of a function, that is not admitted.

    Attributes:
        name: `module.name` as the file has it.
        arguments: what it was made with.
        state: what was restored into it, or None.
        items: what was added to it as to a list, set or dictionary.
    """

    name = ""
    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *arguments: Any, **keywords: Any) -> Placeholder:
        """Remember everything, do nothing."""
        made = super().__new__(cls)
        made.arguments = (*arguments, keywords) if keywords else arguments
        made.state, made.items = None, []
        return made

    def __init__(self, *arguments: Any, **keywords: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        """Remember an item."""
        self.items.append(value)

    add = append

    def extend(self, values: Any) -> None:
        """Remember items."""
        self.items.extend(values)

    def __repr__(self) -> str:
        return f"<not read: {self.name}>"


def read_torch_file(path: str | Path) -> Any:
    """What `torch.save` wrote into a file; tensors on the CPU.

    The tensors of a zip file are mapped copy-on-write from the file: keep it in place while they are in use.

    Raises:
        RefusedFile: there is no such file, it is no PyTorch file, it is cut off, or it names something that runs code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == _ZIP_START:
                return _read_zip(path)
            return read_stream(file, path.stat().st_size)
    except RefusedFile as error:
        raise RefusedFile(f"{path}: {error}") from None
    except OSError as error:
        raise RefusedFile(f"{path}: cannot be opened ({error.strerror or error})") from None
    except DAMAGE as error:
        raise RefusedFile(f"{path}: not a PyTorch file, or a damaged or incomplete one ({error})") from None


class Kind(NamedTuple):
    """A class of storages: its element type."""

    dtype: torch.dtype


class Storage(NamedTuple):
    """One block of memory: bytes, and the type that its elements have unless a tensor says otherwise."""

    bytes: Tensor
    dtype: torch.dtype


class Admitted:
    """A function that a file may call: cannot be changed by what the file does with it."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise RefusedFile("changes a function; this is no file of weights")

    def __call__(self, *arguments: Any) -> Any:
        """What the function makes of the arguments."""
        return self._function(*arguments)


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view into a storage; PyTorch checks that it stays inside."""
    return torch.as_strided(storage.bytes.view(storage.dtype), size, stride, offset)


def _typed_tensor(storage: Storage, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, *rest: Any) -> Tensor:
    """The same for a storage without a type."""
    return _tensor(Storage(storage.bytes, rest[0]), offset, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _ordered(*arguments: Any) -> OrderedDict[Any, Any]:
    return OrderedDict(*arguments)


def _default_dict(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _encoded(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _attribute(owner: Any, name: str) -> type[Placeholder]:
    """How old pickles name nested classes: nothing is looked up."""
    return _placeholder(f"{getattr(owner, 'name', '?')}.{name}")


_ADMITTED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _default_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": tuple,
    "_codecs.encode": _encoded,
    "builtins.getattr": _attribute,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.slice": slice,
}


def _placeholder(name: str) -> type[Placeholder]:
    """A class of its own, because pickles make objects from classes."""
    return type("Placeholder", (Placeholder,), {"name": name, "__slots__": ()})


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler that resolves every name in `find_class`, and storages by a given function; nothing is imported."""

    def __init__(self, file: IO[bytes], storage: Callable[[Kind, str, int], Tensor] | None = None) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str, /) -> Any:
        """What a name stands for here."""
        module = _OLD_MODULES.get(module, module)
        full = f"{module}.{name}"
        if full in _ADMITTED:
            return Admitted(_ADMITTED[full])
        if module in ("torch", "torch.storage", "torch.cuda") and name in STORAGE_DTYPES:
            return Kind(STORAGE_DTYPES[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.split(".")[0] in _REFUSED_MODULES or (module == "builtins" and name in _REFUSED_BUILTINS):
            raise RefusedFile(f"names {full}, which runs code: it was not made to be read. Nothing was executed")
        return _placeholder(full)

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a reference means."""
        if self._storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise RefusedFile(f"has a reference that is no tensor ({pid!r})")
        _, kind, key, _location, length, *view = pid
        if not isinstance(kind, Kind) or any(v is not None for v in view):
            raise RefusedFile(f"has a tensor of a kind that is not supported ({kind!r})")
        return Storage(self._storage(kind, str(key), int(length)), kind.dtype)


def _read_zip(path: Path) -> Any:
    """The format of PyTorch ≥ 1.6: `PREFIX/data.pkl` and one uncompressed entry `PREFIX/data/KEY` per storage."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise RefusedFile("is a zip file, but not one of PyTorch (no data.pkl)")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
            raise RefusedFile("was written on a big-endian machine, which is not supported")
        blocks: dict[str, Tensor] = {}

        def storage(kind: Kind, key: str, length: int) -> Tensor:
            if key not in blocks:
                info = entries.get(f"{prefix}data/{key}")
                if info is None:
                    raise RefusedFile(f"lacks the data of a tensor (data/{key})")
                if info.file_size != length * kind.dtype.itemsize:
                    raise RefusedFile(f"tensor data/{key} has {info.file_size} bytes instead of what its header says")
                blocks[key] = _entry_bytes(path, archive, info)
            return blocks[key]

        with archive.open(pickles[0]) as file:
            return RestrictedUnpickler(file, storage).load()


def _entry_bytes(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """The bytes of an entry, mapped from the file where they are stored as they are."""
    if info.file_size == 0:
        return torch.empty(0, dtype=torch.uint8)
    if info.compress_type != zipfile.ZIP_STORED:
        return torch.frombuffer(bytearray(archive.read(info)), dtype=torch.uint8)
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), dtype="<u2")
    start = info.header_offset + 30 + int(lengths.sum())
    return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(info.file_size,)))


def read_stream(file: IO[bytes], file_size: int, unpickler: type[RestrictedUnpickler] = RestrictedUnpickler) -> Any:
    """The format before PyTorch 1.6: several pickles, then the storages one after the other.

    Raises:
        RefusedFile: it is no such stream, is cut off, or names something that runs code.
    """
    if unpickler(file).load() != _STREAM_MAGIC:
        raise RefusedFile("is no PyTorch file, or one of PyTorch before 0.4")
    if unpickler(file).load() != _STREAM_PROTOCOL:
        raise RefusedFile("has an unknown version of PyTorch's file format")
    if not unpickler(file).load().get("little_endian", True):
        raise RefusedFile("was written on a big-endian machine, which is not supported")
    blocks: dict[str, Tensor] = {}
    itemsize: dict[str, int] = {}

    def storage(kind: Kind, key: str, length: int) -> Tensor:
        if key not in blocks:
            size = length * kind.dtype.itemsize
            if not 0 <= size <= file_size:
                raise RefusedFile(f"says that tensor {key} has {size} bytes, more than the whole file")
            blocks[key], itemsize[key] = torch.empty(size, dtype=torch.uint8), kind.dtype.itemsize
        return blocks[key]

    result = unpickler(file, storage).load()
    for key in unpickler(file).load():
        block = blocks[str(key)]
        length = int.from_bytes(file.read(8), "little")
        if length * itemsize[str(key)] != block.numel():
            raise RefusedFile(f"tensor {key} has another length than its header says")
        content = file.read(block.numel())
        if len(content) != block.numel():
            raise RefusedFile(f"ends within tensor {key}; it is incomplete")
        if content:
            block.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return result
