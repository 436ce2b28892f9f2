"""QM7-X: the release (HDF5, molecule / conformation), or .npz with keys E, F, R, z, zero padded; eV and Å.

MD17 uses the same keys in kcal/mol (format `md17`): the keys say nothing about the units.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jmp_ds.data.readers.arrays import formula, need, open_hdf5, open_npz
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.errors import UserError

ABOUT = About(
    title="QM7-X release, HDF5; or .npz (z, R, E, F), zero padded",
    units="eV, Å, eV/Å",
    energy="total electronic energy",
    level_of_theory="PBE0+MBD",
    licence="CC BY 4.0",
    citation="Hoja et al., Sci. Data 8, 43 (2021)",
    patterns=("*.hdf5", "*.h5", "*.npz"),
    labels={"energy": "eV", "forces": "eV/Å"},
)
_RELEASE = {"z": "atNUM", "R": "atXYZ", "E": "ePBE0+MBD", "F": "totFOR"}


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every conformation; the group is the molecule in the release, the composition in an .npz, which names no molecules.

    Raises:
        UserError: keys are missing or shapes do not fit.
    """
    yield from _padded(path) if path.suffix == ".npz" else _release(path)


def _release(path: Path) -> Iterator[Block]:
    """Conformations of the published HDF5 files."""
    collector = Collector()
    with open_hdf5(path) as file:
        for at, (molecule, conformations) in enumerate(file.items()):
            for name, entry in conformations.items():
                arrays = need(entry, _RELEASE, path, f"{molecule}/{name}")
                labels = {"energy": arrays["E"].reshape(-1)[0], "forces": arrays["F"]}
                numbers, pos = arrays["z"], arrays["R"]
                collector.add(name, pos=pos, atomic_numbers=numbers, id=name, group=molecule, labels=labels)
                if collector.full:
                    yield collector.take((at + 0.5) / len(file))
    yield collector.take(1.0)


def _padded(path: Path) -> Iterator[Block]:
    """Molecules of one .npz without their padding (z = 0)."""
    arrays = need(open_npz(path), {"z": "z", "R": "R", "E": "E", "F": "F"}, path)
    numbers, pos, forces = arrays["z"], arrays["R"], arrays["F"]
    energy = arrays["E"].reshape(-1)
    frames = len(energy)
    if numbers.ndim != 2 or pos.shape != (*numbers.shape, 3) or forces.shape != pos.shape or len(numbers) != frames:
        raise UserError(
            f"{path}: shapes do not fit: z {numbers.shape}, R {pos.shape}, E {arrays['E'].shape}, F {forces.shape}; "
            "z must be [structures, atoms]; files of one molecule are format md17"
        )
    collector = Collector()
    for i in range(frames):
        real = numbers[i] != 0
        where = f"{path.stem}#{i}"
        collector.add(
            where,
            pos=pos[i][real],
            atomic_numbers=numbers[i][real],
            id=where,
            group=formula(numbers[i][real]),
            labels={"energy": energy[i], "forces": forces[i][real]},
        )
        if collector.full:
            yield collector.take((i + 1) / frames)
    yield collector.take(1.0)
