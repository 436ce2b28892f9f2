"""PDBBind as published: one folder per complex with CODE_ligand.sdf and CODE_pocket.pdb, and an index of affinities.

A structure is the ligand's atoms followed by the pocket's, hydrogens included, without periodicity; the label is the
affinity -log10(Kd or Ki or IC50 in mol/l). The group is the complex's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jmp_ds.data.readers.arrays import numbers_of
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.record import BadRecord
from jmp_ds.errors import UserError

ABOUT = About(
    title="PDBBind: folders CODE/ with CODE_ligand.sdf and CODE_pocket.pdb, and index/INDEX_*_data.YEAR",
    units="Å; -log10 of mol/l",
    licence="PDBBind's own (registration with the publishers)",
    citation="Wang et al., J. Med. Chem. 47, 2977 (2004); Liu et al., Acc. Chem. Res. 50, 302 (2017)",
    patterns=("INDEX_*_data.*",),
    folder=True,
    labels={"affinity": "-log10(mol/l)"},
)
_ISOTOPES = {"D": "H", "T": "H"}


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every complex of the index, in its order.

    Heeds level (`ligand`: the ligand alone) and table (an index file elsewhere).

    Raises:
        UserError: there is no index, or it names no complex.
    """
    index = _index(path, options)
    folders = {folder.name.lower(): folder for folder in path.rglob("*") if folder.is_dir()}
    collector = Collector()
    for at, (code, affinity, year) in enumerate(index):
        try:
            folder = folders.get(code)
            if folder is None:
                raise BadRecord("unreadable", f"there is no folder {code}")
            symbols, pos = sdf_atoms(_text(folder / f"{code}_ligand.sdf"))
            ligand = len(symbols)
            if options.level != "ligand":
                more, where = pdb_atoms(_text(folder / f"{code}_pocket.pdb"))
                symbols, pos = symbols + more, pos + where
            info = {"position": at, "year": year, "ligand_atoms": ligand}
            numbers, labels = _numbers(symbols), {"affinity": affinity}
            collector.add(code, pos=pos, atomic_numbers=numbers, labels=labels, id=code, group=code, info=info)
        except BadRecord as bad:
            collector.skip(bad, code)
        if collector.full:
            yield collector.take((at + 1) / len(index))
    yield collector.take(1.0)


def sdf_atoms(text: str) -> tuple[list[str], list[list[float]]]:
    """Symbols and positions (Å) of the first molecule of an SDF text (V2000 or V3000).

    Raises:
        BadRecord: `unreadable`.
    """
    lines = text.splitlines()
    try:
        if "V3000" in lines[3]:
            atoms = [line.split() for line in lines[_line(lines, "BEGIN ATOM") + 1 : _line(lines, "END ATOM")]]
            return [atom[3] for atom in atoms], [[float(x) for x in atom[4:7]] for atom in atoms]
        count = int(lines[3][:3])
        block = lines[4 : 4 + count]
        if not count or len(block) < count:
            raise ValueError(f"{len(block)} of {count} atoms")
        positions = [[float(line[k : k + 10]) for k in (0, 10, 20)] for line in block]
        return [line[31:34].strip() for line in block], positions
    except (IndexError, ValueError) as error:
        raise BadRecord("unreadable", f"no SDF text: {error}") from error


def pdb_atoms(text: str) -> tuple[list[str], list[list[float]]]:
    """Symbols and positions (Å) of all ATOM and HETATM lines of a PDB text; the first of alternative locations.

    Raises:
        BadRecord: `unreadable`.
    """
    symbols: list[str] = []
    positions: list[list[float]] = []
    for line in text.splitlines():
        if line.startswith(("ATOM  ", "HETATM")) and line[16:17] in (" ", "A", "1"):
            try:
                positions.append([float(line[k : k + 8]) for k in (30, 38, 46)])
            except ValueError as error:
                raise BadRecord("unreadable", f"no PDB line: {line[:60]!r}") from error
            # Older files lack the column of the element; a name that begins in column 13 has two letters (CA is calcium).
            symbols.append(line[76:78].strip() or line[12:14].strip(" 0123456789"))
    if not symbols:
        raise BadRecord("no_atoms", "the PDB text holds no atoms")
    return symbols, positions


def _line(lines: list[str], ending: str) -> int:
    """Number of the first line that ends so."""
    return next(i for i, line in enumerate([*lines, ending]) if line.strip().endswith(ending))


def _numbers(symbols: list[str]) -> Any:
    plain = [symbol.capitalize() for symbol in symbols]
    try:
        return numbers_of([_ISOTOPES.get(symbol, symbol) for symbol in plain])
    except KeyError as error:
        raise BadRecord("unknown_element", f"element {error}") from error


def _text(file: Path) -> str:
    if not file.is_file():
        raise BadRecord("unreadable", f"there is no {file.name}")
    return file.read_text(errors="replace")


def _index(path: Path, options: ReaderOptions) -> list[tuple[str, float, int]]:
    """(code, affinity, year) of every line of the index: code, resolution, year, affinity, ..."""
    files = [options.table] if options.table else sorted(path.rglob("INDEX_*_data.*"))
    if not files or files[0] is None:
        raise UserError(f"{path} holds no INDEX_*_data.YEAR; name the index with --table")
    found = []
    for number, line in enumerate(files[0].read_text(errors="replace").splitlines(), start=1):
        parts = line.split()
        if not parts or line.startswith("#"):
            continue
        try:
            found.append((parts[0].lower(), float(parts[3]), int(parts[2])))
        except (IndexError, ValueError) as error:
            raise UserError(
                f"{files[0]}, line {number}: expected code, resolution, year, affinity: {line!r}"
            ) from error
    if not found:
        raise UserError(f"{files[0]} names no complex")
    return found
