"""Spatial extent, dipole and classification in the whole network: symmetry, single atoms, bundles, and that they learn."""

from __future__ import annotations

import json

import ase.data
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from small_models import structure, tiny_model

from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.tasks import heads
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.masses import ATOMIC_MASSES
from jmp_ds.tasks.metrics import Metrics, metric_units
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.normalise import denormalize, readable
from jmp_ds.tasks.specs import ClassTarget, DipoleTarget, ExtentTarget, Normalization, ScalarTarget, Task

TASK = Task(
    name="a",
    graph=GraphSettings(cutoff=5.0, max_neighbors=20),
    scalars=(ScalarTarget(label="gap", unit="eV"),),
    spatial_extent=ExtentTarget(label="r2", unit="bohr²"),
    dipole=DipoleTarget(atomic=True),
    classification=ClassTarget(label="phase", classes=3, kind="multi", dropout=0.5),
    normalization={"dipole": Normalization(std=2.0), "r2": Normalization(std=5.0)},
)
LABELS = {"gap": 1.0, "r2": 3.0, "dipole": np.array([0.1, 0.2, 0.3]), "phase": 2.0}


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    return tiny_model(TASK).double().eval()


def batch_of(*atoms: Atoms, task: Task = TASK) -> Batch:
    found: list[Structure] = [structure(a) for a in atoms]
    return assemble(found, [0] * len(found), [(task.name, task.graph)], [LABELS] * len(found))


def moved(atoms: Atoms, rotation: np.ndarray, shift: np.ndarray) -> Atoms:
    out = atoms.copy()
    out.positions = atoms.positions @ rotation.T + shift
    return out


def test_masses_are_those_of_ase() -> None:
    assert list(ATOMIC_MASSES) == ase.data.atomic_masses[: len(ATOMIC_MASSES)].tolist()


def test_centre_of_mass_is_that_of_ase_even_far_away() -> None:
    """Positions of 10⁵ Å in float32 would lose 1/128 Å; here the centre comes off in float64."""
    atoms = moved(molecule("CH3CH2OH"), np.eye(3), np.array([1e5, -2e5, 3e5]))
    batch = batch_of(atoms)
    centred = heads.from_centre_of_mass(batch.pos, batch.atomic_numbers, batch.rows["a"])
    assert centred.numpy() == pytest.approx(atoms.positions - atoms.get_center_of_mass(), abs=1e-8)


def test_formulas_of_extent_and_dipole(make_batch) -> None:
    torch.manual_seed(1)
    batch = make_batch([2, 3, 1], [0, 1, 0], ["a", "b"], numbers=[1, 8, 6, 6, 1, 7])
    head, atoms = heads.HeadMLP(4, bias=False).double(), torch.randn(6, 4, dtype=torch.float64)
    rows = batch.rows["a"]
    centred = heads.from_centre_of_mass(batch.pos, batch.atomic_numbers, rows)
    mass = ase.data.atomic_masses[[1, 8]]
    pair = batch.pos[:2].numpy()
    x = pair - (mass[:, None] * pair).sum(0) / mass.sum()
    q = head(atoms).detach().numpy()[:2]
    extent = heads.spatial_extent(head, atoms, rows, centred).detach().numpy()
    dipole = heads.dipole(head, atoms, rows, centred).detach().numpy()
    assert extent == pytest.approx([(q * (x**2).sum(1)).sum(), 0.0], abs=1e-12)
    assert dipole[0] == pytest.approx((q[:, None] * x).sum(0), abs=1e-12)
    assert dipole[1] == pytest.approx(np.zeros(3), abs=1e-12)


def test_moving_and_turning(model) -> None:
    """Everything stays, the dipole turns along."""
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    atoms = molecule("CH3CH2OH")
    here = model(batch_of(atoms))["a"]
    there = model(batch_of(moved(atoms, rotation, np.array([3.0, -7.0, 11.0]))))["a"]
    for label in ("gap", "r2", "phase"):
        torch.testing.assert_close(there[label], here[label], rtol=1e-8, atol=1e-9)
    turned = here["dipole"] @ torch.from_numpy(rotation.T)
    assert float(turned.detach().norm()) > 1e-3
    torch.testing.assert_close(there["dipole"], turned, rtol=1e-7, atol=1e-8)


def test_one_atom_has_neither_extent_nor_dipole(model) -> None:
    out = model(batch_of(Atoms("O", positions=[[1.0, 2.0, 3.0]])))["a"]
    assert all(bool(torch.isfinite(x).all()) for x in out.values())
    values = denormalize(TASK, out, batch_of(Atoms("O", positions=[[1.0, 2.0, 3.0]])))
    assert values["r2"].tolist() == [0.0]
    assert values["dipole"].tolist() == [[0.0, 0.0, 0.0]]


def test_zero_rows_and_gradients_of_a_vanishing_norm() -> None:
    """A batch without structures, and a norm of zero, whose derivative must be a number."""
    task = Task(name="a", graph=TASK.graph, dipole=DipoleTarget(label="mu", norm=True))
    model = tiny_model(task).train()
    for atoms in ([], [Atoms("O")]):
        batch = batch_of(*atoms, task=task)
        out = model(batch)
        assert out["a"]["mu"].shape == (len(atoms),)
        loss_sums(out, batch, [task])["mu"].backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_dropout_is_drawn_in_training_only(model) -> None:
    batch = batch_of(molecule("H2O"))
    assert torch.equal(model(batch)["a"]["phase"], model(batch)["a"]["phase"])
    model.train()
    first, second = (model(batch)["a"] for _ in range(2))
    model.eval()
    assert not torch.equal(first["phase"], second["phase"])
    assert torch.equal(first["gap"], second["gap"])


def test_json_form_reads_back() -> None:
    assert Task.from_dict(json.loads(json.dumps(TASK.to_dict()))) == TASK
    plain = Task(name="a", graph=TASK.graph, scalars=TASK.scalars)
    assert "dipole" not in plain.to_dict()
    assert Task.from_dict(plain.to_dict()) == plain


def test_readable_components() -> None:
    found = readable(TASK, {"dipole": np.array([[1.0, 2.0, 3.0]]), "phase": np.zeros((1, 3)), "gap": np.ones(1)})
    assert (found["dipole_x"], found["dipole_z"], found["gap"]) == (1.0, 3.0, 1.0)
    assert "dipole" not in found


def test_units_of_metrics(model) -> None:
    batch = batch_of(molecule("H2O"))
    metrics = Metrics([TASK])
    metrics.update(model(batch), batch)
    units = metric_units([TASK])
    assert (units["a/dipole_mae"], units["a/r2_mae"], units["a/phase_balanced_accuracy"]) == ("e·Å", "bohr²", "")
    assert list(metrics.compute()) == list(units)
    values = denormalize(TASK, model(batch)["a"], batch)
    error = (values["dipole"] - torch.tensor([[0.1, 0.2, 0.3]])).abs().mean()
    assert metrics.compute()["a/dipole_mae"] == pytest.approx(float(error.detach()))


@pytest.mark.parametrize(
    ("targets", "worth"),
    [
        ({"spatial_extent": ExtentTarget(label="r2")}, lambda x: float((x**2).sum()) / 10.0),
        ({"dipole": DipoleTarget(label="dipole")}, lambda x: x[0] - x[1:].mean(axis=0)),
        ({"dipole": DipoleTarget(label="mu", norm=True)}, lambda x: float(np.linalg.norm(x[0] - x[1:].mean(axis=0)))),
        ({"classification": ClassTarget(label="long", dropout=0.1)}, lambda x: float(np.ptp(x[:, 0]) > 2.0)),
        (
            {"classification": ClassTarget(label="long", kind="multi", dropout=0.1)},
            lambda x: float(np.ptp(x[:, 0]) > 2),
        ),
    ],
    ids=["extent", "dipole", "norm", "binary", "two logits"],
)
def test_a_tiny_network_learns_it(targets, worth) -> None:
    """Sixteen stretched waters: the loss falls to a third at most within sixty steps."""
    task = Task(name="a", graph=TASK.graph, **targets)
    rng, found, labels = np.random.default_rng(0), [], []
    for k in range(16):
        atoms = molecule("H2O")
        atoms.positions = np.array([[0.0, 0, 0], [1.0, 0, 0], [-0.3, 0.9, 0]]) * (1.0 + 0.07 * k) + rng.normal(
            0, 0.02, (3, 3)
        )
        found.append(structure(atoms))
        labels.append({task.labels[0]: worth(atoms.positions)})
    batch = assemble(found, [0] * 16, [("a", task.graph)], labels)
    model = tiny_model(task).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    seen = []
    for _ in range(60):
        loss = loss_sums(model(batch), batch, [task])[task.labels[0]] / count_labels(batch, [task])[task.labels[0]]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert min(seen[-5:]) < seen[0] / 3.0, (seen[0], seen[-5:])


def test_rows_have_the_shapes_of_their_labels(model) -> None:
    """What a constant predictor needs to know."""
    batch = batch_of(molecule("H2O"), molecule("CH4"))
    for label, values in model(batch)["a"].items():
        assert tuple(values.shape[1:]) == TASK.shape(label)


def test_heads_of_another_kind_are_told() -> None:
    def other(**changes: object) -> Task:
        return Task(**{**vars(TASK), **changes})

    assert TASK.other_heads(other(dipole=DipoleTarget(atomic=True, weight=3.0))) == []
    assert TASK.other_heads(other(dipole=DipoleTarget())) == ["dipole"]
    assert TASK.other_heads(other(classification=ClassTarget(label="phase", classes=4, kind="multi"))) == ["phase"]
    assert TASK.other_heads(other(scalars=(), spatial_extent=ExtentTarget(label="gap"))) == ["gap"]


def test_weights_of_a_task_are_factors() -> None:
    doubled = TASK.weighted(2.0)
    assert [t.weight for t in doubled.of_structures] == [2.0] * 4
    assert Task(**{**vars(doubled), **{k: getattr(TASK, k) for k in ("scalars", "spatial_extent", "dipole")}}) != TASK
    assert doubled.weighted(0.5) == TASK


def test_sums_over_ranks_are_those_of_the_whole(model) -> None:
    """Two batches of one and two structures against one batch of three; nothing is divided before the end."""
    three = [molecule("H2O"), molecule("CH4"), molecule("NH3")]
    whole, parts = batch_of(*three), [batch_of(three[0]), batch_of(*three[1:])]
    total = loss_sums(model(whole), whole, [TASK])
    pieces = [loss_sums(model(part), part, [TASK]) for part in parts]
    assert set(total) == {"gap", "r2", "dipole", "phase"}
    for group, value in total.items():
        assert value.item() == pytest.approx(sum(p[group].item() for p in pieces), rel=1e-9)
        assert count_labels(whole, [TASK])[group] == sum(count_labels(p, [TASK])[group] for p in parts) == 3
