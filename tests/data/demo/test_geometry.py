"""Bonds, molecular graphs, joining and turning."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp_ds.data.demo.geometry import bonds, join, molecule_key, rotation, side_of
from jmp_ds.data.demo.labelling import DemoFailure
from jmp_ds.data.demo.reference_molecules import dipeptide, malonaldehyde


def test_bonds_of_known_molecules() -> None:
    assert bonds(molecule("C6H6")).sum() == 2 * 12
    assert bonds(molecule("CH3CH2OH")).sum() == 2 * 8
    assert bonds(malonaldehyde()).sum() == 2 * 8
    assert bonds(dipeptide()).sum() == 2 * 21


def test_dipeptide_is_the_natural_enantiomer() -> None:
    """CORN rule: seen from the hydrogen, CO, R and N of the central carbon follow each other clockwise."""
    atoms = dipeptide()
    table = bonds(atoms)
    numbers = atoms.numbers
    alpha = next(i for i in np.flatnonzero(numbers == 6) if sorted(numbers[table[i]]) == [1, 6, 6, 7])
    near = {}
    for j in np.flatnonzero(table[alpha]):
        name = {1: "H", 7: "N"}.get(int(numbers[j])) or ("CO" if 8 in numbers[table[j]] else "R")
        near[name] = atoms.positions[j] - atoms.positions[alpha]
    assert np.dot(np.cross(near["CO"], near["R"]), near["H"]) < 0.0


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["CH3CH2OH", "C6H6", "CH3CONH2", "C3H7Cl", "CH3OCH3"]), st.integers(0, 2**32 - 1))
def test_key_depends_on_the_graph_alone(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    atoms = molecule(name)
    order = rng.permutation(len(atoms))
    turned = atoms.positions @ rotation(rng.standard_normal(3), rng.uniform(0, 6)).T + rng.uniform(-0.01, 0.01, 3)
    assert molecule_key(Atoms(atoms.numbers[order], turned[order])) == molecule_key(atoms)


def test_key_tells_isomers_apart() -> None:
    names = ["CH3CH2OH", "CH3OCH3", "trans-butane", "isobutane", "CH2OCH2", "CH3CHO", "butadiene", "2-butyne"]
    assert len({molecule_key(molecule(name)) for name in names}) == len(names)


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 1e-3), st.floats(-7, 7))
def test_rotation_is_one(axis: tuple[float, float, float], angle: float) -> None:
    matrix = rotation(np.array(axis), angle)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    np.testing.assert_allclose(matrix @ np.array(axis), axis, atol=1e-12)
    assert np.trace(matrix) == pytest.approx(1.0 + 2.0 * np.cos(angle))


def test_sides_of_a_bond() -> None:
    ethane = molecule("C2H6")
    carbons = np.flatnonzero(ethane.numbers == 6)
    side = side_of(bonds(ethane), *carbons)
    assert side is not None
    assert side.sum() == 4
    assert side[carbons[1]]
    assert not side[carbons[0]]
    ring = molecule("C6H6")
    table = bonds(ring)
    a = int(np.flatnonzero(ring.numbers == 6)[0])
    b = int(next(j for j in np.flatnonzero(table[a]) if ring.numbers[j] == 6))
    assert side_of(table, a, b) is None


def test_join_makes_the_expected_molecule() -> None:
    rng = np.random.default_rng(0)
    methane, water = molecule("CH4"), molecule("H2O")
    methanol = join(methane, 1, water, int(np.flatnonzero(water.numbers == 1)[0]), rng)
    assert molecule_key(methanol) == molecule_key(molecule("CH3OH"))


def test_join_refuses_without_room() -> None:
    crowded = molecule("C2H6")
    hydrogen = int(np.flatnonzero(crowded.numbers == 1)[0])
    carbon = int(np.flatnonzero(bonds(crowded)[hydrogen])[0])
    out = crowded.positions[hydrogen] - crowded.positions[carbon]
    blocked = crowded + Atoms("Ar", [crowded.positions[hydrogen] + 1.5 * out])
    with pytest.raises(DemoFailure, match="no_room"):
        join(blocked, hydrogen, molecule("CH4"), 1, np.random.default_rng(0))
