"""Arrays of an .npz row by row, so that a file of gigabytes takes the memory of a block; nothing pickled is loaded."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError

_SKIPPED_AT_ONCE = 1 << 24


class Rows:
    """One array of an .npz, read from its first row to its last.

    Attributes:
        shape: of the whole array.
        dtype: of its entries.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, where: Path) -> None:
        """Read the header.

        Raises:
            UserError: there is no such array, or it holds Python objects.
        """
        self._where = f"{where}: array {name!r}"
        try:
            self._stream = archive.open(f"{name}.npy")
            version = np.lib.format.read_magic(self._stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, fortran, self.dtype = read(self._stream)
        except KeyError as error:
            raise UserError(f"{self._where} is not there; there are {archive.namelist()}") from error
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self._where} cannot be read: {error}") from error
        if self.dtype.hasobject:
            raise UserError(f"{self._where} holds Python objects, which are not loaded")
        self._whole = self._load_fortran() if fortran and len(self.shape) > 1 else None
        self._at = 0

    def skip(self, count: int) -> None:
        """Leave out some rows."""
        self._at += count
        left = 0 if self._whole is not None else count * self._row_bytes
        while left > 0:
            left -= len(self._stream.read(min(left, _SKIPPED_AT_ONCE))) or left

    def read(self, count: int) -> NDArray[Any]:
        """The next rows [count, ...].

        Raises:
            UserError: the file ends before.
        """
        if self._whole is not None:
            self._at += count
            return self._whole[self._at - count : self._at]
        try:
            data = self._stream.read(count * self._row_bytes)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise UserError(f"{self._where} is damaged: {error}") from error
        if len(data) != count * self._row_bytes:
            raise UserError(f"{self._where} is cut off")
        self._at += count
        return np.frombuffer(data, dtype=self.dtype).reshape((count, *self.shape[1:]))

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def _load_fortran(self) -> NDArray[Any]:
        """An array in the other order has no rows to be read one by one."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return np.frombuffer(self._stream.read(size), dtype=self.dtype).reshape(self.shape, order="F")


class NpzFile:
    """An .npz whose arrays are opened for reading row by row; use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it is no .npz.
        """
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is not a NumPy .npz file ({error})") from error

    def rows(self, name: str) -> Rows:
        """One array.

        Raises:
            UserError: there is no such array, or it holds Python objects.
        """
        return Rows(self._archive, name, self._path)

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()
