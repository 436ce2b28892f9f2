"""Classification: cross-entropy, accuracy and the area under the ROC curve against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jmp_ds.graphs.batch import Labels
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.tasks import classes
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.metrics import Metrics, error_of, metric_units
from jmp_ds.tasks.normalise import readable
from jmp_ds.tasks.specs import ClassTarget, Task

BINARY = ClassTarget(label="metal", class_weights=(1.0, 1.34219693), weight=2.0)
THREE = ClassTarget(label="phase", classes=3, kind="multi")


def task_of(target: ClassTarget) -> Task:
    return Task(name="a", graph=GraphSettings(), classification=target)


def labelled(make_batch, target: ClassTarget, numbers, present=None):
    there = torch.ones(len(numbers), dtype=torch.bool) if present is None else torch.tensor(present)
    labels = {target.label: Labels(torch.tensor(numbers, dtype=torch.float64), there)}
    return make_batch([1] * len(numbers), [0] * len(numbers), ["a"], labels)


def test_losses_are_weighted_sums_over_structures(make_batch) -> None:
    """Against the written-out formulas; a structure without the label counts for nothing."""
    x = torch.tensor([0.3, -1.2, 2.0, 5.0], requires_grad=True)
    batch = labelled(make_batch, BINARY, [1.0, 0.0, 1.0, 0.0], [True, True, True, False])
    task = task_of(BINARY)
    total = loss_sums({"a": {"metal": x}}, batch, (task,))["metal"]
    p = 1.0 / (1.0 + np.exp(-x.detach().numpy()))
    expected = -2.0 * (1.34219693 * np.log(p[0]) + np.log(1 - p[1]) + 1.34219693 * np.log(p[2]))
    assert float(total.detach()) == pytest.approx(expected, rel=1e-6)
    assert count_labels(batch, (task,)) == {"metal": 3}
    total.backward()
    assert float(x.grad[3]) == 0.0
    y = torch.tensor([[0.1, 0.2, -0.3], [2.0, -1.0, 0.0]])
    batch = labelled(make_batch, THREE, [2.0, 0.0])
    found = loss_sums({"a": {"phase": y}}, batch, (task_of(THREE),))["phase"]
    log_p = y - y.exp().sum(-1, keepdim=True).log()
    assert float(found) == pytest.approx(-float(log_p[0, 2] + log_p[1, 0]), rel=1e-6)


def test_two_logits_and_one_are_the_same_thing() -> None:
    two = ClassTarget(label="metal", kind="multi", class_weights=(1.0, 3.0))
    one = ClassTarget(label="metal", class_weights=(1.0, 3.0))
    x, numbers = torch.randn(20, 2, dtype=torch.float64), torch.arange(20) % 2
    difference = x[:, 1] - x[:, 0]
    torch.testing.assert_close(
        classes.cross_entropy(x, numbers, two), classes.cross_entropy(difference, numbers, one), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(classes.probabilities(x, two), classes.probabilities(difference, one))
    assert torch.equal(classes.chosen(x, two), classes.chosen(difference, one))


def test_metrics_by_hand_and_over_ranks(make_batch) -> None:
    task = task_of(BINARY)
    parts = [([0.5, 0.1, -3.0], [1.0, 0.0, 1.0]), ([-1.0, -2.0, 9.0], [0.0, 0.0, 1.0])]
    whole = Metrics((task,))
    states = []
    for x, numbers in parts:
        own = Metrics((task,))
        for metrics in (whole, own):
            metrics.update({"a": {"metal": torch.tensor(x)}}, labelled(make_batch, BINARY, numbers))
        states.append(own.state)
    found = whole.compute()
    assert set(found) == set(metric_units((task,)))
    assert found["a/metal_accuracy"] == pytest.approx(4 / 6)
    assert found["a/metal_balanced_accuracy"] == pytest.approx(2 / 3)  # 2 of 3 in either class
    # pairs (class 1 above class 0): 0.5 beats 3, -3 beats none, 9 beats 3
    assert found["a/metal_roc_auc"] == pytest.approx(6 / 9)
    assert error_of(found, task, "metal") == pytest.approx(1 / 3)
    summed = Metrics((task,))
    summed.state += states[0] + states[1]
    assert summed.compute() == pytest.approx(found)


def test_area_under_the_curve_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 2, 400)
    x = rng.normal(size=400) * 2.0 + numbers
    target = ClassTarget(label="metal")
    scores = classes.scores_by_class(
        torch.from_numpy(x), torch.from_numpy(numbers), torch.ones(400, dtype=torch.bool), target
    )
    pairs = x[numbers == 1][:, None] - x[numbers == 0]
    assert classes.roc_auc(scores) == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean(), abs=2e-4)
    assert classes.roc_auc(torch.zeros(2, classes.BINS)) is None


def test_a_batch_without_the_label_or_without_rows_adds_nothing(make_batch) -> None:
    for batch, rows in ((make_batch([2], [0], ["a"]), 1), (make_batch([], [], ["a"]), 0)):
        for target, shape in ((BINARY, (rows,)), (THREE, (rows, 3))):
            metrics, x = Metrics((task_of(target),)), torch.randn(*shape, requires_grad=True)
            total = loss_sums({"a": {target.label: x}}, batch, (task_of(target),))[target.label]
            metrics.update({"a": {target.label: x.detach()}}, batch)
            assert float(total.detach()) == 0.0
            assert total.requires_grad
            assert metrics.compute() == {}


def test_predictions_for_people() -> None:
    found = readable(task_of(THREE), {"phase": np.log([[0.2, 0.5, 0.3], [0.8, 0.1, 0.1]])})
    assert found["phase"].tolist() == [1.0, 0.0]
    assert found["phase_p2"] == pytest.approx([0.3, 0.1])
    assert set(found) == {"phase", "phase_p0", "phase_p1", "phase_p2"}


@pytest.mark.parametrize(
    "values", [{"classes": 3}, {"class_weights": (1.0,)}, {"class_weights": (1.0, 0.0)}, {"dropout": 1.0}]
)
def test_what_makes_no_sense_is_refused(values) -> None:
    with pytest.raises(ValueError, match="label x"):
        ClassTarget(label="x", **values)
