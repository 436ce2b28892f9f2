"""Orders of an epoch: keyed bijections of its positions, computed where they are asked for and never held.

`permute` is as good as a uniform random permutation for sampling. `permute_locally` keeps to few places of the disk at a
time: structures that lie side by side come in the same stretch of the epoch (`CHAPTER` positions), in random order within
it. docs/scale.md says how random it is.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError

Ints = NDArray[np.int64]
Words = NDArray[np.uint32]
Order = Literal["random", "local"]

#: Raised when the same seed gives another order than before.
RULES_VERSION = 2
#: Neighbours on disk that stay together in the local order, and how many such runs a stretch of the epoch mixes.
RUN, RUNS_MIXED = 64, 1024
CHAPTER = RUN * RUNS_MIXED
#: Halves of a position are kept in 16 bits, so that hashing works on 32-bit words.
LONGEST = 2**32
_ROUNDS = 6


def permute(values: Ints, length: int, key: str) -> Ints:
    """Image of each value under a bijection of 0..length-1 that `key` chooses.

    A Feistel network on pairs (value div b, value mod b) with a·b barely above `length`; what falls outside is sent
    through again until it is inside (cycle walking), which keeps it a bijection.

    Raises:
        UserError: `length` above `LONGEST`.
    """
    if length > LONGEST:
        raise UserError(f"sampling: {length} structures per epoch; {LONGEST} is the most there can be")
    a = math.isqrt(max(length - 1, 0)) + 1
    b = max(1, -(-length // a))
    keys = _keys(key)
    out = _feistel(values, a, b, keys)
    while (outside := np.flatnonzero(out >= length)).size:
        out[outside] = _feistel(out[outside], a, b, keys)
    return out


def permute_locally(values: Ints, length: int, key: str) -> Ints:
    """Image of each value under a bijection of 0..length-1 that `key` chooses and that keeps neighbours near each other.

    0..length-1 is cut into runs of `RUN`. The runs are permuted, and each `RUNS_MIXED` of them that then follow each
    other are mixed: their structures in random order fill one chapter of positions.
    """
    runs = -(-length // RUN)
    out = _one_pass(values, runs, key)
    # The last run may be short: what falls on its missing part is sent through again.
    while (outside := np.flatnonzero(out >= length)).size:
        out[outside] = _one_pass(out[outside], runs, key)
    return out


def _one_pass(values: Ints, runs: int, key: str) -> Ints:
    """A bijection of 0..runs·RUN-1: positions are mixed within their chapter, then runs are permuted."""
    mixed = np.empty_like(values)
    chapters = values // CHAPTER
    for chapter in np.unique(chapters).tolist():
        own = np.flatnonzero(chapters == chapter)
        first = chapter * CHAPTER
        size = min(CHAPTER, runs * RUN - first)
        mixed[own] = permute(values[own] - first, size, f"{key}/{chapter}") + first
    run, offset = np.divmod(mixed, RUN)
    return permute(run, runs, f"{key}/runs") * RUN + offset


def _keys(key: str) -> Words:
    digest = hashlib.blake2b(key.encode(), digest_size=4 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.uint32)


def _feistel(values: Ints, a: int, b: int, keys: Words) -> Ints:
    """One pass: the two halves are shifted in turn by a hash of the other, modulo their sizes."""
    high = values // b
    left, right = high.astype(np.uint32), (values - high * b).astype(np.uint32)
    scratch, spare = np.empty_like(left), np.empty_like(left)
    for i in range(0, _ROUNDS, 2):
        _shift(left, right, a, keys[i], scratch, spare)
        _shift(right, left, b, keys[i + 1], scratch, spare)
    return left.astype(np.int64) * b + right


def _shift(half: Words, other: Words, size: int, key: np.uint32, hashed: Words, spare: Words) -> None:
    """half ← (half + hash(other ^ key)) mod size, in place; `hashed` and `spare` are room to work in.

    The hash is a bijection of 32-bit words (xor-shift and multiply, C. Wellons' `lowbias32`), wrapping by design.
    """
    np.bitwise_xor(other, key, out=hashed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        np.right_shift(hashed, shift, out=spare)
        np.bitwise_xor(hashed, spare, out=hashed)
        np.multiply(hashed, np.uint32(factor), out=hashed)
    np.right_shift(hashed, 16, out=spare)
    np.bitwise_xor(hashed, spare, out=hashed)
    # hashed mod size: dividing by a scalar is fast where taking the remainder is not
    divisor = np.uint32(size)
    np.floor_divide(hashed, divisor, out=spare)
    np.multiply(spare, divisor, out=spare)
    np.subtract(hashed, spare, out=hashed)
    np.add(half, hashed, out=half)
    # A sum below `size` wraps to a large number here, so the smaller of both is the sum modulo `size`.
    np.subtract(half, divisor, out=spare)
    np.minimum(half, spare, out=half)
