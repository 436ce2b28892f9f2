"""The whole network on mixed batches: gradient forces, zero rows, precision, names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from small_models import set_scales, structure
from torch import Tensor

from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.presets import preset
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.model import MultiTaskModel, check_tasks
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, ScalarTarget, Task

SLABS = Task(
    name="slabs", graph=GraphSettings(cutoff=6.0, max_neighbors=8), energy=EnergyTarget(), forces=ForcesTarget()
)
MOLECULES = Task(
    name="molecules",
    graph=GraphSettings(cutoff=5.0),
    energy=EnergyTarget(bias=False),
    forces=ForcesTarget(kind="gradient"),
    scalars=(
        ScalarTarget(label="gap"),
        ScalarTarget(label="mu", reduction="mean"),
        ScalarTarget(label="top", reduction="max"),
    ),
)
TASKS = (SLABS, MOLECULES)


def rattled(atoms, seed: int = 0) -> Structure:
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=seed)
    return structure(atoms)


COPPER, WATER, AMMONIA = rattled(bulk("Cu", cubic=True)), rattled(molecule("H2O")), rattled(molecule("NH3"))


def batch_of(*pairs: tuple[Structure, int], tasks=TASKS) -> Batch:
    labels = [{"energy": 1.0, "forces": np.ones((s.natoms, 3)), "gap": 0.5} for s, _ in pairs]
    return assemble([s for s, _ in pairs], [t for _, t in pairs], [(t.name, t.graph) for t in tasks], labels)


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    torch.manual_seed(0)
    made = MultiTaskModel(preset("tiny"), TASKS).double().eval()
    set_scales(made)
    return made


@pytest.fixture(scope="module")
def mixed() -> Batch:
    return batch_of((WATER, 1), (COPPER, 0), (AMMONIA, 1))


def test_shapes_and_parameter_names(model, mixed) -> None:
    out = model(mixed)
    assert {t: {k: tuple(v.shape) for k, v in o.items()} for t, o in out.items()} == {
        "slabs": {"energy": (1,), "forces": (4, 3)},
        "molecules": {"energy": (2,), "forces": (7, 3), "gap": (2,), "mu": (2,), "top": (2,)},
    }
    names = {name for name, _ in model.named_parameters()}
    assert {"backbone.embedding.weight", "heads.slabs.forces.8.weight", "heads.molecules.top.0.bias"} <= names
    assert "heads.molecules.energy.0.bias" not in names
    assert "heads.molecules.forces.0.weight" not in names


def test_structures_do_not_see_their_neighbours_in_the_batch(model, mixed) -> None:
    together = model(mixed)
    for (one, task), rows in (((WATER, 1), slice(0, 3)), ((AMMONIA, 1), slice(3, 7)), ((COPPER, 0), slice(0, 4))):
        alone = model(batch_of((one, task)))
        name = TASKS[task].name
        torch.testing.assert_close(alone[name]["forces"], together[name]["forces"][rows], rtol=1e-10, atol=1e-12)


def test_gradient_forces_are_minus_the_derivative_of_the_task_s_own_energy(model, mixed) -> None:
    forces = model(mixed)["molecules"]["forces"].detach()
    step = 1e-5
    # row among the task's atoms, atom of the batch (the metal's four stand between the molecules), axis
    for row, atom, axis in ((0, 0, 0), (1, 1, 2), (3, 7, 1)):
        energies = []
        for sign in (1, -1):
            pos = mixed.pos.clone()
            pos[atom, axis] += sign * step
            with torch.no_grad():
                energies.append(float(model(replace(mixed, pos=pos))["molecules"]["energy"].sum()))
        assert float(forces[row, axis]) == pytest.approx(-(energies[0] - energies[1]) / (2 * step), rel=1e-6, abs=1e-8)


def test_evaluation_works_where_gradients_are_off(model, mixed) -> None:
    reference = model(mixed)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = model(mixed)
        for task, own in out.items():
            for label, x in own.items():
                assert not x.requires_grad
                torch.testing.assert_close(x, reference[task][label].detach())
    reference["molecules"]["energy"].sum().backward()  # the graph of the energies is still there
    model.zero_grad()


def test_force_loss_reaches_every_parameter_by_second_derivatives(model, mixed) -> None:
    model.train()
    sums = loss_sums(model(mixed), mixed, TASKS)
    assert count_labels(mixed, TASKS) == {"energy": 3, "forces": 3, "gap": 2, "mu": 0, "top": 0}
    sums["forces"].backward()
    model.eval()
    gradient = model.heads["molecules"]["energy"][0].weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0
    # along a direction, against finite differences of the loss
    weight = model.backbone.int_blocks[0].dense_ca.weight
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slope, step, values = float((weight.grad * direction).sum()), 1e-5, []
    with torch.no_grad():
        for sign in (1, -2):
            weight += sign * step * direction
            values.append(float(loss_sums(model(mixed), mixed, TASKS)["forces"]))
        weight += step * direction
    model.zero_grad()
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("members", [[(COPPER, 0)], [(WATER, 1)], []])
def test_absent_tasks_give_empty_outputs_and_every_parameter_a_gradient(model, members) -> None:
    model.train()
    batch = batch_of(*members)
    out = model(batch)
    sum(loss_sums(out, batch, TASKS).values()).backward()
    model.eval()
    for t, task in enumerate(TASKS):
        rows = sum(1 for _, task_of in members if task_of == t)
        assert out[task.name]["energy"].shape == (rows,)
        heads = [
            p
            for label in task.labels
            if label in model.heads[task.name]
            for p in model.heads[task.name][label].parameters()
        ]
        assert all(p.grad is not None for p in heads)
        if not rows:
            assert all(float(p.grad.abs().sum()) == 0.0 for p in heads)
    model.zero_grad()


def test_float32_follows_float64(model, mixed) -> None:
    narrow = MultiTaskModel(preset("tiny"), TASKS).eval()
    narrow.load_state_dict(model.state_dict())
    out, reference = narrow(mixed), model(mixed)
    for task, own in reference.items():
        for label, x in own.items():
            assert out[task][label].dtype == torch.float32
            error = (out[task][label].double() - x).abs().max() / x.abs().max()
            assert float(error.detach()) < 1e-4, (task, label)


def test_autocast_keeps_outputs_in_float32_and_near(model, mixed) -> None:
    narrow = MultiTaskModel(preset("tiny"), TASKS)
    narrow.load_state_dict(model.state_dict())
    reference = narrow.eval()(mixed)
    narrow.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = narrow(mixed)
    for task, own in reference.items():
        for label, x in own.items():
            assert out[task][label].dtype == torch.float32
            assert float(((out[task][label] - x).norm() / x.norm()).detach()) < 0.2, (task, label)
    sum(loss_sums(out, mixed, TASKS).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in narrow.parameters() if p.grad is not None)


def test_features_reduce_atom_features(model, mixed) -> None:
    found: list[Tensor] = []
    handle = model.backbone.register_forward_hook(lambda _m, _i, out: found.append(out.atoms))
    mean, total = model.features(mixed), model.features(mixed, "sum")
    handle.remove()
    atoms = found[0]
    torch.testing.assert_close(mean, torch.stack([atoms[:3].mean(0), atoms[3:7].mean(0), atoms[7:].mean(0)]))
    torch.testing.assert_close(total[1], atoms[3:7].sum(0))


def test_the_force_branch_exists_only_for_direct_forces() -> None:
    assert not MultiTaskModel(preset("tiny"), (MOLECULES,)).config.direct_forces
    assert MultiTaskModel(replace(preset("tiny"), direct_forces=False), TASKS).config.direct_forces


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((), "at least one task"),
        ((replace(SLABS, name="a.b"),), r"task name 'a\.b': must not be empty or contain a dot"),
        ((replace(SLABS, name="a/b"),), "slash"),
        ((replace(SLABS, name=""),), "must not be empty"),
        ((replace(SLABS, name="forward"),), "'forward' is reserved; choose another, such as 'forward_1'"),
        ((SLABS, SLABS), "two tasks are named 'slabs'"),
        ((replace(SLABS, scalars=(ScalarTarget(label="a b"),)),), "task slabs: label name 'a b'"),
        ((replace(SLABS, scalars=(ScalarTarget(label="type"),)),), "task slabs: label name 'type' is reserved"),
        ((replace(SLABS, scalars=(ScalarTarget(label="energy"),)),), "'energy' is no scalar; set `energy:`"),
        ((replace(SLABS, scalars=(ScalarTarget(label="x"), ScalarTarget(label="x"))),), "two targets are labelled 'x'"),
        ((SLABS, replace(MOLECULES, graph=GraphSettings(dihedral="jmp"))), "dihedral: smooth and jmp"),
    ],
)
def test_tasks_that_make_no_model_are_refused(tasks, message) -> None:
    with pytest.raises(UserError, match=message):
        check_tasks(tasks)
