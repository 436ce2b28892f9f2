"""Helpers for the readers of array files: opening without pickle, and one frame after another of one molecule."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.data import chemical_symbols
from ase.symbols import symbols2numbers
from numpy.typing import NDArray

from jmp_ds.errors import UserError


def open_npz(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of an .npz; nothing pickled is ever loaded.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: not an .npz.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} is not a NumPy .npz file ({error})") from error
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise UserError(f"{path} is a single array, not an .npz file")
    return loaded


def need(arrays: Mapping[str, Any], keys: Mapping[str, str], path: Path, where: str = "") -> dict[str, NDArray[Any]]:
    """The arrays under the given keys: {our name: key in the file}.

    Raises:
        UserError: a key is missing, or holds pickled objects; the message says which exist.
    """
    missing = [key for key in keys.values() if key not in arrays]
    if missing:
        place = f"{path}{f' ({where})' if where else ''}"
        raise UserError(f"{place} lacks {missing}, it has {sorted(arrays)}; is the format the right one?")
    try:
        return {name: np.asarray(arrays[key][()]) for name, key in keys.items()}
    except ValueError as error:
        raise UserError(f"{path}: an array holds Python objects, which are not loaded ({error})") from error


def open_hdf5(path: Path) -> h5py.File:
    """An HDF5 file, read-only.

    Raises:
        UserError: it is missing or no HDF5 file.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5: {error}") from error


#: Groups of an HDF5 file that make a portion.
GROUPS_PER_PORTION = 100


def hdf5_names(file: h5py.File, *keys: str) -> list[str]:
    """Names of every group, at any depth and in the file's order, that holds all the given data sets.

    Raises:
        UserError: there is none.
    """
    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and all(key in item for key in keys):
            names.append(name)

    file.visititems(visit)
    if not names:
        raise UserError(f"{file.filename} has no group with {list(keys)}; is the format the right one?")
    return names


def hdf5_groups(file: h5py.File, *keys: str) -> Iterator[tuple[str, h5py.Group]]:
    """Those groups with their names.

    Raises:
        UserError: there is none.
    """
    for name in hdf5_names(file, *keys):
        yield name, file[name]


def hdf5_units(path: Path, *keys: str) -> tuple[int, int]:
    """How many such groups a file has, and how many make a portion.

    Raises:
        UserError: it is no HDF5 file, or has none.
    """
    with open_hdf5(path) as file:
        return len(hdf5_names(file, *keys)), GROUPS_PER_PORTION


def numbers_of(species: Any) -> NDArray[np.int64]:
    """Atomic numbers, from numbers or from symbols as text or bytes."""
    values = np.asarray(species)
    if values.dtype.kind in "iuf":
        return values.astype(np.int64)
    return np.array(symbols2numbers([v.decode() if isinstance(v, bytes) else str(v) for v in values]), dtype=np.int64)


def formula(numbers: NDArray[Any]) -> str:
    """Composition in alphabetical order, such as C2H6O: a group key where there is no better one."""
    counts = {chemical_symbols[z]: int((numbers == z).sum()) for z in np.unique(numbers)}
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in sorted(counts.items()))
