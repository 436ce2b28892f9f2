"""Small organic molecules put together from fragments, and who may use which of them.

The molecules of the fine-tuning sets never occur in pre-training: the two molecules of the dynamics sets are excluded by
formula, and every molecule that holds F, S or Cl goes to one side or the other by its graph key alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.build import molecule
from numpy.typing import NDArray

from jmp_ds.data.demo.dynamics import relax, trajectory
from jmp_ds.data.demo.geometry import bonds, graph_key, join, molecule_key
from jmp_ds.data.demo.labelling import MOLECULAR, DemoFailure
from jmp_ds.data.demo.reference_molecules import dipeptide, malonaldehyde

#: Names in ASE's G2 set. All are closed shells; the rest is made by replacing hydrogens of a core by groups.
CORES = (
    *("CH4", "C2H6", "C3H8", "trans-butane", "isobutane", "C2H4", "isobutene", "butadiene", "C2H2", "C3H4_C3v"),
    *("C6H6", "C3H6_D3h", "cyclobutane", "cyclobutene", "C4H4NH", "C4H4O", "C4H4S", "C5H5N", "CH2OCH2", "CH2NHCH2"),
    *("CH2SCH2", "NH3", "H2O", "H3CNH2", "C2H6NH", "CH3OH", "CH3CH2OH", "CH3OCH3", "C2H6CHOH", "CH3SH", "CH3SCH3"),
    *("H2CO", "CH3CHO", "CH3COCH3", "OCHCHO", "HCOOH", "CH3COOH", "HCOOCH3", "CH3CONH2", "CH3CN", "H2CCHCN", "H2CCO"),
    *("CH3NO2", "N2H4", "CH3Cl", "H2CF2", "H2CCHF", "H2CCHCl", "CH3COF"),
)
#: Groups, weighted by repetition; each loses one hydrogen.
GROUPS = (
    *("CH4", "CH4", "H2O", "H2O", "NH3", "NH3", "H2CO", "HCN", "C2H4", "C2H2", "CH3OH", "HCOOH", "C2H6", "H3CNH2"),
    *("HF", "HF", "HCl", "SH2", "CH3SH", "HCF3"),
)
HETERO = (9, 16, 17)
LARGEST = 18
#: One in so many of the molecules with F, S or Cl belongs to the property set.
SHARE = 2

#: Frames per molecule, and the range of temperatures (K).
FRAMES = 3
COLDEST, HOTTEST = 300.0, 1200.0


@dataclass(frozen=True)
class Draft:
    """A structure without labels.

    Attributes:
        atoms: elements, positions (Å), cell, periodicity.
        group: key that splits must not cut.
        unique: at most one job per value of this key is kept; empty: no such rule.
        tags: uint8 [n], OCP's 0/1/2; None: 2 everywhere.
        fixed: bool [n]; None: nowhere.
        info: further facts.
    """

    atoms: Atoms
    group: str
    unique: str = ""
    tags: NDArray[np.uint8] | None = None
    fixed: NDArray[np.bool_] | None = None
    info: dict[str, str | float | int] = field(default_factory=dict)


def assemble_molecule(rng: np.random.Generator, largest: int = LARGEST) -> Atoms:
    """A random closed-shell molecule of at most `largest` atoms: a core with zero to three hydrogens replaced by groups.

    Raises:
        DemoFailure: no room for a group, or too large.
    """
    atoms = molecule(str(rng.choice(CORES)))
    atoms = Atoms(atoms.numbers, atoms.positions)
    for _ in range(int(rng.integers(0, 4))):
        group = molecule(str(rng.choice(GROUPS)))
        hydrogens, spare = np.flatnonzero(atoms.numbers == 1), np.flatnonzero(group.numbers == 1)
        hydrogen, other = int(rng.choice(hydrogens)), int(rng.choice(spare))
        ends = _holder(atoms, hydrogen), _holder(group, other)
        if 6 not in ends:
            continue  # O–O, N–O, O–F … bonds make explosives rather than molecules
        atoms = join(atoms, hydrogen, group, other, rng)
        if len(atoms) > largest:
            raise DemoFailure("too_large")
        if not (atoms.numbers == 1).any():
            break
    return atoms


def _holder(atoms: Atoms, hydrogen: int) -> int:
    """Atomic number of the atom that a hydrogen is bonded to."""
    return int(atoms.numbers[np.flatnonzero(bonds(atoms)[hydrogen])[0]])


def pick_molecule(rng: np.random.Generator, accept: Callable[[Atoms], bool], largest: int = LARGEST) -> Atoms:
    """The first of up to 500 random molecules that `accept` takes, relaxed; its bonds are those it was given.

    Raises:
        DemoFailure: none is accepted, or relaxation changes the bonds.
    """
    for _ in range(500):
        try:
            atoms = assemble_molecule(rng, largest)
        except DemoFailure:
            continue
        if accept(atoms):
            table = bonds(atoms)
            relaxed = relax(atoms, MOLECULAR)
            if (bonds(relaxed) != table).any():
                raise DemoFailure("rearranged")
            return relaxed
    raise DemoFailure("no_molecule")


def kept_for_properties(atoms: Atoms) -> bool:
    """Whether a molecule belongs to the property set (and so must not occur in pre-training)."""
    return bool(np.isin(atoms.numbers, HETERO).any()) and int(molecule_key(atoms), 16) % SHARE == 0


def held_out_formulas() -> set[str]:
    """Formulas of the molecules of the dynamics sets: no pre-training molecule has one of them."""
    return {atoms.get_chemical_formula() for atoms in (malonaldehyde(), dipeptide())}


def allowed_in_pretraining(atoms: Atoms) -> bool:
    """Whether a molecule may occur in the pre-training sets: neither formula nor graph is held out."""
    return atoms.get_chemical_formula() not in held_out_formulas() and not kept_for_properties(atoms)


def molecule_info(atoms: Atoms) -> dict[str, str | float | int]:
    """Formula and graph key of a molecule, kept with each of its structures."""
    return {"formula": atoms.get_chemical_formula(), "molecule": graph_key(atoms.numbers, bonds(atoms))}


def off_equilibrium(rng: np.random.Generator) -> Iterator[Draft]:
    """One pre-training molecule: frames of a short, hot trajectory."""
    atoms = pick_molecule(rng, allowed_in_pretraining)
    info = molecule_info(atoms)
    heat = float(np.round(rng.uniform(COLDEST, HOTTEST)))
    key = str(info["molecule"])
    for pos in trajectory(atoms, MOLECULAR, rng, temperature=heat, first=60, every=40, frames=FRAMES):
        frame = Atoms(atoms.numbers, pos)
        yield Draft(frame, group=key, unique=key, info={**info, "temperature": heat})


def property_molecule(rng: np.random.Generator) -> Iterator[Draft]:
    """One relaxed molecule of the property set."""
    atoms = pick_molecule(rng, kept_for_properties)
    atoms.positions -= atoms.positions.mean(axis=0)
    info = molecule_info(atoms)
    key = str(info["molecule"])
    yield Draft(atoms, group=key, unique=key, info=info)
