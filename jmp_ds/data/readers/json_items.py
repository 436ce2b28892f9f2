"""The entries of a JSON list one after another, so that a file of gigabytes takes the memory of one entry."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jmp_ds.data.readers.archive import open_binary
from jmp_ds.errors import UserError

_CHUNK = 1 << 22
#: An entry longer than this is none.
_LONGEST = 1 << 28


def items(path: Path) -> Iterator[Any]:
    """Entries of the list that a JSON file (also .gz or .xz) holds.

    Raises:
        UserError: it is no JSON list, or is cut off.
    """
    decoder, text = json.JSONDecoder(), ""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    try:
        with open_binary(path) as stream:
            text = utf8.decode(stream.read(_CHUNK)).lstrip()
            if not text.startswith("["):
                raise UserError(f"{path} holds no JSON list")
            text = text[1:]
            while True:
                text = text.lstrip(" \t\r\n,")
                if text.startswith("]"):
                    return
                try:
                    value, end = decoder.raw_decode(text)
                except json.JSONDecodeError:
                    value, end = None, 0
                # a number at the very end of what has been read may go on
                if end and end < len(text):
                    yield value
                    text = text[end:]
                    continue
                more = stream.read(max(_CHUNK, len(text)))
                if not more or len(text) > _LONGEST:
                    raise UserError(f"{path}: its list is cut off, or not JSON, near {text[:60]!r}")
                text += utf8.decode(more)
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
