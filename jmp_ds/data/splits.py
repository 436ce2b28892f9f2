"""Which structures are for training, validation and test: by fraction or count with a seed, or from files.

Where structures belong to groups (molecule, material, trajectory), a group goes to one split as a whole, because nearly
equal structures on both sides would make a test worthless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError

Ints = NDArray[np.int64]
By = Literal["group", "structure"]


def split(
    groups: NDArray[np.uint64], shares: Mapping[str, float | int], *, seed: int = 0, by: By = "group"
) -> dict[str, Ints]:
    """Split structures at random, the same way for the same seed.

    The order in which groups (or structures without a group) are dealt out depends on the seed and on each group's own
    key alone, so a group's place does not depend on the other groups' contents.

    Args:
        groups: group hash per structure, 0 for a structure that stands alone (`Store.groups`).
        shares: per split its size: all fractions (sum at most 1), or all counts (int). Counts are met exactly, unless
            groups do not allow it: then a split stays below its count by less than one group.
        seed: chooses the order.
        by: `structure` ignores the groups, e.g. within a single trajectory; neighbours in time may then be on both
            sides.

    Returns:
        By name of the split, sorted indices. What no split claims is in none.

    Raises:
        UserError: shares that make no sense, too few structures or groups, a split that would be empty.
    """
    n = len(groups)
    targets = _targets(shares, n)
    unit, sizes = _units(groups, seed) if by == "group" else _units(np.zeros(n, dtype=np.uint64), seed)
    if len(sizes) < len([t for t in targets.values() if t > 0]):
        raise UserError(
            f"split: {n} structures in {len(sizes)} groups cannot be split into {', '.join(targets)} without cutting a "
            "group; use `by: structure` if neighbouring structures may be on both sides"
        )
    owner = _deal_exactly(sizes, targets) if _are_counts(shares) else _deal_fractions(sizes, targets)
    out = {name: np.flatnonzero(owner[unit] == i) for i, name in enumerate(targets)}
    for name, indices in out.items():
        if targets[name] > 0 and not len(indices):
            raise UserError(
                f"split: {name} would be empty ({len(sizes)} groups over {n} structures); "
                "ask for a larger share or use `by: structure`"
            )
    return out


def split_from_files(files: Mapping[str, str | Path], length: int) -> dict[str, Ints]:
    """Splits from files of indices counted from 0: `.npy`, `.json` (a list), or text with one number per line.

    Raises:
        UserError: a missing or unreadable file, an index that does not exist, occurs twice, or is in two splits.
    """
    out: dict[str, Ints] = {}
    owner = np.full(length, -1)
    for i, (name, file) in enumerate(files.items()):
        indices = np.sort(read_indices(file))
        if len(indices) == 0:
            raise UserError(f"split {name}: {file} holds no indices")
        if indices[0] < 0 or indices[-1] >= length:
            wrong = int(indices[0] if indices[0] < 0 else indices[-1])
            raise UserError(f"split {name}: {file} holds index {wrong}; the store has 0 to {length - 1}")
        twice = indices[:-1][np.diff(indices) == 0]
        if len(twice):
            raise UserError(f"split {name}: {file} holds index {int(twice[0])} twice")
        taken = indices[owner[indices] >= 0]
        if len(taken):
            raise UserError(f"split {name}: index {int(taken[0])} is also in {list(files)[owner[taken[0]]]}")
        owner[indices] = i
        out[name] = indices
    return out


def read_indices(file: str | Path) -> Ints:
    """Whole numbers from a `.npy`, `.json` or text file, in the file's order, int64.

    Raises:
        UserError: the file is missing, or holds anything else.
    """
    path = Path(file)
    try:
        if path.suffix == ".npy":
            values: Any = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            values = np.array(json.loads(path.read_text()))
        else:
            values = np.array([int(line) for line in path.read_text().replace(",", "\n").split()], dtype=np.int64)
    except (OSError, ValueError) as error:
        raise UserError(f"split: indices cannot be read from {path}: {error}") from error
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise UserError(f"split: {path} must hold one list of whole numbers, found {values.dtype} {values.shape}")
    return np.asarray(values, dtype=np.int64)


def _targets(shares: Mapping[str, float | int], n: int) -> dict[str, int]:
    """Structures per split."""
    if not shares or any(s < 0 for s in shares.values()) or all(s == 0 for s in shares.values()):
        raise UserError(f"split: shares must not be negative, nor all zero, got {dict(shares)}")
    if _are_counts(shares):
        if sum(shares.values()) > n:
            raise UserError(f"split: {dict(shares)} asks for {sum(shares.values())} structures, there are {n}")
        return {name: int(s) for name, s in shares.items()}
    total = sum(shares.values())
    if total > 1.0 + 1e-9:
        raise UserError(f"split: fractions {dict(shares)} add up to {total:g}; give fractions up to 1, or only counts")
    # Rounding the borders instead of the sizes makes fractions that add up to 1 use every structure.
    borders = [round(n * b) for b in np.cumsum([0.0, *shares.values()]).tolist()]
    return {name: borders[i + 1] - borders[i] for i, name in enumerate(shares)}


def _are_counts(shares: Mapping[str, float | int]) -> bool:
    return all(isinstance(s, int) for s in shares.values())


def _units(groups: NDArray[np.uint64], seed: int) -> tuple[Ints, Ints]:
    """What is dealt out: for every structure its unit, numbered in random order; and the units' sizes."""
    key = np.frombuffer(hashlib.blake2b(f"split/{seed}".encode(), digest_size=16).digest(), dtype="<u8")
    alone = groups == 0
    # A structure that stands alone is known by its number, under another key than groups are.
    names = np.where(alone, np.arange(len(groups), dtype=np.uint64) ^ key[0], np.asarray(groups) ^ key[1])
    _, unit, sizes = np.unique(_scramble(names), return_inverse=True, return_counts=True)
    return unit.astype(np.int64), sizes.astype(np.int64)


def _deal_fractions(sizes: Ints, targets: dict[str, int]) -> Ints:
    """Units in order, each to the split in whose stretch of the structures its middle lies; -1 beyond all stretches."""
    middles = np.cumsum(sizes) - 0.5 * sizes
    borders = np.cumsum(list(targets.values()))
    owner = np.searchsorted(borders, middles, side="right")
    return np.where(owner < len(targets), owner, -1)


def _deal_exactly(sizes: Ints, targets: dict[str, int]) -> Ints:
    """Units in order, each to the first split that has room for all of it; -1 if none has."""
    room = list(targets.values())
    owner = np.full(len(sizes), -1, dtype=np.int64)
    for unit, size in enumerate(sizes.tolist()):
        for i, free in enumerate(room):
            if size <= free:
                room[i] -= size
                owner[unit] = i
                break
        if not any(room):
            break
    return owner


def _scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A fixed bijective hash of 64-bit integers (the finaliser of splitmix64); wraps around by design."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
