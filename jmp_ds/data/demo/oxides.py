"""Bulk oxides: nine structure types with one or two kinds of cation, strained and rattled.

At the Γ point of such small cells xTB's lattice constants are a few per cent too large, so each material is first scaled
to the lattice where its energy is lowest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from jmp_ds.data.demo.labelling import PERIODIC, DemoFailure, label
from jmp_ds.data.demo.organics import Draft

#: Structures per material; isotropic strain, further strain per component, and standard deviation of the rattle (Å).
FRAMES, VOLUME_STRAIN, STRAIN, RATTLE = 5, (-0.04, 0.05), 0.02, (0.02, 0.09)
#: Scales of the tabulated lattice that are tried for the lowest energy.
SCALES = (0.98, 1.02, 1.06, 1.10, 1.14)


def _crystal(group: int, cell: tuple[float, ...], sites: list[tuple[float, float, float]], setting: int = 1) -> Atoms:
    """A primitive cell; the first sites are the cation sublattices (placeholders Mg, Al), the last one is oxygen."""
    symbols = [*["Mg", "Al"][: len(sites) - 1], "O"]
    return crystal(symbols, sites, spacegroup=group, setting=setting, cellpar=list(cell), primitive_cell=True)


@dataclass(frozen=True)
class Template:
    """A structure type.

    Attributes:
        build: cell with placeholder cations Mg (and Al for a second sublattice) for lattice constant a (Å).
        cations: per sublattice, element -> lattice constant a (Å) of its oxide of this type (first sublattice), or
            its factor (second).
    """

    build: Callable[[float], Atoms]
    cations: tuple[dict[str, float], ...]


TEMPLATES = {
    "rocksalt": Template(
        lambda a: bulk("MgO", "rocksalt", a=a, cubic=True) * (2, 1, 1), ({"Mg": 4.21, "Ca": 4.81, "Zn": 4.28},)
    ),
    "wurtzite": Template(
        lambda a: bulk("MgO", "wurtzite", a=a, c=1.605 * a) * (2, 2, 1), ({"Zn": 3.25, "Be": 2.70, "Mg": 3.30},)
    ),
    "rutile": Template(
        lambda a: _crystal(136, (a, a, 0.655 * a, 90, 90, 90), [(0, 0, 0), (0.305, 0.305, 0)]) * (1, 1, 2),
        ({"Ti": 4.59, "Sn": 4.74, "Ge": 4.40, "Si": 4.18},),
    ),
    "anatase": Template(
        lambda a: crystal(
            ["Mg", "O"], [(0, 0, 0), (0, 0, 0.208)], spacegroup=141, cellpar=[a, a, 2.514 * a, 90, 90, 90]
        ),
        ({"Ti": 3.785, "Sn": 4.0, "Zr": 4.1},),
    ),
    "corundum": Template(
        lambda a: _crystal(167, (a, a, 2.72 * a, 90, 90, 120), [(0, 0, 0.352), (0.306, 0, 0.25)]),
        ({"Al": 4.76, "Ga": 4.98, "Sc": 5.30},),
    ),
    "fluorite": Template(
        lambda a: crystal(["Mg", "O"], [(0, 0, 0), (0.25,) * 3], spacegroup=225, cellpar=[a] * 3 + [90] * 3),
        ({"Zr": 5.09, "Hf": 5.08},),
    ),
    "antifluorite": Template(
        lambda a: crystal(["Mg", "O"], [(0.25,) * 3, (0, 0, 0)], spacegroup=225, cellpar=[a] * 3 + [90] * 3),
        ({"Li": 4.90, "Na": 5.75},),
    ),
    "spinel": Template(
        lambda a: _crystal(227, (a, a, a, 90, 90, 90), [(0.125,) * 3, (0.5,) * 3, (0.2625,) * 3], setting=2),
        ({"Mg": 8.08, "Zn": 8.09}, {"Al": 1.0, "Ga": 1.03, "Sc": 1.07}),
    ),
    "cristobalite": Template(
        lambda a: crystal(
            ["Mg", "O"], [(0.3, 0.3, 0), (0.239, 0.104, 0.179)], spacegroup=92, cellpar=[a, a, 1.39 * a, 90, 90, 90]
        ),
        ({"Si": 4.97, "Ge": 5.1},),
    ),
}


def distorted_oxide(rng: np.random.Generator) -> Iterator[Draft]:
    """One material in `FRAMES` strained and rattled structures of 10 to 16 atoms."""
    kind = str(rng.choice(tuple(TEMPLATES)))
    ideal = _with_cations(TEMPLATES[kind], rng)
    formula = ideal.get_chemical_formula()
    ideal = _lowest(ideal)
    info: dict[str, str | float | int] = {"structure": kind, "formula": formula}
    for _ in range(FRAMES):
        strain = rng.uniform(-STRAIN, STRAIN, (3, 3))
        deformed = np.eye(3) * (1.0 + rng.uniform(*VOLUME_STRAIN)) + 0.5 * (strain + strain.T)
        frame = ideal.copy()
        frame.set_cell(ideal.cell.array @ deformed, scale_atoms=True)
        frame.positions += rng.uniform(*RATTLE) * rng.standard_normal(frame.positions.shape)
        yield Draft(Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True), f"{kind}-{formula}", info=info)


def _with_cations(template: Template, rng: np.random.Generator) -> Atoms:
    """The template with one kind of cation per sublattice, or two on the first in random order."""
    first = template.cations[0]
    names = sorted(first)
    chosen = [str(rng.choice(names))]
    others = [name for name in names if name != chosen[0]]
    if others and rng.random() < 0.5:
        chosen.append(str(rng.choice(others)))
    share = float(rng.uniform(0.25, 0.75)) if len(chosen) == 2 else 0.0
    a = first[chosen[0]] * (1.0 - share) + first[chosen[-1]] * share
    if len(template.cations) == 2:
        second = str(rng.choice(sorted(template.cations[1])))
        a *= template.cations[1][second]
    atoms = template.build(a)
    symbols = np.array(atoms.get_chemical_symbols(), dtype=object)
    replaced = symbols.copy()
    sites = rng.permutation(np.flatnonzero(symbols == "Mg"))
    replaced[sites] = chosen[0]
    replaced[sites[: round(share * len(sites))]] = chosen[-1]
    if len(template.cations) == 2:
        replaced[symbols == "Al"] = second
    return Atoms(list(replaced), atoms.positions, cell=atoms.cell, pbc=True)


def _lowest(atoms: Atoms) -> Atoms:
    """The material at the scale of lowest energy."""
    best: tuple[float, Atoms] | None = None
    for scale in SCALES:
        trial = atoms.copy()
        trial.set_cell(atoms.cell.array * scale, scale_atoms=True)
        try:
            energy = float(label(trial, PERIODIC)["energy"])
        except DemoFailure:
            continue
        if best is None or energy < best[0]:
            best = energy, trial
    if best is None:
        raise DemoFailure("scf_not_converged")
    return best[1]
