"""Slurm's short ways of writing lists: hosts, and tasks per node."""

from __future__ import annotations

import re

_PIECE = re.compile(r"[^\[\],]+|\[[^\[\]]*\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_TIMES = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand_hosts(text: str) -> list[str]:
    """Names in Slurm's order, e.g. `node[01-03,07],gpu5` → node01, node02, node03, node07, gpu5.

    Raises:
        ValueError: it is not such a list.
    """
    return [name for word in _split(text) for name in _expand_word(word)]


def expand_counts(text: str) -> list[int]:
    """Numbers, e.g. `2(x3),1` → 2, 2, 2, 1.

    Raises:
        ValueError: it is not such a list.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = _TIMES.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a list of counts in Slurm's way")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _split(text: str) -> list[str]:
    """The words between those commas that are outside brackets."""
    words = re.findall(r"(?:[^\[\],]+|\[[^\[\]]*\])+", text)
    if not words or ",".join(words) != text:
        raise ValueError(f"{text!r} is not a list of hosts in Slurm's way")
    return words


def _expand_word(word: str) -> list[str]:
    """All names of one word, the last bracket running fastest."""
    names = [""]
    for piece in _PIECE.findall(word):
        choices = _expand_bracket(piece[1:-1]) if piece.startswith("[") else [piece]
        names = [name + choice for name in names for choice in choices]
    return names


def _expand_bracket(content: str) -> list[str]:
    """Numbers and ranges, as wide as they are written."""
    numbers: list[str] = []
    for part in content.split(","):
        match = _RANGE.fullmatch(part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"[{content}] is not a list of numbers in Slurm's way")
        numbers += [f"{n:0{len(match[1])}d}" for n in range(int(match[1]), int(match[2] or match[1]) + 1)]
    return numbers
