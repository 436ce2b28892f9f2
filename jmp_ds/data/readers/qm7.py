"""QM7 as xyz files with a table of atomisation energies (name, PBE0, DFTB; kcal/mol), in a tar, a zip or a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jmp_ds.data.readers.archive import texts
from jmp_ds.data.readers.arrays import numbers_of
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions, refuse_charged
from jmp_ds.data.record import BadRecord
from jmp_ds.data.units import ENERGY
from jmp_ds.errors import UserError

ABOUT = About(
    title="QM7: xyz files and a table hof_*.txt of atomisation energies, in a tar, a zip or a folder",
    units="Å, kcal/mol",
    energy="atomisation energy (negative: relative to free atoms)",
    level_of_theory="PBE0 (label energy), DFTB3 (label energy_dftb)",
    licence="MIT (files)",
    citation="Rupp et al., Phys. Rev. Lett. 108, 058301 (2012)",
    patterns=("*.tar.gz", "*.zip"),
    folder=True,
    labels={"energy": "eV", "energy_dftb": "eV"},
)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every molecule the table names.

    Raises:
        UserError: no table of energies, or a line of it that cannot be read.
    """
    table = _table(path)
    collector = Collector()
    for name, text in texts(path, (".xyz",)):
        key = PurePosixPath(name).name
        try:
            if key not in table:
                raise BadRecord("missing_label", f"the table of energies does not name {key}")
            fields = _molecule(text, options)
        except BadRecord as bad:
            collector.skip(bad, name)
        else:
            pbe0, dftb = table[key]
            labels = {"energy": pbe0 * ENERGY["kcal/mol"], "energy_dftb": dftb * ENERGY["kcal/mol"]}
            collector.add(name, **fields, labels=labels, id=key.removesuffix(".xyz"))
        if collector.full:
            yield collector.take()
    yield collector.take()


def _table(path: Path) -> dict[str, tuple[float, float]]:
    """File name -> (PBE0, DFTB) in kcal/mol."""
    table: dict[str, tuple[float, float]] = {}
    for name, text in texts(path, (".txt",)):
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            try:
                table[words[0]] = (float(words[1]), float(words[2]))
            except (IndexError, ValueError) as error:
                raise UserError(f"{path}, {name}, line {number}: expected `name PBE0 DFTB`, got {line!r}") from error
    return table


def _molecule(text: str, options: ReaderOptions) -> dict[str, object]:
    """Positions and numbers of one xyz file, whose second line says `charge = 0`."""
    lines = text.splitlines()
    try:
        n = int(lines[0])
        key, equals, value = lines[1].partition("=")
        refuse_charged({key.strip(): value.strip()} if equals else {}, options)
        atoms = [line.split() for line in lines[2 : 2 + n]]
        pos = [[float(x) for x in atom[1:4]] for atom in atoms]
        numbers = numbers_of([atom[0] for atom in atoms])
    except (IndexError, ValueError, KeyError) as error:
        if isinstance(error, BadRecord):
            raise
        raise BadRecord("unreadable", f"not an xyz file: {error!r}") from error
    return {"pos": pos, "atomic_numbers": numbers}
