"""What can be fetched: read from recipe data, checked entry by entry."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import yaml

from jmp_ds.errors import UserError

SOURCES = Path(__file__).parents[2] / "recipes" / "data" / "sources.yaml"
_LENGTHS = {"md5": 32, "sha256": 64}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a publisher.

    Attributes:
        url: where it is.
        name: what it is called here.
        bytes: its size, where the publisher states it; 0 where not.
        kind: `md5` or `sha256`, where the publisher states a checksum; empty where not.
        checksum: that checksum, in lower case.
        stated: who states it.
        unpack: it is an archive that is to be unpacked beside itself.
        exclude: it is no source, but a list of structures that are to be left out.
    """

    url: str
    name: str
    bytes: int = 0
    kind: str = ""
    checksum: str = ""
    stated: str = ""
    unpack: bool = False
    exclude: bool = False


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        name: what it is fetched by.
        title, licence, citation: for people, shown before anything is fetched.
        files: what belongs to it.
        convert: what `jmp-ds data convert` is told of the files.
    """

    name: str
    title: str
    licence: str
    citation: str
    files: tuple[RemoteFile, ...]
    convert: str = ""


def sources(file: Path = SOURCES) -> dict[str, Source]:
    """All data sets in a file of recipe data, by name.

    Raises:
        UserError: the file cannot be read, or an entry makes no sense.
    """
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read as a list of sources: {error}") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{file}: expected names with their sources")
    return {str(name): _source(str(name), entry, file) for name, entry in values.items()}


def source(name: str, file: Path = SOURCES) -> Source:
    """One data set.

    Raises:
        UserError: there is none of that name; the message names those that sound alike.
    """
    known = sources(file)
    if name not in known:
        near = difflib.get_close_matches(name, known, 5, 0.4) or sorted(known)
        raise UserError(f"there is no source {name!r}; did you mean {', '.join(near)}? `jmp-ds data fetch` lists all")
    return known[name]


def _source(name: str, entry: Any, file: Path) -> Source:
    """One entry."""
    try:
        texts = {key: str(entry[key]) for key in ("title", "licence", "citation")}
        files = tuple(_remote(item) for item in entry["files"])
        unknown = set(entry) - {"title", "licence", "citation", "files", "convert"}
        if unknown or not files:
            raise ValueError(f"unknown keys {sorted(unknown)}" if unknown else "no files")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: source {name!r} makes no sense: {error!r}") from error
    return Source(name=name, files=files, convert=str(entry.get("convert", "")), **texts)


def _remote(item: Mapping[str, Any]) -> RemoteFile:
    """One file of an entry."""
    address = urlparse(str(item["url"]))
    name = str(item.get("name") or PurePosixPath(unquote(address.path)).name)
    if address.scheme not in ("http", "https") or not name or "/" in name or name.startswith("."):
        raise ValueError(f"address {item['url']!r} or name {name!r}")
    kinds = [kind for kind in _LENGTHS if kind in item]
    kind = kinds[-1] if kinds else ""
    checksum = str(item[kind]).lower() if kind else ""
    if kind and (len(checksum) != _LENGTHS[kind] or not item.get("from")):
        raise ValueError(f"checksum {checksum!r} of {name}: wrong length, or without saying who states it")
    size, unpack = int(item.get("bytes", 0)), bool(item.get("unpack", False))
    stated, exclude = str(item.get("from", "")), bool(item.get("exclude", False))
    return RemoteFile(str(item["url"]), name, size, kind, checksum, stated, unpack, exclude)
