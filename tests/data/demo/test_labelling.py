"""Labels belong together: forces and stress are derivatives of the energy, at each level of theory."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given
from hypothesis import strategies as st

from jmp_ds.data.demo.dynamics import relax, trajectory
from jmp_ds.data.demo.labelling import (
    FORCE_GRID,
    LENGTH_GRID,
    MOLECULAR,
    PERIODIC,
    DemoFailure,
    Level,
    label,
    on_grid,
    require_tblite,
)
from jmp_ds.errors import UserError


@pytest.fixture
def _tblite() -> None:
    pytest.importorskip("tblite.interface", reason="tblite is not installed: labels cannot be computed")


def _energy(atoms: Atoms, level: Level) -> float:
    return float(label(atoms, level)["energy"])


def _ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def _oxide() -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.5, cubic=True)
    atoms.rattle(0.08, seed=1)
    return atoms


@pytest.mark.usefixtures("_tblite")
@pytest.mark.parametrize(("atoms", "level"), [(_ethanol(), MOLECULAR), (_oxide(), PERIODIC)], ids=["GFN2", "GFN1"])
def test_forces_are_minus_the_gradient(atoms: Atoms, level: Level) -> None:
    forces = label(atoms, level)["forces"]
    step = 1e-3
    for atom, axis in ((0, 0), (1, 2), (len(atoms) - 1, 1)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(_energy(moved, level))
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=2e-3)


@pytest.mark.usefixtures("_tblite")
def test_stress_is_the_strain_derivative() -> None:
    atoms = _oxide()
    stress = label(atoms, PERIODIC)["stress"]
    step = 1e-3
    for voigt, (i, j) in ((0, (0, 0)), (3, (1, 2))):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5 * sign * step
            strain[j, i] += 0.5 * sign * step
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(_energy(strained, PERIODIC))
        expected = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert stress[voigt] == pytest.approx(expected, abs=2e-4)


@pytest.mark.usefixtures("_tblite")
def test_gap_and_dipole_of_water() -> None:
    labels = label(molecule("H2O"), MOLECULAR)
    assert 10.0 < labels["gap"] < 18.0
    assert labels["dipole"] == pytest.approx(0.45, abs=0.1)  # measured: 1.85 D = 0.385 e·Å; GFN2 overestimates it


@pytest.mark.usefixtures("_tblite")
def test_a_large_force_is_a_failure() -> None:
    with pytest.raises(DemoFailure, match="force_too_large"):
        label(Atoms("H2", [[0, 0, 0], [0, 0, 0.3]]), MOLECULAR)


@pytest.mark.usefixtures("_tblite")
def test_relaxation_ends_at_a_minimum() -> None:
    relaxed = relax(_ethanol(), MOLECULAR)
    assert np.linalg.norm(label(relaxed, MOLECULAR)["forces"], axis=1).max() < 0.06
    with pytest.raises(DemoFailure, match="not_relaxed"):
        relax(_ethanol(), MOLECULAR, steps=1)


@pytest.mark.usefixtures("_tblite")
def test_dynamics_have_the_temperature_asked_for() -> None:
    """A diatomic's stretch holds kT/2 of potential energy on average; a loose bound on a fixed seed."""
    start = relax(molecule("H2"), MOLECULAR)
    lowest = _energy(start, MOLECULAR)
    rng = np.random.default_rng(0)
    options = {"temperature": 1000.0, "first": 100, "every": 20, "frames": 100}
    frames = list(trajectory(start, MOLECULAR, rng, **options))
    assert len(frames) == 100
    excess = np.mean([_energy(Atoms("H2", pos), MOLECULAR) - lowest for pos in frames])
    assert 0.025 < excess < 0.07  # kT/2 = 0.043 eV
    again = list(trajectory(start, MOLECULAR, np.random.default_rng(0), **options))
    np.testing.assert_array_equal(frames, again)


@given(st.floats(-1e3, 1e3), st.sampled_from([LENGTH_GRID, FORCE_GRID]))
def test_grid_survives_integers(value: float, grid: float) -> None:
    rounded = on_grid(np.array([value]), grid)
    assert abs(rounded[0] - value) <= 0.5001 * grid
    steps = np.rint(rounded / grid).astype(np.int32)
    assert (steps * grid).tobytes() == rounded.tobytes()  # bit for bit, no negative zero


def test_missing_tblite_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tblite.interface", None)
    with pytest.raises(UserError, match=r"jmp-ds\[demo\]"):
        require_tblite()
