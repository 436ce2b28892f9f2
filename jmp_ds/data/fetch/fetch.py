"""A whole data set: every file fetched, its checksum judged and remembered, archives unpacked."""

from __future__ import annotations

import datetime
import json
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jmp_ds.data.fetch.download import Patience, checksums, download
from jmp_ds.data.fetch.sources import RemoteFile, Source
from jmp_ds.errors import UserError
from jmp_ds.files import write_json

RECORD = "fetched.json"


@dataclass(frozen=True)
class Fetched:
    """What became of one file.

    Attributes:
        path: where it is.
        bytes: its size.
        sha256: its checksum.
        how: how far its content can be relied upon, in words.
        unpacked: where its members are; None if it is no archive.
        exclude: it lists structures that are to be left out.
    """

    path: Path
    bytes: int
    sha256: str
    how: str
    unpacked: Path | None = None
    exclude: bool = False


def fetch(
    source: Source,
    folder: Path,
    *,
    patience: Patience | None = None,
    seen: Callable[[str, int, int], None] = lambda name, have, total: None,
) -> list[Fetched]:
    """Fetch all files of a data set into a folder; what is there and right already is not fetched again.

    Args:
        source: which.
        folder: where to.
        patience: of the downloads.
        seen: told of a file's name, bytes that have arrived, and bytes there are.

    Raises:
        UserError: a file cannot be had, or is another one than the publisher states or than it was the first time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_one(remote, folder, patience, seen) for remote in source.files]


def _one(remote: RemoteFile, folder: Path, patience: Patience | None, seen: Callable[[str, int, int], None]) -> Fetched:
    """One file, judged, remembered and unpacked."""
    path = folder / remote.name
    if not path.is_file():
        download(remote, folder, patience=patience, seen=lambda have, total: seen(remote.name, have, total))
    found = checksums(path, lambda have, total: seen(f"{remote.name} (checksum)", have, total))
    size = path.stat().st_size
    known = _remembered(folder).get(remote.name, {})
    how = _judge(remote, path, size, found, known)
    if not known:
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"url": remote.url, "bytes": size, **found, "fetched": when, "checksum": how}
        write_json(folder / RECORD, {**_remembered(folder), remote.name: entry})
    unpacked = _unpack(path, found["sha256"]) if remote.unpack else None
    return Fetched(path, size, found["sha256"], how, unpacked, remote.exclude)


def _judge(remote: RemoteFile, path: Path, size: int, found: dict[str, str], known: dict[str, Any]) -> str:
    """How far a file can be relied upon.

    Raises:
        UserError: it is not what it should be; it is moved aside.
    """
    wrong = ""
    if remote.kind and found[remote.kind] != remote.checksum:
        wrong = f"its {remote.kind} is {found[remote.kind]}, {remote.stated} states {remote.checksum}"
    elif remote.bytes and size != remote.bytes:
        wrong = f"it has {size} bytes, {remote.stated} states {remote.bytes}"
    elif known and known.get("sha256") != found["sha256"]:
        wrong = f"its sha256 is {found['sha256']}, at its first download it was {known.get('sha256')}"
    if wrong:
        aside = path.with_name(f"{path.name}.wrong")
        path.replace(aside)
        raise UserError(f"{path} is not the right file: {wrong}. It now lies in {aside.name}; fetch it again")
    if remote.kind:
        return f"{remote.kind} as stated by {remote.stated}"
    return "as at its first download" if known else "no checksum is published; remembered for the next time"


def _remembered(folder: Path) -> dict[str, dict[str, Any]]:
    """What the folder's record says of earlier downloads."""
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}); remove it, and checksums are remembered anew") from error
    return value if isinstance(value, dict) else {}


def _unpack(path: Path, checksum: str) -> Path:
    """Members of an archive, in a folder beside it that appears when all are there.

    Raises:
        UserError: it is no archive, is damaged, or has members that would lie elsewhere.
    """
    target = path.with_name(path.name.split(".")[0])
    mark = target / f".unpacked-{checksum[:16]}"
    if mark.is_file():
        return target
    if target.exists():
        raise UserError(f"{target} is in the way: {path.name} is to be unpacked there; move it away")
    draft = path.with_name(f".{target.name}.unpacking")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        _extract(path, draft)
        # An archive of archives, as data repositories make them of their files.
        for inner in sorted(draft.rglob("*.zip")):
            _extract(inner, inner.parent)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(f"{path} cannot be unpacked: {error}") from error
    except UserError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    (draft / mark.name).touch()
    draft.replace(target)
    return target


def _extract(path: Path, folder: Path) -> None:
    """Files of a tar or zip archive; links, devices and paths that lead elsewhere are refused."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = PurePosixPath(info.filename)
                if name.is_absolute() or ".." in name.parts or stat.S_ISLNK(info.external_attr >> 16):
                    raise UserError(f"{path}: member {info.filename!r} would lie elsewhere; nothing was unpacked")
            archive.extractall(folder)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            try:
                tar.extractall(folder, filter="data")
            except tarfile.FilterError as error:
                raise UserError(f"{path}: {error}; nothing was unpacked") from None
    else:
        raise UserError(f"{path} is no tar or zip archive")
