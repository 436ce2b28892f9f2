"""Which structures of a store are meant: all of them, or indices that lie in a file and are read where they are needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.files import write_array, write_json

Ints = NDArray[np.int64]
_BLOCK = 1 << 20


class Selection:
    """Structures of a store, by their numbers in it; a value.

    Attributes:
        bounds: smallest and largest number; (0, -1) if there is none.
        digest: hash of the numbers; another one means another selection.
    """

    def __init__(self, indices: NDArray[Any] | None, length: int, bounds: tuple[int, int], digest: str) -> None:
        """Use `every`, `of` or `kept_selections`.

        Args:
            indices: whole numbers [length], in memory or memory-mapped; None for 0 to length - 1.
            length: how many.
            bounds: smallest and largest number.
            digest: of the numbers.
        """
        self._indices, self._length, self.bounds, self.digest = indices, length, bounds, digest

    @classmethod
    def every(cls, length: int) -> Selection:
        """All structures of a store of that length; costs no memory."""
        return cls(None, length, (0, length - 1), f"every {length}")

    @classmethod
    def of(cls, indices: NDArray[Any]) -> Selection:
        """The structures with these numbers; reads all of them once."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(indices), _BLOCK):
            digest.update(np.ascontiguousarray(indices[start : start + _BLOCK], dtype="<i8").tobytes())
        bounds = (int(indices.min()), int(indices.max())) if len(indices) else (0, -1)
        return cls(indices, len(indices), bounds, digest.hexdigest())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, places: NDArray[np.int64] | slice) -> Ints:
        """Numbers in the store of the given places 0 ≤ place < len."""
        if self._indices is not None:
            return np.asarray(self._indices[places], dtype=np.int64)
        if isinstance(places, slice):
            return np.arange(*places.indices(self._length), dtype=np.int64)
        return np.asarray(places, dtype=np.int64)


def keep_selections(folder: Path, selections: dict[str, NDArray[Any]], origin: dict[str, Any]) -> None:
    """Write one `NAME.npy` per selection (uint32 where that is enough), and last a note of where they come from.

    Args:
        folder: is made where it is missing.
        selections: indices by name, ascending.
        origin: JSON-ready; `kept_selections` compares it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "note.json"
    note.unlink(missing_ok=True)
    digests = {}
    for name, indices in selections.items():
        small = len(indices) == 0 or int(indices[-1]) < 2**32
        write_array(folder / f"{name}.npy", indices.astype(np.uint32 if small else np.int64))
        digests[name] = Selection.of(indices).digest
    write_json(note, {"origin": origin, "digests": digests})


def kept_selections(folder: Path, origin: dict[str, Any]) -> dict[str, Selection] | None:
    """What `keep_selections` wrote with the same origin, memory-mapped; None if there is nothing such."""
    note = folder / "note.json"
    if not note.is_file():
        return None
    found = json.loads(note.read_text())
    if found["origin"] != origin:
        return None
    out = {}
    for name, digest in found["digests"].items():
        indices = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        bounds = (int(indices[0]), int(indices[-1])) if len(indices) else (0, -1)
        out[name] = Selection(indices, len(indices), bounds, digest)
    return out
