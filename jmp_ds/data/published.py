"""Published splits: rebuilt from their seed and sizes over the positions of the source, not of the store.

A store lacks what was left out when it was made; the publishers' shuffle ran over everything. So the split is made over
all positions of the source, and those that are in the store are kept, each under its index there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jmp_ds.data.exclusion import EXCLUDED
from jmp_ds.data.splits import Ints
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.files import sha256, write_array, write_json

SPLITS = Path(__file__).parents[1] / "recipes" / "data" / "splits.yaml"
REST = "rest"


@dataclass(frozen=True, kw_only=True)
class PublishedSplit:
    """How a split is made.

    Attributes:
        parts: name -> number of structures, fraction (rounded down), or `rest`; dealt out in this order.
        seed: of the shuffle.
        folds: number of folds for cross-validation, one of which is the test set; 0 for none.
        folds_seed: of the shuffle that makes the folds.
        stratified: label by whose classes the folds are balanced; empty for none.
        note: what one should know.
    """

    parts: Mapping[str, int | float | str]
    seed: int
    folds: int = 0
    folds_seed: int = 0
    stratified: str = ""
    note: str = ""


def published(name: str, file: Path = SPLITS) -> PublishedSplit:
    """One entry of the recipe data.

    Raises:
        UserError: there is none of that name, or it makes no sense.
    """
    try:
        values = yaml.safe_load(file.read_text())
        if name not in values:
            raise UserError(f"there is no published split {name!r}; there are {', '.join(sorted(values))}")
        return PublishedSplit(**values[name])
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{file}: split {name!r} cannot be read: {error}") from error


def make(
    how: PublishedSplit, count: int, *, fold: int | None = None, classes: Sequence[int] | None = None
) -> dict[str, Ints]:
    """The split over `count` positions of a source.

    Args:
        how: the recipe.
        count: structures of the source.
        fold: which fold is the test set, counted from 0, where there are folds.
        classes: class of each position, where folds are balanced.

    Returns:
        By name of the part, sorted positions.

    Raises:
        UserError: more structures are asked for than there are, or a fold that does not exist.
    """
    if not how.folds:
        return _deal(np.arange(count), how)
    if fold is None or not 0 <= fold < how.folds:
        raise UserError(f"this split has folds 0 to {how.folds - 1}; name one with --fold")
    if how.stratified:
        if classes is None:
            raise UserError(f"this split is balanced over the classes of label {how.stratified!r}, which must be known")
        owner = stratified_folds(np.asarray(classes), how.folds, how.folds_seed)
    else:
        owner = plain_folds(count, how.folds, how.folds_seed)
    return {**_deal(np.flatnonzero(owner != fold), how), "test": np.flatnonzero(owner == fold)}


def plain_folds(count: int, folds: int, seed: int) -> Ints:
    """Fold of each position, as scikit-learn's KFold(shuffle=True) has it."""
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    owner = np.empty(count, dtype=np.int64)
    for fold, positions in enumerate(np.array_split(order, folds)):
        owner[positions] = fold
    return owner


def stratified_folds(classes: Ints, folds: int, seed: int) -> Ints:
    """Fold of each position, as scikit-learn's StratifiedKFold(shuffle=True) has it."""
    _, first, inverse = np.unique(classes, return_index=True, return_inverse=True)
    # classes are numbered in the order in which they occur
    number = np.argsort(np.argsort(first))[inverse]
    ordered = np.sort(number)
    shares = np.array([np.bincount(ordered[fold::folds], minlength=len(first)) for fold in range(folds)])
    random = np.random.RandomState(seed)
    owner = np.empty(len(classes), dtype=np.int64)
    for k in range(len(first)):
        folds_of_class = np.arange(folds).repeat(shares[:, k])
        random.shuffle(folds_of_class)
        owner[number == k] = folds_of_class
    return owner


def positions(store: Store) -> Ints:
    """Position in its source of every structure of a store, int64 [n].

    It stands in the record (`info["position"]`), or behind the last # of its id; a store that lacks nothing is in the order
    of its source. Structures that were excluded by a list do not belong to the source: positions are counted without them.

    Raises:
        UserError: positions cannot be told, or occur twice.
    """
    found = np.empty(len(store), dtype=np.int64)
    for i, record in enumerate(store):
        number = record.info.get("position", record.id.rpartition("#")[2] if "#" in record.id else None)
        if number is None or not str(number).isdigit():
            if left_out(store):
                raise UserError(f"store {store.path}: structure {i} does not say where in its source it was")
            return np.arange(len(store))
        found[i] = int(number)
    if len(np.unique(found)) != len(found):
        raise UserError(
            f"store {store.path} is made of several files; a published split is of one: convert each by itself"
        )
    if dict(store.metadata.get(EXCLUDED, {})).get("structures"):
        if left_out(store):
            raise UserError(
                f"store {store.path}: some structures were excluded and others could not be taken, so where the rest were "
                "among those that are not excluded is not known; mend the source, or split by --part"
            )
        found = np.argsort(np.argsort(found))
    return found


def left_out(store: Store) -> int:
    """Structures of the source that are not in the store, though no list excluded them."""
    return sum(int(count) for count in dict(store.metadata.get("skipped", {})).values())


def of_store(how: PublishedSplit, store: Store, *, fold: int | None = None) -> dict[str, Ints]:
    """The split of a store: by name of the part, sorted indices of the store.

    Raises:
        UserError: see `make` and `positions`.
    """
    where = positions(store)
    count = len(store) + left_out(store)
    if where.size and int(where.max()) >= count:
        raise UserError(f"store {store.path}: a structure was number {int(where.max())} of a source of {count}")
    classes = None
    if how.stratified:
        if count != len(store):
            raise UserError(f"store {store.path} lacks {count - len(store)} structures whose classes are needed")
        classes = np.empty(count, dtype=np.int64)
        classes[where] = [int(record.labels[how.stratified]) for record in store]
    index = np.full(count, -1)
    index[where] = np.arange(len(store))
    parts = make(how, count, fold=fold, classes=classes if classes is None else classes.tolist())
    return {name: np.sort(index[part][index[part] >= 0]) for name, part in parts.items()}


def _deal(pool: Ints, how: PublishedSplit) -> dict[str, Ints]:
    """A shuffled pool, dealt out in order."""
    order = np.arange(len(pool))
    np.random.RandomState(how.seed).shuffle(order)
    sizes: dict[str, int] = {}
    for name, share in how.parts.items():
        sizes[name] = -1 if share == REST else int(share * len(pool)) if isinstance(share, float) else int(share)
    rest = len(pool) - sum(size for size in sizes.values() if size >= 0)
    if rest < 0 or (rest == 0 and -1 in sizes.values()):
        raise UserError(f"split: {dict(how.parts)} asks for more than the {len(pool)} structures there are")
    out, at = {}, 0
    for name, size in sizes.items():
        stop = at + (rest if size < 0 else size)
        out[name] = np.sort(pool[order[at:stop]])
        at = stop
    return out


def written(parts: Mapping[str, Ints], folder: Path, about: Mapping[str, Any]) -> None:
    """Write PART.npy for every part, and split.json that says how it came about.

    Raises:
        UserError: the folder holds a split already.
    """
    if (folder / "split.json").exists():
        raise UserError(f"{folder} holds a split already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        write_array(folder / f"{name}.npy", part)
    sums = {name: sha256(folder / f"{name}.npy") for name in parts}
    write_json(folder / "split.json", {**about, "sizes": {k: len(v) for k, v in parts.items()}, "sha256": sums})
