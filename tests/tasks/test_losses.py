"""Loss sums and counts: the published numbers, missing labels, empty tasks."""

from __future__ import annotations

import json

import pytest
import torch

from jmp_ds.graphs.batch import Labels
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, ScalarTarget, Task

NAMES = ("oc20", "oc22", "ani1x", "transition1x")


def four_tasks(weights, loss):
    return tuple(
        Task(
            name=name,
            graph=GraphSettings(),
            energy=EnergyTarget(),
            forces=ForcesTarget(weight=w, loss=loss),
        )
        for name, w in zip(NAMES, weights, strict=True)
    )


@pytest.mark.parametrize(("loss", "key"), [("structure", "total"), ("atom", "total_atomwise")])
def test_published_totals(golden, make_batch, loss, key) -> None:
    g = json.loads((golden / "misc.json").read_text())["loss"]
    tasks = four_tasks(g["force_scale"], loss)
    energy, forces = torch.tensor(g["E"]), torch.tensor(g["F"])
    own = torch.tensor(g["task"])
    atom_task = own.repeat_interleave(torch.tensor(g["natoms"]))
    y = torch.tensor(g["y"]).gather(1, own[:, None])[:, 0].double()
    f = torch.stack([x[:, t] for x, t in zip(torch.tensor(g["f"]), atom_task, strict=True)]).double()
    everywhere = torch.ones(3, dtype=torch.bool)
    batch = make_batch(
        g["natoms"], g["task"], NAMES, {"energy": Labels(y, everywhere), "forces": Labels(f, everywhere)}
    )
    outputs = {
        name: {"energy": energy[batch.rows[name].structures, t], "forces": forces[batch.rows[name].atoms][:, :, t]}
        for t, name in enumerate(NAMES)
    }
    sums, counts = loss_sums(outputs, batch, tasks), count_labels(batch, tasks)
    assert sums.keys() == counts.keys() == {"energy", "forces" if loss == "structure" else "forces_per_atom"}
    assert sum(float(sums[k]) / counts[k] for k in sums) == pytest.approx(g[key], rel=1e-6)
    separate, numbers = loss_sums(outputs, batch, tasks, per_task=True), count_labels(batch, tasks, per_task=True)
    assert separate.keys() == numbers.keys()
    assert sum(v for k, v in numbers.items() if k.endswith("energy")) == 3
    assert sum(float(v) for v in separate.values()) == pytest.approx(sum(float(v) for v in sums.values()), rel=1e-6)


TASKS = (
    Task(name="a", graph=GraphSettings(), energy=EnergyTarget(weight=2.0), forces=ForcesTarget(weight=3.0)),
    Task(name="b", graph=GraphSettings(), scalars=(ScalarTarget(label="gap", unit="eV", weight=0.5),)),
    Task(name="c", graph=GraphSettings(), energy=EnergyTarget(weight=0.0)),
)


def outputs_for(batch, seed=0):
    """Random outputs that require gradients."""
    g = torch.Generator().manual_seed(seed)
    result = {}
    for task in TASKS:
        rows = batch.rows[task.name]
        shapes = {"forces": (len(rows.atoms), 3)}
        result[task.name] = {
            label: torch.randn(*shapes.get(label, (len(rows.structures),)), generator=g).requires_grad_()
            for label in task.labels
        }
    return result


def test_missing_labels_contribute_nothing(make_batch) -> None:
    labels = {
        "energy": Labels(torch.tensor([1.0, 0.0, 0.0, 5.0], dtype=torch.float64), torch.tensor([1, 0, 0, 1]).bool()),
        "forces": Labels(torch.ones(8, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 0]).bool()),
    }
    batch = make_batch([2, 3, 1, 2], [0, 0, 1, 2], ["a", "b", "c"], labels)
    out = outputs_for(batch)
    sums = loss_sums(out, batch, TASKS)
    assert count_labels(batch, TASKS) == {"energy": 1, "forces": 1, "gap": 0}  # weight 0 is not trained
    e, f = out["a"]["energy"], out["a"]["forces"]
    assert float(sums["energy"].detach()) == pytest.approx(2.0 * abs(float(e[0].detach()) - 1.0))
    assert float(sums["forces"].detach()) == pytest.approx(3.0 * float((f[2:5].detach() - 1 + 1e-6).norm(dim=1).mean()))
    assert float(sums["gap"].detach()) == 0.0
    sum(sums.values()).backward()
    assert torch.count_nonzero(e.grad) == 1
    assert torch.equal(f.grad[:2], torch.zeros(2, 3))
    assert torch.equal(out["b"]["gap"].grad, torch.zeros(1))
    assert torch.equal(out["c"]["energy"].grad, torch.zeros(1))


def test_an_empty_batch_has_every_group_with_zero_gradients(make_batch) -> None:
    batch = make_batch([], [], ["a", "b", "c"])
    out = outputs_for(batch)
    sums = loss_sums(out, batch, TASKS)
    assert {k: float(v.detach()) for k, v in sums.items()} == {"energy": 0.0, "forces": 0.0, "gap": 0.0}
    assert all(v.requires_grad for v in sums.values())


def test_sums_over_parts_equal_the_sum_over_the_whole(make_batch) -> None:
    natoms, task_of = [2, 3, 1, 2], [0, 0, 1, 2]
    y = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    f = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def batch_of(members):
        starts = [0, 2, 5, 6, 8]
        atoms = [a for m in members for a in range(starts[m], starts[m + 1])]
        yes = torch.ones(len(members), dtype=torch.bool)
        labels = {"energy": Labels(y[members], yes), "forces": Labels(f[atoms], yes), "gap": Labels(y[members], yes)}
        return make_batch([natoms[m] for m in members], [task_of[m] for m in members], ["a", "b", "c"], labels)

    def zeros(batch):
        return {t: {k: torch.zeros_like(v) for k, v in o.items()} for t, o in outputs_for(batch).items()}

    whole, parts = batch_of([0, 1, 2, 3]), [batch_of([0, 3]), batch_of([1, 2])]
    total = loss_sums(zeros(whole), whole, TASKS)
    pieces = [loss_sums(zeros(p), p, TASKS) for p in parts]
    for group, value in total.items():
        assert float(value) == pytest.approx(sum(float(p[group]) for p in pieces), rel=1e-6)
        assert count_labels(whole, TASKS)[group] == sum(count_labels(p, TASKS)[group] for p in parts)


def test_half_precision_outputs_are_summed_in_float32(make_batch) -> None:
    labels = {"energy": Labels(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.bool))}
    batch = make_batch([1, 1], [0, 0], ["a"], labels)
    task = Task(name="a", graph=GraphSettings(), energy=EnergyTarget())
    out = {"a": {"energy": torch.tensor([256.0, 1.0], dtype=torch.bfloat16)}}
    total = loss_sums(out, batch, (task,))["energy"]
    assert total.dtype == torch.float32
    assert float(total) == 257.0  # not a bfloat16 number
