"""Looks through the instructions of a pickle before it is read: lengths and indices must fit the bytes that are there.

Python's unpickler believes what a pickle claims: an instruction to remember an object under number 2,000,000,000 makes
it clear 30 GB of memory, and a number from the registry of extensions bypasses the list of admitted names. Neither
occurs in data; both are refused here, before a single object is made.
"""

from __future__ import annotations

import pickle
import pickletools
import struct

#: Instructions that no data need: registered extensions, buffers outside the pickle, references as text.
_REFUSED = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"}
_COUNTS = {
    pickletools.TAKEN_FROM_ARGUMENT1: ("<B", 1),
    pickletools.TAKEN_FROM_ARGUMENT4: ("<i", 4),
    pickletools.TAKEN_FROM_ARGUMENT4U: ("<I", 4),
    pickletools.TAKEN_FROM_ARGUMENT8U: ("<Q", 8),
}
_MEMO = {"BINPUT": "<B", "LONG_BINPUT": "<I", "BINGET": "<B", "LONG_BINGET": "<I"}
_TWO_LINES = {"GLOBAL", "INST"}


class BadPickle(pickle.UnpicklingError):
    """A pickle that claims what cannot be, or asks for what no data need."""


def _table() -> list[tuple[str, int]]:
    """By instruction byte: its name and the length of its argument (see `pickletools`); no name where there is none."""
    table = [("", 0)] * 256
    for opcode in pickletools.opcodes:
        table[ord(opcode.code)] = (opcode.name, 0 if opcode.arg is None else opcode.arg.n)
    return table


_OPCODES = _table()


def scan(data: bytes, start: int = 0) -> int:
    """Check one pickle; returns where it ends.

    Args:
        data: bytes that hold the pickle, and perhaps more after it.
        start: where it begins.

    Raises:
        BadPickle: it is cut off, no pickle, claims more than there is, or uses an instruction that is refused.
    """
    at, size = start, len(data)
    while at < size:
        name, length = _OPCODES[data[at]]
        at += 1
        if length > 0 or name == "FRAME":
            _check_fixed(name, data, at, size)
            at += length
        elif length < 0:
            at = _skip(name, length, data, at)
        elif name == "STOP":
            return at
        elif not name or name in _REFUSED:
            raise BadPickle(f"holds instruction {name or data[at - 1]!r}, which data do not need")
        if at > size:
            break
    raise BadPickle("is cut off, or claims more than there is")


def _check_fixed(name: str, data: bytes, at: int, size: int) -> None:
    """An instruction with an argument of fixed length."""
    if name in _REFUSED:
        raise BadPickle(f"holds instruction {name}, which data do not need")
    if name in _MEMO and at + struct.calcsize(_MEMO[name]) <= size:
        index = struct.unpack_from(_MEMO[name], data, at)[0]
        if index >= size:
            raise BadPickle(f"remembers an object under number {index}, more than it can hold")
    if name == "FRAME" and at + 8 <= size and at + 8 + struct.unpack_from("<Q", data, at)[0] > size:
        raise BadPickle("claims a frame beyond its end")


def _skip(name: str, length: int, data: bytes, at: int) -> int:
    """Behind an argument of variable length."""
    if name in _REFUSED:
        raise BadPickle(f"holds instruction {name}, which data do not need")
    if length in _COUNTS:
        form, width = _COUNTS[length]
        if at + width > len(data):
            return len(data) + 1
        claimed = struct.unpack_from(form, data, at)[0]
        if claimed < 0:
            raise BadPickle(f"claims a text of {claimed} bytes")
        return at + width + int(claimed)
    for _ in range(2 if name in _TWO_LINES else 1):
        end = data.find(b"\n", at)
        if end < 0:
            return len(data) + 1
        if name in ("PUT", "GET") and not (data[at:end].isdigit() and int(data[at:end][:20]) < len(data)):
            raise BadPickle(f"remembers an object under number {data[at:end][:20]!r}")
        at = end + 1
    return at
