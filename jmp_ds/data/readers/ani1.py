"""ANI-1 release: HDF5, one group per molecule; Hartree and Å; energies only.

The arrays `coordinatesHE` and `energiesHE` beside them hold conformers of high energy, which the publishers keep apart
(and which are empty in many files); they are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jmp_ds.data.readers.arrays import hdf5_groups, numbers_of, open_hdf5
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.units import ENERGY

ABOUT = About(
    title="ANI-1 release, HDF5 (energies only)",
    units="Hartree, Å",
    energy="total electronic energy",
    level_of_theory="wB97X/6-31G(d)",
    licence="CC0",
    citation="Smith, Isayev and Roitberg, Sci. Data 4, 170193 (2017)",
    patterns=("*.h5", "*.hdf5"),
    labels={"energy": "eV"},
)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every conformer; the group is the molecule.

    Raises:
        UserError: not such a file.
    """
    collector = Collector()
    with open_hdf5(path) as file:
        groups = list(hdf5_groups(file, "species", "coordinates", "energies"))
        for at, (name, group) in enumerate(groups):
            numbers = numbers_of(group["species"][()])
            pos = group["coordinates"][()]
            energy = group["energies"][()] * ENERGY["Ha"]
            for i in range(len(energy)):
                where = f"{name}#{i}"
                collector.add(
                    where, pos=pos[i], atomic_numbers=numbers, id=where, group=name, labels={"energy": energy[i]}
                )
                if collector.full:
                    yield collector.take((at + (i + 1) / len(energy)) / len(groups))
    yield collector.take(1.0)
