"""ANI-2x release: HDF5, one group per number of atoms with arrays over many molecules; Hartree and Å."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jmp_ds.data.readers.arrays import formula, hdf5_groups, open_hdf5
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.units import ENERGY

ABOUT = About(
    title="ANI-2x release, HDF5",
    units="Hartree, Å, Hartree/Å",
    energy="total electronic energy",
    level_of_theory="wB97X/6-31G(d)",
    licence="CC BY 4.0",
    citation="Devereux et al., J. Chem. Theory Comput. 16, 4192 (2020)",
    patterns=("*.h5", "*.hdf5"),
    labels={"energy": "eV", "forces": "eV/Å"},
)
_CHUNK = 10_000


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every structure; the group is the composition, as the file names no molecules.

    Raises:
        UserError: not such a file.
    """
    collector = Collector()
    with open_hdf5(path) as file:
        groups = list(hdf5_groups(file, "species", "coordinates", "energies", "forces"))
        for at, (name, group) in enumerate(groups):
            frames = len(group["energies"])
            for start in range(0, frames, _CHUNK):
                part = slice(start, min(start + _CHUNK, frames))
                numbers, pos = group["species"][part], group["coordinates"][part]
                energy, forces = group["energies"][part] * ENERGY["Ha"], group["forces"][part] * ENERGY["Ha"]
                for i in range(len(energy)):
                    where = f"{name}#{start + i}"
                    collector.add(
                        where,
                        pos=pos[i],
                        atomic_numbers=numbers[i],
                        id=where,
                        group=formula(numbers[i]),
                        labels={"energy": energy[i], "forces": forces[i]},
                    )
                    if collector.full:
                        yield collector.take((at + (start + i + 1) / frames) / len(groups))
    yield collector.take(1.0)
