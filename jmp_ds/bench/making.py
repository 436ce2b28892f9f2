"""How the shipped batches are made, with ASE: `python -m jmp_ds.bench.making [FOLDER]` writes them again, bit by bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule

from jmp_ds.bench.batches import MOLECULES, NAMED, SHIPPED, SLABS, save_structures
from jmp_ds.graphs.assemble import Structure

#: Standard deviation of the noise on every coordinate, in Å.
RATTLE = 0.05
#: Vacuum (Å) below and above a slab.
VACUUM = 6.0
#: Layers that ASE counts from the top and that carry tag 1.
SURFACE_LAYER = 1
METALS = ("Pt", "Cu", "Ag", "Pd")
ADSORBATES = ("CH3CH2OH", "C2H4", "CH3CHO", "C3H8", "CH3COOH", "C3H6_D3h", "CH3CONH2", "C2H6")
#: Closed-shell molecules of C, H, N and O in ASE's G2 set, 6 to 15 atoms.
ORGANICS = (
    *("CH3CH2OH", "CH3OCH3", "C3H8", "CH3COOH", "CH3CONH2", "CH3NO2", "C2H6NH", "CH3COCH3", "C6H6", "C5H5N"),
    *(
        "C4H4NH",
        "C4H4O",
        "trans-butane",
        "isobutane",
        "butadiene",
        "cyclobutane",
        "H2CCHCN",
        "HCOOCH3",
        "C3H6_D3h",
        "H3CNH2",
    ),
    *("CH3CHO", "OCHCHO", "isobutene", "C2H6CHOH", "CH3CH2NH2", "bicyclobutane", "cyclobutene", "CH2NHCH2"),
)
#: Aspirin, C9H8O4: elements and coordinates in Å, near a minimum.
_ASPIRIN = (
    ("C", 3.4033, 0.5547, 0.0547),
    ("C", 2.0439, 0.1387, 0.5312),
    ("O", 1.6895, 0.1445, 1.7031),
    ("O", 1.2881, -0.2656, -0.5635),
    ("C", -0.0283, -0.5850, -0.2188),
    ("C", -0.3281, -1.9424, -0.0674),
    ("C", -1.6289, -2.3301, 0.2480),
    ("C", -2.6260, -1.3672, 0.3984),
    ("C", -2.3271, -0.0117, 0.2275),
    ("C", -1.0225, 0.3965, -0.0918),
    ("C", -0.7031, 1.8330, -0.3027),
    ("O", 0.3613, 2.3057, -0.6592),
    ("O", -1.7559, 2.6377, -0.0596),
    ("H", 3.9238, -0.3057, -0.3740),
    ("H", 3.9844, 0.9297, 0.9023),
    ("H", 3.3105, 1.3564, -0.6816),
    ("H", 0.4492, -2.6924, -0.1855),
    ("H", -1.8662, -3.3838, 0.3779),
    ("H", -3.6406, -1.6699, 0.6475),
    ("H", -3.1240, 0.7188, 0.3428),
    ("H", -1.4033, 3.5381, -0.2188),
)

Made = tuple[list[Structure], list[int]]


def slab(metal: str, size: tuple[int, int, int], guest: Atoms, height: float, rng: np.random.Generator) -> Structure:
    """fcc(111) with a guest on top, periodic along all axes, rattled; tags 2 guest, 1 top layer, 0 the rest."""
    atoms = fcc111(metal, size, vacuum=VACUUM, periodic=True)
    tags = np.where(atoms.get_tags() == SURFACE_LAYER, 1, 0)
    guest = guest.copy()
    lowest = int(np.argmin(guest.positions[:, 2]))
    guest = guest[[lowest, *(i for i in range(len(guest)) if i != lowest)]]  # ASE puts the first atom at the height
    add_adsorbate(atoms, guest, height, "ontop")
    return _structure(atoms, rng, np.concatenate([tags, np.full(len(guest), 2)]))


def free_molecule(atoms: Atoms, rng: np.random.Generator) -> Structure:
    """A molecule without a cell, rattled; tag 2 for every atom."""
    return _structure(atoms, rng, np.full(len(atoms), 2))


def slab98(rng: np.random.Generator) -> Made:
    """Cu(111) 4×4×6 with CO on top, carbon down."""
    guest = Atoms("CO", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.15]])
    return [slab("Cu", (4, 4, 6), guest, 1.85, rng)], [SLABS]


def aspirin4(rng: np.random.Generator) -> Made:
    """Four aspirin molecules."""
    return [free_molecule(aspirin_molecule(), rng) for _ in range(4)], [MOLECULES] * 4


def aspirin(rng: np.random.Generator) -> Made:
    """One aspirin molecule, for the settings of rMD17."""
    return [free_molecule(aspirin_molecule(), rng)], [MOLECULES]


def oc20x8(rng: np.random.Generator) -> Made:
    """Eight slabs 4×4×4 of four metals with molecules of two or three heavy atoms and more, about 73 atoms each."""
    return [slab(METALS[k % len(METALS)], (4, 4, 4), molecule(name), 2.0, rng) for k, name in enumerate(ADSORBATES)], [
        SLABS
    ] * len(ADSORBATES)


def ani64(rng: np.random.Generator) -> Made:
    """64 small organic molecules."""
    return [free_molecule(molecule(ORGANICS[k % len(ORGANICS)]), rng) for k in range(64)], [MOLECULES] * 64


def slab225x4(rng: np.random.Generator) -> Made:
    """Four slabs 6×6×6 with ethanol: 225 atoms each."""
    return [slab(metal, (6, 6, 6), molecule("CH3CH2OH"), 2.0, rng) for metal in METALS], [SLABS] * 4


def mixed(rng: np.random.Generator) -> Made:
    """Four slabs of the first kind and 32 molecules."""
    slabs = [slab(metal, (4, 4, 4), molecule(name), 2.0, rng) for metal, name in zip(METALS, ADSORBATES, strict=False)]
    molecules = [free_molecule(molecule(ORGANICS[k % len(ORGANICS)]), rng) for k in range(32)]
    return slabs + molecules, [SLABS] * len(slabs) + [MOLECULES] * len(molecules)


RECIPES: dict[str, Callable[[np.random.Generator], Made]] = {
    "slab98": slab98,
    "aspirin4": aspirin4,
    "aspirin": aspirin,
    "oc20x8": oc20x8,
    "ani64": ani64,
    "slab225x4": slab225x4,
    "mixed": mixed,
}


def aspirin_molecule() -> Atoms:
    """Aspirin."""
    return Atoms([row[0] for row in _ASPIRIN], [row[1:] for row in _ASPIRIN])


def make(name: str) -> Made:
    """The structures of a named batch and their tasks."""
    return RECIPES[name](np.random.default_rng(list(NAMED).index(name)))


def _structure(atoms: Atoms, rng: np.random.Generator, tags: np.ndarray) -> Structure:
    noise = RATTLE * rng.standard_normal(atoms.positions.shape)
    return Structure(
        pos=atoms.positions + noise,
        atomic_numbers=atoms.numbers.astype(np.int64),
        cell=np.asarray(atoms.cell.array),
        pbc=np.asarray(atoms.pbc),
        tags=tags.astype(np.int64),
    )


def main(folder: Path) -> None:
    """Write every named batch."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in RECIPES:
        save_structures(folder / f"{name}.npz", *make(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)
