"""What `jmp-ds data show` and `jmp-ds data check` tell about a store, as plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from jmp_ds.data.layout import StoreIncomplete
from jmp_ds.data.progress import tracked
from jmp_ds.data.record import BadRecord, validate
from jmp_ds.data.references import load_statistics
from jmp_ds.data.store import Store, group_hash
from jmp_ds.errors import UserError
from jmp_ds.files import sha256

_UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}


@dataclass(frozen=True)
class Table:
    """Rows of text under headings, for whatever prints them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store.

    Attributes:
        code: short name of the kind of problem.
        where: the file or structure.
        message: what is wrong.
    """

    code: str
    where: str
    message: str


def show(store: Store) -> list[Table]:
    """Tables about a store: what it holds, its labels, its elements, and what its makers say of it."""
    return [_contents(store), _labels(store), _elements(store), _metadata(store)]


def show_record(store: Store, i: int) -> list[Table]:
    """Tables about structure i of a store.

    Raises:
        UserError: there is no such structure.
    """
    if not 0 <= i < len(store):
        raise UserError(f"store {store.path} has structures 0 to {len(store) - 1}, not {i}")
    record = store[i]
    facts = {
        "id": record.id,
        "group": record.group or "none",
        "atoms": str(record.natoms),
        "formula": _formula(record.atomic_numbers),
        "periodic": " ".join("yes" if p else "no" for p in record.pbc),
        "cell (Å)": "; ".join(" ".join(f"{x:.6g}" for x in row) for row in record.cell),
        "tags": _counted(record.tags),
        "fixed atoms": str(int(record.fixed.sum())),
        **{str(k): str(v) for k, v in record.info.items()},
    }
    labels = []
    for name, value in sorted(record.labels.items()):
        size = f"{float(value):.10g}" if value.ndim == 0 else f"rms {math.sqrt(float((value**2).mean())):.6g}"
        labels.append((name, str(value.shape), size, _UNITS.get(name, "")))
    return [
        Table(f"structure {i}", ("", ""), tuple(facts.items())),
        Table("labels", ("label", "shape", "value", "unit"), tuple(labels)),
    ]


def check(store: Store, *, records: bool = True, progress: bool = False) -> list[Problem]:
    """Everything that is wrong with a store whose marker could be read; an empty list if nothing is.

    Args:
        store: the store.
        records: read and validate every structure as well, not only the files' checksums.
        progress: show bars.
    """
    problems = []
    shards = store.summary.shards
    for shard in tracked(shards, "checksums", len(shards), progress):
        found = sha256(store.path / shard.name)
        if found != shard.sha256:
            problems.append(
                Problem("checksum", shard.name, f"has checksum {found[:12]}… instead of {shard.sha256[:12]}…")
            )
    arrays = _array_problems(store)
    problems.extend(arrays)
    if records and not arrays:
        for i in tracked(range(len(store)), "structures", len(store), progress):
            problems.extend(_record_problems(store, i))
    if load_statistics(store) is None and (store.path / "statistics.json").is_file():
        problems.append(Problem("statistics", "statistics.json", "belongs to other contents; compute it again"))
    return problems


def problem_table(problems: list[Problem]) -> Table:
    """Problems by kind: how many, and the first example of each."""
    counts = Counter(p.code for p in problems)
    first = {p.code: p for p in reversed(problems)}
    rows = tuple((code, str(n), f"{first[code].where}: {first[code].message}") for code, n in counts.most_common())
    return Table("problems", ("problem", "count", "first example"), rows)


def _array_problems(store: Store) -> list[Problem]:
    """Arrays beside the shards that are missing, cut short or of another length."""
    problems = []
    for name in ("natoms", "groups"):
        try:
            getattr(store, name)
        except StoreIncomplete as error:
            problems.append(Problem("array", f"{name}.npy", str(error)))
    return problems


def _record_problems(store: Store, i: int) -> Iterator[Problem]:
    """What is wrong with one structure and with what the store's arrays say of it."""
    try:
        record = store[i]
    except UserError as error:
        yield Problem("unreadable", f"structure {i}", str(error))
        return
    where = f"structure {i} ({record.id})"
    try:
        validate(record)
    except BadRecord as error:
        yield Problem(error.code, where, error.message)
    if record.natoms != store.natoms[i]:
        yield Problem("natoms", where, f"has {record.natoms} atoms, natoms.npy says {store.natoms[i]}")
    if group_hash(record.group) != store.groups[i]:
        yield Problem("groups", where, f"is of group {record.group!r}, groups.npy says another")


def _contents(store: Store) -> Table:
    summary, natoms = store.summary, store.natoms
    own = store.groups[store.groups != 0]
    alone = len(store) - len(own)
    sizes = f"{natoms.min()} to {natoms.max()}, median {np.median(natoms):g}" if len(store) else "none"
    megabytes = sum(s.bytes for s in summary.shards) / 1e6
    groups = f"{len(np.unique(own))} groups" + (f", {alone} structures without" if alone else "")
    rows = (
        ("folder", str(store.path)),
        ("structures", f"{summary.length:,}"),
        ("atoms", f"{summary.atoms:,}"),
        ("atoms per structure", sizes),
        ("groups for splits", groups if len(own) else "none"),
        ("size", f"{megabytes:,.1f} MB in {len(summary.shards)} shards"),
        ("fingerprint", summary.fingerprint),
    )
    return Table("contents", ("", ""), rows)


def _labels(store: Store) -> Table:
    statistics = load_statistics(store)
    rows = []
    for name, count in sorted(store.summary.labels.items()):
        known = statistics.labels.get(name) if statistics else None
        numbers = [known.mean, known.std, known.rms, known.minimum, known.maximum] if known else []
        shown = [f"{x:.6g}" for x in numbers] or ["?"] * 5
        taken_off = "yes" if known and known.references else "no" if known else "?"
        rows.append((name, _UNITS.get(name, ""), f"{count:,}", *shown, taken_off))
    title = "labels" if statistics else "labels (run `jmp-ds data stats` for the numbers)"
    return Table(title, ("label", "unit", "structures", "mean", "std", "rms", "min", "max", "references"), tuple(rows))


def _elements(store: Store) -> Table:
    statistics = load_statistics(store)
    energy = statistics.labels.get("energy") if statistics else None
    rows = []
    for z in store.elements:
        count = f"{statistics.elements.get(z, 0):,}" if statistics else "?"
        reference = f"{energy.references[z]:.6f}" if energy and energy.references else "?"
        rows.append((chemical_symbols[z], str(z), count, reference))
    return Table("elements", ("element", "Z", "atoms", "energy reference (eV)"), tuple(rows))


def _metadata(store: Store) -> Table:
    rows = tuple((key, _text(value)) for key, value in sorted(store.metadata.items()))
    return Table("metadata", ("", ""), rows)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _formula(numbers: np.ndarray) -> str:
    """Elements with their counts, lightest last."""
    counts = Counter(numbers.tolist())
    return "".join(f"{chemical_symbols[z]}{n if n > 1 else ''}" for z, n in sorted(counts.items(), reverse=True))


def _counted(tags: np.ndarray) -> str:
    return ", ".join(f"{n} × {tag}" for tag, n in sorted(Counter(tags.tolist()).items()))
