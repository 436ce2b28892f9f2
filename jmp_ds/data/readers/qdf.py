"""Molecules in text blocks, as QuantumDeepField and its relatives write them: id, `symbol x y z` lines, a line of values.

A first line may name the values and their units, such as `U0(kcalmol^-1) HOMO(eV) LUMO(eV)`; without one the user names
them by position: `--label energy=0:eV`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from jmp_ds.data.readers.archive import open_binary
from jmp_ds.data.readers.arrays import numbers_of
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.record import BadRecord
from jmp_ds.data.units import LabelSpec, unit
from jmp_ds.errors import UserError

ABOUT = About(
    title="text blocks of molecules: id, atoms, values (QuantumDeepField)",
    units="Å; values as the first line names them, or as the user does",
    patterns=("*.txt",),
)
_COLUMN = re.compile(r"([^\s()]+)\(([^()]+)\)")


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every molecule. Labels: those of the options (KEY: position from 0, or a name of the first line), else that line's.

    Raises:
        UserError: there is no first line with names, and no label is named.
    """
    with open_binary(path) as stream:
        chunks = re.split(r"\n\s*\n", stream.read().decode("utf-8").strip().replace("\r\n", "\n"))
    names = _COLUMN.findall(chunks[0]) if "\n" not in chunks[0] and _COLUMN.search(chunks[0]) else []
    molecules = chunks[1:] if names else chunks
    columns = _columns(path, [name for name, _ in names], [u for _, u in names], options)
    collector = Collector({f"unit:{spec.name}": spec.unit.name for _, spec in columns})
    for at, chunk in enumerate(molecules):
        where = f"{path.stem}#{at}"
        try:
            collector.add(where, **_molecule(chunk, columns))
        except BadRecord as bad:
            collector.skip(bad, where)
        if collector.full:
            yield collector.take((at + 1) / len(molecules))
    yield collector.take(1.0)


def _columns(path: Path, names: list[str], units: list[str], options: ReaderOptions) -> list[tuple[int, LabelSpec]]:
    """Which value of the last line is which label."""
    specs = list(options.labels) or [LabelSpec(n, n, unit(u)) for n, u in zip(names, units, strict=True)]
    if not specs:
        raise UserError(f"{path} does not name its values; name them by position, for instance --label energy=0:eV")
    columns = []
    for spec in specs:
        if spec.key in names:
            columns.append((names.index(spec.key), spec))
        elif spec.key.isdigit():
            columns.append((int(spec.key), spec))
        else:
            raise UserError(f"{path}: label {spec.name}: {spec.key!r} is neither a position nor one of {names}")
    return columns


def _molecule(chunk: str, columns: list[tuple[int, LabelSpec]]) -> dict[str, object]:
    """One block of lines."""
    lines = chunk.strip().splitlines()
    try:
        atoms = [line.split() for line in lines[1:-1]]
        values = [float(x) for x in lines[-1].split()]
        labels = {spec.name: values[i] * spec.unit.factor for i, spec in columns}
        pos = [[float(x) for x in atom[1:4]] for atom in atoms]
        numbers = numbers_of([atom[0] for atom in atoms])
    except (IndexError, ValueError, KeyError) as error:
        raise BadRecord("unreadable", f"not a block of id, atoms and values: {error!r}") from error
    return {"pos": pos, "atomic_numbers": numbers, "labels": labels, "id": lines[0].strip()}
