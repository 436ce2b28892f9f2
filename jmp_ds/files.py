"""Writing files so that a reader finds either the old or the new one, never half of one."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, bring it to disk, and move it into place in one step."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any, *, finite: bool = True) -> None:
    """Write JSON with sorted keys, atomically.

    Args:
        path: the file.
        value: what JSON can hold.
        finite: refuse numbers that are not finite; results of a run may hold some.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=not finite) + "\n")


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write one `.npy` file, atomically."""
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names (so that renames survive a power cut), is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def same_access(path: Path, like: Path) -> None:
    """Let those read and write a file who may do so with another one; safetensors shuts its files to all but the owner."""
    path.chmod(stat.S_IMODE(like.stat().st_mode))


def sha256(path: Path) -> str:
    """Checksum of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
