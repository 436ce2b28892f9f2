"""The calculator: derivatives, invariances, reuse of graphs, several tasks, committees, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, make_supercell, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.test import gradient_test
from inference.using import SMOOTH, bundle_with, published_graph, task
from scipy.spatial.transform import Rotation

from jmp_ds.bundle import Bundle, save_bundle
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import assemble
from jmp_ds.graphs.neighbors import EdgeLists, build_edges
from jmp_ds.graphs.settings import FewerNeighbors, GraphSettings
from jmp_ds.inference.calculator import JMPCalculator
from jmp_ds.inference.neighbors import MovingGraph
from jmp_ds.inference.predictor import Predictor, structure_of
from jmp_ds.tasks.specs import ClassTarget, DipoleTarget, ScalarTarget, Task

RULES = {
    "new": SMOOTH,
    "capped": GraphSettings(cutoff=5.0, max_neighbors=8),
    "published": published_graph(200),
    "published, capped": published_graph(8),
    "fewer for larger": GraphSettings(
        cutoff=5.0,
        max_neighbors=200,
        fewer_neighbors=(FewerNeighbors(above=3, max_neighbors=20), FewerNeighbors(above=8, max_neighbors=6)),
    ),
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundle_with(task(), task("direct", kind="direct"), task("energy", kind=None))


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def copper() -> Atoms:
    """A strained, rattled cell of four atoms whose images matter."""
    atoms = bulk("Cu", cubic=True)
    strain = np.array([[1.02, 0.01, 0.0], [0.0, 0.99, 0.03], [0.0, 0.0, 1.01]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.rattle(0.1, seed=2)
    return atoms


SYSTEMS = {"molecule": ethanol, "crystal": copper}


def with_calculator(atoms: Atoms, bundle: Bundle, **options) -> Atoms:
    atoms.calc = JMPCalculator(bundle, **{"task": "gradient", "dtype": "float64", **options})
    return atoms


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_forces_are_the_slope_of_the_energy(system: str, rule: str) -> None:
    atoms = with_calculator(SYSTEMS[system](), bundle_with(task(graph=RULES[rule], std=2.0)))
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 0.01
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, 1e-4), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
def test_stress_is_the_slope_by_strain(rule: str) -> None:
    atoms = with_calculator(copper(), bundle_with(task(graph=RULES[rule], std=2.0)))
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-3
    # offsets of published rules are in single precision, so a small strain moves them in steps
    step, tolerance = (3e-4, 3e-4) if rule.startswith("published") else (1e-5, 1e-8)
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, step), atol=tolerance)


def test_stress_of_a_slab_with_one_axis_open(bundle: Bundle) -> None:
    slab = fcc111("Cu", (1, 1, 2), vacuum=5.0)
    slab.pbc = (True, True, False)
    slab.rattle(0.05, seed=3)
    slab = with_calculator(slab, bundle)
    numerical = calculate_numerical_stress(slab, 1e-5)
    assert np.abs(numerical[:2]).max() > 1e-4
    np.testing.assert_allclose(slab.get_stress(), numerical, atol=1e-9)


def test_ases_own_gradient_test(bundle: Bundle, capsys) -> None:
    gradient_test(with_calculator(ethanol(), bundle), indices=[0, 5])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    difference = {float(row[0]): float(row[1]) for row in rows if row and row[0][0].isdigit()}
    assert difference[1e-4] < 1e-7  # eV/Å, at the step with the least error


@pytest.mark.parametrize("name", ["gradient", "direct"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_numbers_as_the_model_that_was_trained(bundle: Bundle, system: str, name: str) -> None:
    """Forces from the network with all its tasks, as it makes them in training."""
    atoms = with_calculator(SYSTEMS[system](), bundle, task=name)
    tasks = [(t.name, t.graph) for t in bundle.tasks]
    number = [t.name for t in bundle.tasks].index(name)
    outputs = bundle.build(torch.float64)(assemble([structure_of(atoms)], [number], tasks))[name]
    np.testing.assert_allclose(atoms.get_forces(), outputs["forces"].detach().numpy(), rtol=1e-9, atol=1e-12)
    prediction = Predictor(bundle, name, dtype="float64").predict([atoms])[0]
    assert prediction.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-14)
    np.testing.assert_allclose(prediction.energies, atoms.calc.results["energies"], rtol=1e-12)
    if name == "gradient" and system == "crystal":
        np.testing.assert_allclose(prediction.stress, atoms.get_stress(), rtol=1e-9, atol=1e-12)
    else:
        assert prediction.stress is None
    assert atoms.calc.results["gap"] == pytest.approx(prediction.scalars["gap"], rel=1e-9)


@pytest.mark.parametrize("system", SYSTEMS)
def test_energies_of_atoms_add_up(bundle: Bundle, system: str) -> None:
    atoms = with_calculator(SYSTEMS[system](), bundle)
    energies = atoms.get_potential_energies()
    assert energies.shape == (len(atoms),)
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-14)
    assert atoms.calc.get_property("free_energy", atoms) == atoms.get_potential_energy()


@pytest.mark.parametrize("name", ["gradient", "direct"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_invariance(bundle: Bundle, system: str, name: str) -> None:
    """Rotation, translation and permutation: energies stay, forces and stress follow."""
    atoms = with_calculator(SYSTEMS[system](), bundle, task=name)
    turn = Rotation.random(rng=3).as_matrix()
    order = np.random.default_rng(0).permutation(len(atoms))
    other = atoms[order]
    other.set_cell(atoms.cell.array @ turn.T)
    other.positions = atoms.positions[order] @ turn.T + [1.2, -3.4, 5.6]
    other.wrap()
    other.calc = atoms.calc.with_task(name)
    assert other.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(other.get_forces(), atoms.get_forces()[order] @ turn.T, atol=1e-9)
    if "stress" in atoms.calc.implemented_properties and atoms.pbc.any():
        turned = turn @ atoms.get_stress(voigt=False) @ turn.T
        np.testing.assert_allclose(other.get_stress(voigt=False), turned, atol=1e-9)


@pytest.mark.parametrize("rule", ["new", "capped"])
def test_a_supercell_has_n_times_the_energy(rule: str) -> None:
    """Also where caps act: ties are kept, so the graph does not depend on the choice of the cell."""
    atoms = bulk("Cu", cubic=True) if rule == "capped" else copper()
    bundle = bundle_with(task(graph=RULES[rule]))
    bundle = replace(bundle, tasks=(replace(bundle.tasks[0], normalization={}),))  # no mean, which is per structure
    atoms = with_calculator(atoms, bundle)
    larger = make_supercell(atoms, [[1, 1, 0], [-1, 1, 0], [0, 0, 2]])
    larger.calc = atoms.calc
    n = len(larger) // len(atoms)
    assert n == 4
    assert larger.get_potential_energy() == pytest.approx(n * atoms.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(larger.get_stress(), atoms.get_stress(), atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_skin_changes_no_edge(system: str, rule: str) -> None:
    """Along a path on which neighbours change, against a new search for every geometry."""
    rng, atoms, kept = np.random.default_rng(0), SYSTEMS[system](), MovingGraph(RULES[rule], skin=0.8)
    for step in range(30):
        atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
        if step == 10:
            atoms.set_cell(atoms.cell.array * 1.01)
        if step == 20:
            atoms.wrap()
        found, expected = kept.graph(structure_of(atoms)), edges(atoms, RULES[rule])
        for name in EdgeLists._fields:
            own = getattr(found, name)
            rows = np.column_stack([own.source, own.target, own.offset])
            assert set(map(tuple, rows.tolist())) == set(map(tuple, getattr(expected, name).tolist())), (step, name)
            np.testing.assert_allclose(own.shift, own.offset.numpy() @ atoms.cell.array, atol=1e-6)
    assert 2 <= kept.counts.searched < 20
    assert kept.counts.searched <= kept.counts.made <= kept.counts.asked == 30


def edges(atoms: Atoms, settings: GraphSettings) -> EdgeLists:
    """By the builder that training uses."""
    return build_edges(atoms.positions, atoms.cell.array, atoms.pbc, np.full(len(atoms), 2), settings)


def test_reuse_gives_the_same_forces(bundle: Bundle) -> None:
    rng, atoms = np.random.default_rng(1), copper()
    kept, fresh = (JMPCalculator(bundle, "gradient", dtype="float64", skin=s) for s in (1.0, 0.0))
    for _ in range(8):
        atoms.positions += 0.02 * rng.normal(size=atoms.positions.shape)
        forces = []
        for atoms.calc in (kept, fresh):
            forces.append(atoms.get_forces())
        np.testing.assert_allclose(forces[0], forces[1], rtol=0, atol=1e-12)
    (one,), (other,) = kept.neighbor_counts.values(), fresh.neighbor_counts.values()
    assert one.searched == 1
    assert other.searched == 8


def test_several_tasks_by_name(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "final")
    calculator = JMPCalculator(tmp_path / "final", "gradient", device="cpu")
    assert calculator.task_names == ["gradient", "direct", "energy"]
    properties = {name: calculator.with_task(name).implemented_properties for name in calculator.task_names}
    assert properties == {
        "gradient": ["energy", "free_energy", "energies", "forces", "stress"],
        "direct": ["energy", "free_energy", "energies", "forces"],
        "energy": ["energy", "free_energy", "energies"],
    }
    with pytest.raises(UserError, match="which task\\? Name one of gradient, direct, energy"):
        JMPCalculator(bundle)
    with pytest.raises(UserError, match="no task 'gradients' in the bundle"):
        JMPCalculator(bundle, "gradients")


def test_a_committee_answers_with_mean_and_spread() -> None:
    bundles = [bundle_with(task(), seed=seed) for seed in range(3)]
    members = [with_calculator(copper(), each) for each in bundles]
    atoms = with_calculator(copper(), bundles[0])
    atoms.calc = JMPCalculator(bundles, dtype="float64")
    energies = np.array([m.get_potential_energy() for m in members])
    forces = np.array([m.get_forces() for m in members])
    stresses = np.array([m.get_stress() for m in members])
    assert atoms.get_potential_energy() == pytest.approx(energies.mean(), rel=1e-14)
    np.testing.assert_allclose(atoms.get_forces(), forces.mean(axis=0), atol=1e-13)
    np.testing.assert_allclose(atoms.get_stress(), stresses.mean(axis=0), atol=1e-13)
    found = atoms.calc.results
    np.testing.assert_allclose(found["energy_comm"], energies, rtol=1e-14)
    np.testing.assert_allclose(found["forces_comm"], forces, atol=1e-13)
    assert found["energy_std"] == pytest.approx(energies.std(), rel=1e-9)
    assert found["forces_std"] == pytest.approx(np.sqrt(forces.var(axis=0).sum(axis=1)), rel=1e-9)
    assert found["stress_std"] == pytest.approx(stresses.std(axis=0), rel=1e-9)
    assert found["gap_std"] > 0
    (counts,) = atoms.calc.neighbor_counts.values()
    assert counts.searched == 1  # one search for all members
    with pytest.raises(UserError, match="at least one bundle"):
        JMPCalculator([])


def test_a_committee_has_what_all_its_members_have() -> None:
    mixed = [bundle_with(task("same")), bundle_with(task("same", kind="direct"))]
    assert JMPCalculator(mixed).implemented_properties == ["energy", "free_energy", "energies", "forces"]


def test_no_stress_where_there_is_none(bundle: Bundle) -> None:
    with pytest.raises(PropertyNotImplementedError, match="not the gradient of its energy"):
        with_calculator(copper(), bundle, task="direct").get_stress()
    with pytest.raises(PropertyNotImplementedError, match="not periodic"):
        with_calculator(ethanol(), bundle).get_stress()
    atoms = with_calculator(copper(), bundle, task="direct")
    atoms.get_forces()
    assert "stress" not in atoms.calc.results


def test_no_forces_where_there_are_none(bundle: Bundle) -> None:
    atoms = with_calculator(ethanol(), bundle, task="energy")
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError, match="task energy was trained without forces"):
        atoms.get_forces()
    assert "forces" not in atoms.calc.results
    scalar = Task(name="gap", graph=SMOOTH, scalars=(ScalarTarget(label="gap"),))
    with pytest.raises(UserError, match="task gap has no energy"):
        JMPCalculator(bundle_with(scalar))


def broken(atoms: Atoms, what: str) -> Atoms:
    """A geometry for which there is no answer."""
    if what == "nan":
        atoms.positions[1, 2] = np.nan
    elif what == "far":
        atoms.positions[3] += 50.0
    elif what == "same place":
        atoms.positions[1] = atoms.positions[0]
    elif what == "element":
        atoms.numbers[0] = 79
    elif what == "no element":
        atoms.numbers[0] = 0
    return atoms


REFUSALS = {
    "nan": "positions or cell are not finite",
    "far": r"atom 3 \(H\) has no neighbour within 5 Å.*allow_far=True",
    "same place": "atoms 0 and 1 are at the same place",
    "element": "Au: not among the elements that task gradient was trained on .*allow_unseen=True",
    "no element": "atomic numbers \\[0\\] are outside 1",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_an_error_and_never_an_old_number(bundle: Bundle, what: str) -> None:
    """The calculator has answered before; asked about nonsense it refuses, and then answers as if nothing had been."""
    atoms = with_calculator(ethanol(), bundle)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    good = atoms.positions.copy(), atoms.numbers.copy()
    for ask in (atoms.get_potential_energy, atoms.get_forces, atoms.get_forces):
        broken(atoms, what)
        with pytest.raises(UserError, match=REFUSALS[what]):
            ask()
        assert atoms.calc.results == {}
    atoms.positions, atoms.numbers = good
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-14)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-13)


def test_atoms_that_come_together_within_the_skin(bundle: Bundle) -> None:
    """Also when no pair is looked for anew."""
    atoms = with_calculator(Atoms("H2", [[0, 0, 0], [0, 0, 0.4]]), bundle, skin=2.0)
    atoms.get_forces()
    atoms.positions[1, 2] = 1e-3
    with pytest.raises(UserError, match="at the same place"):
        atoms.get_forces()


def test_what_may_be_allowed(bundle: Bundle) -> None:
    atoms = with_calculator(broken(ethanol(), "far"), bundle, allow_far=True)
    assert np.abs(atoms.get_forces()[3]).max() == 0.0
    atoms = with_calculator(broken(ethanol(), "element"), bundle, allow_unseen=True)
    assert np.isfinite(atoms.get_potential_energy())
    alone = with_calculator(Atoms("O"), bundle)  # a free atom has no neighbour to miss
    assert alone.get_forces().tolist() == [[0.0, 0.0, 0.0]]


def test_elements_that_the_data_had_are_known(bundle: Bundle) -> None:
    listed = replace(bundle, elements={"gradient": (1, 8)})
    with pytest.raises(UserError, match=r"^C: not among the elements .*\(H, O\)"):
        with_calculator(ethanol(), listed).get_potential_energy()
    silent = bundle_with(replace(task(), normalization={}))
    assert np.isfinite(with_calculator(broken(ethanol(), "element"), silent).get_potential_energy())


def test_numbers_that_are_not_finite(bundle: Bundle) -> None:
    state = {k: x * 1e38 if "heads.gradient.energy" in k else x for k, x in bundle.state.items()}
    atoms = with_calculator(ethanol(), replace(bundle, state=state), dtype="float32")
    for ask in (atoms.get_forces, atoms.get_potential_energy):
        with pytest.raises(UserError, match=r"structure \(C2H6O\): the prediction is not finite"):
            ask()
    assert atoms.calc.results == {}


def test_dipoles_are_those_of_ase() -> None:
    """A vector in e·Å turns with the molecule; classes and lengths stay under their labels."""
    own = replace(task(), dipole=DipoleTarget(), classification=ClassTarget(label="kind", classes=3, kind="multi"))
    atoms = with_calculator(ethanol(), bundle_with(own))
    assert "dipole" in atoms.calc.implemented_properties
    dipole, turned = atoms.get_dipole_moment(), atoms.copy()
    assert atoms.calc.results["kind"] in (0.0, 1.0, 2.0)
    turn = Rotation.random(rng=5).as_matrix()
    turned.positions = atoms.positions @ turn.T
    turned.calc = atoms.calc
    np.testing.assert_allclose(turned.get_dipole_moment(), dipole @ turn.T, atol=1e-10)
    with_length = replace(task(), dipole=DipoleTarget(norm=True))
    assert "dipole" not in JMPCalculator(bundle_with(with_length)).implemented_properties


def test_bad_options(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="skin: must be 0 Å or more"):
        JMPCalculator(bundle, "gradient", skin=-1.0)
    with pytest.raises(UserError, match="no precision 'half'"):
        JMPCalculator(bundle, "gradient", dtype="half")
    with pytest.raises(UserError, match="device abacus"):
        JMPCalculator(bundle, "gradient", device="abacus")
