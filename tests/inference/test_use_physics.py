"""Models in use with ASE: conserved energies, jumps at caps, relaxation, elastic constants, phonons.

Weights are random: what is shown holds for any weights. Scales are chosen so that forces are as large as real ones.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE
from ase.phonons import Phonons
from inference.using import SMOOTH, bundle_with, published_graph, task

from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.calculator import JMPCalculator
from jmp_ds.inference.smoothness import jumps_along


def calculator(graph: GraphSettings = SMOOTH, std: float = 1.0, kind: str = "gradient", **options) -> JMPCalculator:
    bundle = bundle_with(replace(task(graph=graph, std=std, kind=kind), scalars=()))
    return JMPCalculator(bundle, **{"dtype": "float64", "device": "cpu", **options})


def total_energies(calc: JMPCalculator, timestep: float, time: float) -> np.ndarray:
    """Of a molecule at some 300 K; eV per atom after every step. Times in fs."""
    atoms = molecule("CH3OH")
    atoms.rattle(0.02, seed=0)
    speeds = np.sqrt(units.kB * 300 / atoms.get_masses())[:, None]
    atoms.set_velocities(speeds * np.random.default_rng(0).normal(size=atoms.positions.shape))
    Stationary(atoms)
    atoms.calc = calc
    energies = [atoms.get_total_energy() / len(atoms)]
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy() / len(atoms)))
    dynamics.run(round(time / timestep))
    return np.array(energies[1:])


def test_energy_is_conserved_below_the_caps() -> None:
    """Gradient forces, rules of new models: the error is the integrator's and falls with the square of the step."""
    spread, drift = {}, {}
    for timestep in (1.0, 0.5):
        energies = total_energies(calculator(std=15.0), timestep, time=60.0)
        spread[timestep], drift[timestep] = energies.std(), slope(energies, timestep)
    assert spread[0.5] < 2e-5  # eV/atom
    assert abs(drift[0.5]) < 1e-4  # eV/atom/ps
    assert 3.5 < spread[1.0] / spread[0.5] < 4.5


def slope(energies: np.ndarray, timestep: float) -> float:
    """eV/atom/ps, from eV/atom and fs."""
    return float(np.polyfit(np.arange(len(energies)) * timestep / 1000.0, energies, 1)[0])


def test_direct_forces_do_not_conserve() -> None:
    """The test above would fail for forces that are no gradient, smaller ones even."""
    energies = total_energies(calculator(std=0.3, kind="direct"), 0.5, time=60.0)
    assert slope(energies, 0.5) > 0.1
    assert energies.std() > 1e-3


@pytest.mark.parametrize("caps", ["below the cap", "at the cap", "published, at the cap"])
def test_jumps_where_neighbours_cross_the_cap(caps: str) -> None:
    """Two atoms move: with caps that act the energy jumps, and the jump is measured; without, it does not."""
    graph = {
        "below the cap": SMOOTH,
        "at the cap": replace(SMOOTH, max_neighbors=6),
        "published, at the cap": published_graph(6),
    }[caps]
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator(graph, std=10.0)
    end = atoms.positions.copy()
    end[[3, 4]] += [[0.5, 0.3, -0.2], [-0.4, 0.2, 0.3]]
    found = jumps_along(atoms, end, steps=30, threshold=1e-4)
    if caps == "below the cap":
        assert found == []
        return
    assert found
    assert all(0.0 < jump.at < 1.0 and abs(jump.energy) > 1e-4 for jump in found)
    first = found[0]
    energies = []
    for x in (first.at - 1e-6, first.at + 1e-6):
        moved = atoms.copy()
        moved.positions = atoms.positions + x * (end - atoms.positions)
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    assert energies[1] - energies[0] == pytest.approx(first.energy, abs=1e-5)


def copper(std: float = 30.0) -> Atoms:
    """A small cell relaxed with its shape; whatever the random potential makes of it."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    atoms.calc = calculator(replace(SMOOTH, cutoff=4.5), std=std)
    return atoms


def relaxed() -> Atoms:
    atoms = copper()
    atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=150)
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=100)
    return atoms


@pytest.fixture(scope="module")
def minimum() -> Atoms:
    return relaxed()


def test_relaxation_of_positions_and_cell(minimum: Atoms) -> None:
    """ASE's filter needs forces and stress that belong to one energy: it comes to where both vanish, below the start."""
    assert minimum.get_potential_energy() < copper().get_potential_energy()
    assert np.abs(minimum.get_forces()).max() < 2e-3
    assert np.abs(minimum.get_stress()).max() * minimum.get_volume() < 5e-3


def test_elastic_constants(minimum: Atoms) -> None:
    """From stress by strain and from the curvature of the energy, at the same minimum."""
    step, constants = 2e-3, {}
    for name, shape in {"C11": [1, 0, 0], "bulk": [1, 1, 1]}.items():
        ends = []
        for sign in (1, -1, 0):
            atoms = minimum.copy()
            atoms.calc = minimum.calc
            atoms.set_cell(atoms.cell.array * (1 + sign * step * np.array(shape)), scale_atoms=True)
            ends.append((atoms.get_potential_energy(), atoms.get_stress()[:3] @ shape))
        by_stress = (ends[0][1] - ends[1][1]) / (2 * step)
        by_energy = (ends[0][0] + ends[1][0] - 2 * ends[2][0]) / step**2 / minimum.get_volume()
        constants[name] = by_stress / units.GPa
        # their difference is the stress that is left, times a volume that changes with strain
        assert by_stress == pytest.approx(by_energy, rel=0.02, abs=0.02)
    assert constants["C11"] > 1.0  # GPa, a minimum


def test_phonons(minimum: Atoms, tmp_path: Path) -> None:
    """By finite displacements with ASE: three acoustic modes at Γ, the others as of the matrix of second derivatives."""
    phonons = Phonons(minimum, minimum.calc, supercell=(1, 1, 1), delta=0.005, name=str(tmp_path / "phonons"))
    phonons.run()
    phonons.read(acoustic=True)
    energies = np.sort(phonons.band_structure([[0, 0, 0]])[0])
    assert np.abs(energies[np.argsort(np.abs(energies))[:3]]).max() < 1e-4  # eV
    hessian = second_derivatives(minimum, 0.005)
    masses = np.repeat(minimum.get_masses(), 3)
    squares = np.linalg.eigvalsh((hessian + hessian.T) / 2 / np.sqrt(np.outer(masses, masses)))
    expected = np.sign(squares) * np.sqrt(np.abs(squares)) * units._hbar * 1e10 / np.sqrt(units._e * units._amu)
    largest = np.sort(np.abs(expected))[-9:]
    np.testing.assert_allclose(np.sort(np.abs(energies))[-9:], largest, rtol=0.02, atol=2e-4)


def second_derivatives(atoms: Atoms, step: float) -> np.ndarray:
    rows = []
    for i in range(3 * len(atoms)):
        ends = []
        for sign in (1, -1):
            other = atoms.copy()
            other.positions.flat[i] += sign * step
            other.calc = atoms.calc
            ends.append(other.get_forces().ravel())
        rows.append((ends[1] - ends[0]) / (2 * step))
    return np.array(rows)


def test_phonopy(minimum: Atoms) -> None:
    """The same by phonopy, where it is installed: forces of its displaced supercells give real, small acoustic modes."""
    phonopy = pytest.importorskip("phonopy", reason="the package phonopy is not installed")
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(minimum.get_chemical_symbols(), cell=minimum.cell.array, positions=minimum.positions)
    phonons = phonopy.Phonopy(cell, np.eye(3, dtype=int), primitive_matrix=np.eye(3))
    phonons.generate_displacements(distance=0.005)
    forces = []
    for displaced in phonons.supercells_with_displacements:
        atoms = Atoms(displaced.symbols, displaced.positions, cell=displaced.cell, pbc=True)
        atoms.calc = minimum.calc
        forces.append(atoms.get_forces())
    phonons.forces = forces
    phonons.produce_force_constants()
    phonons.symmetrize_force_constants()
    frequencies = phonons.get_frequencies([0, 0, 0])  # THz
    assert np.sort(np.abs(frequencies))[2] < 0.05
    assert frequencies.max() > 1.0


def test_forces_in_a_committee_are_a_gradient_too() -> None:
    bundles = [bundle_with(task(), seed=seed) for seed in (0, 1)]
    atoms = molecule("CH3OH")
    atoms.calc = JMPCalculator(bundles, dtype="float64", device="cpu")
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, 1e-4), atol=1e-7)
