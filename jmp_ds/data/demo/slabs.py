"""Catalyst slabs with adsorbates: close-packed and square faces of seven metals, small molecules and fragments on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc100, fcc111, molecule

from jmp_ds.data.demo.geometry import rotation
from jmp_ds.data.demo.organics import Draft

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")
ADSORBATES = (
    "H",
    "C",
    "N",
    "O",
    "OH",
    "CO",
    "NO",
    "NH",
    "CH",
    "NH2",
    "CH2",
    "H2O",
    "NH3",
    "CH3",
    "HCO",
    "H2CO",
    "CH3O",
)
#: (cells along both axes, layers): 16 to 18 metal atoms.
SIZES = {"fcc111": ((2, 2, 4), (3, 2, 3)), "fcc100": ((2, 2, 4), (3, 2, 3))}
#: Vacuum (Å) on both sides; structures per system; standard deviations of the rattle (Å) of adsorbate and free metal.
VACUUM, FRAMES, RATTLE, METAL_RATTLE = 8.0, 5, (0.03, 0.12), (0.02, 0.07)


def adsorbate_on_slab(rng: np.random.Generator) -> Iterator[Draft]:
    """One system: a slab and an adsorbate at a site, in `FRAMES` structures at several heights and distortions.

    The top two layers are free, those below are fixed at their lattice sites. Tags as OCP defines them: 0 fixed slab,
    1 surface, 2 adsorbate.
    """
    metal, face, name = (str(rng.choice(options)) for options in (METALS, tuple(SIZES), ADSORBATES))
    size = SIZES[face][int(rng.integers(2))]
    site = str(rng.choice(("ontop", "bridge", "hollow" if face == "fcc100" else "fcc")))
    strain = float(rng.uniform(0.97, 1.04))
    slab = {"fcc111": fcc111, "fcc100": fcc100}[face](metal, size, vacuum=VACUUM, periodic=True)
    slab.set_cell(slab.cell.array * [[strain], [strain], [1.0]], scale_atoms=True)
    layer = slab.get_tags()  # ASE counts layers from the top
    metals = len(slab)
    clean = slab.copy()
    guest = _tilted(name, rng)
    info: dict[str, str | float | int] = {"metal": metal, "face": face, "adsorbate": name, "site": site}
    tags = np.array([*np.where(layer <= 2, 1, 0), *[2] * len(guest)], dtype=np.uint8)
    fixed = tags == 0
    group = f"{metal}-{face}-{'x'.join(map(str, size))}-{name}"
    for _ in range(FRAMES):
        height = float(rng.uniform(1.0, 2.4) if site != "ontop" else rng.uniform(1.5, 2.6))
        system = clean.copy()
        add_adsorbate(system, guest, height, site)
        noise = rng.standard_normal((len(system), 3))
        noise[:metals] *= rng.uniform(*METAL_RATTLE)
        noise[metals:] *= rng.uniform(*RATTLE)
        system.positions += np.where(fixed[:, None], 0.0, noise)
        frame = Atoms(system.numbers, system.positions, cell=system.cell, pbc=True)
        yield Draft(frame, group=group, tags=tags, fixed=fixed, info={**info, "height": round(height, 3)})


def _tilted(name: str, rng: np.random.Generator) -> Atoms:
    """An adsorbate with its heaviest end down, turned about the normal and tilted a little; its lowest atom comes first."""
    if name in ("H", "C", "N", "O"):
        return Atoms(name)
    guest = molecule({"CH2": "CH2_s1A1d"}.get(name, name))
    guest = Atoms(guest.numbers, guest.positions)
    anchor = int(np.flatnonzero(guest.numbers != 1)[0])
    if name in ("NO", "CO"):
        anchor = int(np.flatnonzero(guest.numbers != 8)[0])
    elif name == "CH3O":
        anchor = int(np.flatnonzero(guest.numbers == 8)[0])
    up = guest.positions.mean(axis=0) - guest.positions[anchor]
    if np.linalg.norm(up) > 1e-6:  # planar CH3 lies flat as it is
        guest.rotate(up, (0, 0, 1))
    tilt = rotation(np.array([1.0, 0.0, 0.0]), float(rng.uniform(-0.4, 0.4)))
    spin = rotation(np.array([0.0, 0.0, 1.0]), float(rng.uniform(0.0, 2.0 * np.pi)))
    guest.positions = (guest.positions - guest.positions[anchor]) @ (spin @ tilt).T
    order = [anchor, *(i for i in range(len(guest)) if i != anchor)]
    return guest[order]
