"""One file over HTTP: goes on where it broke off, and appears under its name only when it is whole and right.

What has arrived lies in `NAME.part`; beside it stands in `NAME.part.json` which version of the file that is (ETag, or
time of change, and length). Going on, the server is asked for the rest of that very version (`If-Range`); one that
has another version, or knows no ranges, sends everything, and then the file is begun anew.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmp_ds.data.fetch.sources import RemoteFile
from jmp_ds.errors import UserError
from jmp_ds.files import to_disk, write_json

_CHUNK = 1 << 20
_AGENT = "jmp-ds"


@dataclass(frozen=True)
class Patience:
    """How long to wait.

    Attributes:
        tries: attempts without a single byte gained before giving up.
        pause: seconds before the second attempt; doubled with each.
        timeout: seconds without an answer.
    """

    tries: int = 5
    pause: float = 1.0
    timeout: float = 60.0


class _Broken(Exception):
    """The connection broke; another attempt may help."""


def download(
    remote: RemoteFile,
    folder: Path,
    *,
    patience: Patience | None = None,
    seen: Callable[[int, int], None] = lambda have, total: None,
) -> Path:
    """Fetch one file; returns where it is. Its checksum is for the caller to judge.

    Args:
        remote: what.
        folder: where to.
        patience: see there.
        seen: told, now and then, how many bytes have arrived and how many there are (0 where not known).

    Raises:
        UserError: it cannot be had; what has arrived stays for the next attempt.
    """
    how = patience or Patience()
    folder.mkdir(parents=True, exist_ok=True)
    part, note = folder / f"{remote.name}.part", folder / f"{remote.name}.part.json"
    failures, pause = 0, how.pause
    while True:
        before = _size(part)
        try:
            _attempt(remote, part, note, how.timeout, seen)
            break
        except _Broken as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= how.tries:
                raise UserError(
                    f"{remote.url}: {error}; {_size(part)} bytes are kept in {part}, the same command goes on from there"
                ) from None
            time.sleep(pause)
            pause = how.pause if failures == 1 else 2 * pause
    to_disk(part)
    part.replace(folder / remote.name)
    note.unlink(missing_ok=True)
    return folder / remote.name


def checksums(path: Path, seen: Callable[[int, int], None] = lambda have, total: None) -> dict[str, str]:
    """MD5 (as publishers state it) and SHA-256 of a file, read once."""
    made = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    total, have = path.stat().st_size, 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            for one in made.values():
                one.update(data)
            have += len(data)
            seen(have, total)
    return {kind: one.hexdigest() for kind, one in made.items()}


def _attempt(remote: RemoteFile, part: Path, note: Path, timeout: float, seen: Callable[[int, int], None]) -> None:
    """Get what is missing, until the end or a break."""
    have, version = _size(part), _version(note)
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if have and version.get("validator"):
        headers |= {"Range": f"bytes={have}-", "If-Range": version["validator"]}
    else:
        have = 0
    try:
        request = urllib.request.Request(remote.url, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            goes_on = answer.status == 206 and _starts_at(answer.headers.get("Content-Range", ""), have)
            have = have if goes_on else 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            if not goes_on:
                write_json(note, {"validator": _validator(answer.headers), "total": total, "url": remote.url})
            _receive(answer, part, have, total, seen)
    except urllib.error.HTTPError as error:
        _refused(error, remote, part, note, version)
    except urllib.error.URLError as error:
        raise _Broken(f"no connection ({error.reason}); is there a network, and a proxy if one is needed?") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(f"the connection broke ({type(error).__name__}: {error})") from None


def _receive(answer: Any, part: Path, have: int, total: int, seen: Callable[[int, int], None]) -> None:
    """Write an answer behind the first `have` bytes."""
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        file.truncate()
        try:
            while data := answer.read(_CHUNK):
                file.write(data)
                have += len(data)
                seen(have, total)
        finally:
            file.flush()
            os.fsync(file.fileno())
    if total and have != total:
        raise _Broken(f"the connection ended after {have} of {total} bytes")


def _refused(
    error: urllib.error.HTTPError, remote: RemoteFile, part: Path, note: Path, version: dict[str, Any]
) -> None:
    """What an answer with an error means."""
    if error.code == 416 and version.get("total") == _size(part):
        return  # asked for what lies behind the end: everything is there
    if error.code == 416:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise _Broken("the server knows no such range; beginning anew") from None
    if error.code >= 500 or error.code in (408, 429):
        raise _Broken(f"the server answers {error.code} {error.reason}") from None
    raise UserError(
        f"{remote.url}: the server answers {error.code} {error.reason}; has the publisher moved the file? "
        f"Fetched by hand, it may be put in place as {remote.name}"
    ) from None


def _validator(headers: Any) -> str:
    """What names this version of the file for `If-Range`: a strong ETag, else the time of change."""
    tag = headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""


def _starts_at(content_range: str, have: int) -> bool:
    """Whether an answer in part begins where we are: `bytes 100-199/200`."""
    kind, _, rest = content_range.strip().partition(" ")
    return kind == "bytes" and rest.split("-")[0] == str(have)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _version(note: Path) -> dict[str, Any]:
    """What stands beside a part; nothing if it cannot be read."""
    try:
        value = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
