"""What must hold for energies and forces, on new-model settings (no cap acts on these molecules)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from building import batch_for, evaluate, model_for
from scipy.spatial.transform import Rotation
from small_models import structure

from jmp_ds.graphs.settings import GraphSettings, published

SMOOTH = GraphSettings(cutoff=6.0, max_neighbors=60)
RULES = {"new": SMOOTH, "published": published(6.0, 60)}


def rattled(name: str = "CH3CH2OH", seed: int = 0) -> Atoms:
    atoms = molecule(name)
    atoms.rattle(0.1, seed=seed)
    return atoms


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    atoms.pbc = True
    atoms.rattle(0.1, seed=1)
    return atoms


SYSTEMS = {"molecule": rattled, "slab": slab}


@pytest.mark.parametrize("kind", ["direct", "gradient"])
@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("system", list(SYSTEMS))
def test_rotation(system: str, rule: str, kind: str) -> None:
    """Energies stay, forces turn. (With the published offsets in single precision, to that precision.)"""
    model, atoms = model_for(RULES[rule], kind), SYSTEMS[system]()
    energy, forces = evaluate(model, atoms)
    turn = Rotation.random(rng=3).as_matrix()
    turned = atoms.copy()
    turned.set_cell(atoms.cell @ turn.T)
    turned.positions = atoms.positions @ turn.T
    energy2, forces2 = evaluate(model, turned)
    tolerance = 1e-5 if (system, rule) == ("slab", "published") else 1e-10
    torch.testing.assert_close(energy2, energy, rtol=0, atol=tolerance)
    torch.testing.assert_close(forces2, forces @ torch.as_tensor(turn).T, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_reflection(system: str) -> None:
    """The network has no chirality (specification section 4)."""
    model, atoms = model_for(SMOOTH), SYSTEMS[system]()
    mirror = np.diag([1.0, -1.0, 1.0])
    mirrored = atoms.copy()
    mirrored.set_cell(atoms.cell @ mirror)
    mirrored.positions = atoms.positions @ mirror
    energy, forces = evaluate(model, atoms)
    energy2, forces2 = evaluate(model, mirrored)
    torch.testing.assert_close(energy2, energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(forces2, forces @ torch.as_tensor(mirror), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["direct", "gradient"])
@pytest.mark.parametrize("system", list(SYSTEMS))
def test_permutation(system: str, kind: str) -> None:
    model, atoms = model_for(SMOOTH, kind), SYSTEMS[system]()
    order = np.random.default_rng(0).permutation(len(atoms))
    energy, forces = evaluate(model, atoms)
    energy2, forces2 = evaluate(model, atoms[order])
    torch.testing.assert_close(energy2, energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(forces2, forces[torch.as_tensor(order)], rtol=0, atol=1e-9)


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_translation_and_wrapping(system: str) -> None:
    model, atoms = model_for(SMOOTH), SYSTEMS[system]()
    moved = atoms.copy()
    moved.translate([1.234, -5.678, 9.1])
    if moved.pbc.any():
        moved.wrap()
    for one, other in zip(evaluate(model, atoms), evaluate(model, moved), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)


def test_separated_fragments_add_up() -> None:
    model = model_for(SMOOTH)
    one, other = rattled("CH3CH2OH"), rattled("CH4", 5)
    far = other.copy()
    far.translate([40.0, 0, 0])
    energy, forces = evaluate(model, one + far)
    energies, forces2 = evaluate(model, one, other)
    torch.testing.assert_close(energy, energies.sum(0, keepdim=True), rtol=0, atol=1e-10)
    torch.testing.assert_close(forces, forces2, rtol=0, atol=1e-9)


def test_a_supercell_has_a_multiple_of_the_energy() -> None:
    """Caps act here; the invariant rule cuts whole shells."""
    model = model_for(GraphSettings(cutoff=8.0, max_neighbors=20))
    cell = bulk("NaCl", "rocksalt", a=5.6)
    cell.rattle(0.0)
    energy, _ = evaluate(model, cell)
    larger, _ = evaluate(model, cell.repeat((2, 2, 1)))
    torch.testing.assert_close(larger, 4 * energy, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("system", list(SYSTEMS))
def test_gradient_forces_are_minus_the_derivative(system: str, rule: str) -> None:
    model, atoms = model_for(RULES[rule], "gradient"), SYSTEMS[system]()
    _, forces = evaluate(model, atoms)
    step = 1e-4
    for atom, axis in ((0, 0), (3, 1), (len(atoms) - 1, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(float(evaluate(model, moved)[0]))
        assert abs(-(energies[0] - energies[1]) / (2 * step) - float(forces[atom, axis])) < 1e-5


def crossing(model_settings: GraphSettings, cutoff: float) -> float:
    """Jump of the energy of three atoms when one leaves the cutoff of another: the step across, less one beyond."""
    model = model_for(model_settings)

    def energy(x: float) -> float:
        return float(evaluate(model, Atoms("CON", [[0, 0, 0], [1.1, 0.2, 0], [x, 0, 0]]))[0])

    h = 2e-5
    across, beyond = energy(cutoff + h) - energy(cutoff - h), energy(cutoff + 3 * h) - energy(cutoff + h)
    return abs(across - beyond)


def test_energies_are_smooth_at_the_cutoff_of_new_models() -> None:
    """`envelope: cutoff` ends where the edges end; the published envelope ends at 12 Å, so there energies jump."""
    assert crossing(GraphSettings(cutoff=6.0), 6.0) < 1e-8
    assert crossing(published(6.0), 6.0) > 1e-5


@pytest.mark.parametrize(("dihedral", "smooth"), [("smooth", True), ("jmp", False)])
def test_energies_pass_smoothly_through_a_straight_chain(dihedral: str, smooth: bool) -> None:
    model = model_for(GraphSettings(cutoff=6.0, dihedral=dihedral))  # type: ignore[arg-type]

    def energy(bend: float) -> float:
        chain = Atoms("HCCNF", [[-1.1, 0.3, 0.7], [0, 0, 0], [1.2, 0, 0], [2.4, bend, 0.0], [3.0, 0.9, 0.4]])
        return float(evaluate(model, chain)[0])

    near, nearer = (abs(energy(bend) - energy(-bend)) for bend in (1e-4, 1e-5))
    # a smooth function changes in proportion to the step, a jump stays
    if smooth:
        assert nearer < 0.11 * near
    else:
        assert nearer > 0.5 * near


@pytest.mark.parametrize("kind", ["direct", "gradient"])
def test_a_batch_is_its_structures(kind: str) -> None:
    model = model_for(SMOOTH, kind)
    both = evaluate(model, rattled(), slab())
    alone = [evaluate(model, rattled()), evaluate(model, slab())]
    for k in range(2):
        torch.testing.assert_close(both[k], torch.cat([a[k] for a in alone]), rtol=0, atol=1e-10)


def test_recomputing_changes_nothing() -> None:
    """Second derivatives included."""
    from dataclasses import replace

    plain = model_for(SMOOTH, "gradient")
    again = model_for(SMOOTH, "gradient")
    again.backbone.config = replace(again.backbone.config, recompute=True)
    gradients = []
    for model in (plain, again):
        out = model(batch_for(model, [structure(rattled())]))["t"]
        (out["energy"].sum() + out["forces"].square().sum()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 100
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
