"""Text files one after another, from a folder, a zip, a tar or a single file; nothing is ever unpacked to disk."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from jmp_ds.errors import UserError

#: No structure file of a molecule or crystal is larger; what is, is not one (or is made to fill memory).
LARGEST = 256 * 2**20


def texts(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, text) of every member whose name ends in one of the suffixes, in the archive's or sorted order.

    A single file that is no archive is yielded whatever its name. Junk that macOS adds to archives is left out.

    Raises:
        UserError: no such path, a damaged archive, no member of that kind, or one that is too large or no text.
    """
    found = False
    for name, data in _members(path, suffixes):
        found = True
        try:
            yield name, data.decode("utf-8-sig")
        except UnicodeDecodeError:
            # Older structure files hold names of people in Latin-1; what matters in them is ASCII.
            yield name, data.decode("latin-1")
    if not found:
        raise UserError(f"{path} holds no file named {' or '.join('*' + s for s in suffixes)}")


def _members(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file() and _wanted(p.name, suffixes)):
            yield str(file.relative_to(path)), _limited(file.open("rb"), str(file))
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and _wanted(entry.filename, suffixes):
                    yield entry.filename, _limited(archive.open(entry), f"{path}: {entry.filename}")
    elif tarfile.is_tarfile(path):
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile() and _wanted(member.name, suffixes):
                        stream = tar.extractfile(member)
                        if stream is not None:
                            yield member.name, _limited(stream, f"{path}: {member.name}")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
    else:
        yield path.name, _limited(open_binary(path), str(path))


def _wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    pure = PurePosixPath(name)
    return name.endswith(suffixes) and "__MACOSX" not in pure.parts and not pure.name.startswith("._")


def _limited(stream: IO[bytes] | Any, where: str) -> bytes:
    """All of a stream, up to `LARGEST` bytes."""
    with stream:
        data: bytes = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UserError(f"{where} is larger than {LARGEST >> 20} MiB, which no structure file is")
    return data


def open_binary(path: Path) -> IO[bytes] | Any:
    """A file for reading, unpacked on the way if it ends in .gz or .xz.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")
