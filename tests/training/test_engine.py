"""Two processes through DeepSpeed against plain torch on all structures at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_cells import RATES, WINDOWS, counts_of, toy
from training_spawn import run
from training_toy import ToyModel, batch, loss_sums, reference_gradients

from jmp_ds.errors import UserError
from jmp_ds.training.ds_config import load_ds_config
from jmp_ds.training.engine import EngineOptions
from jmp_ds.training.optimizer import parameter_groups

STAGES = [0, 1, 2, 3]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


def structures(window: list[list[list[int]]]) -> list[Any]:
    return [batch([n for rank in window for numbers in rank for n in numbers])]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cells")
    run(2, "training_cells:cells", {"out": str(out), "stages": STAGES})
    return out


@pytest.fixture(scope="module")
def gradients(cells: Path) -> dict[str, dict[str, Tensor]]:
    return torch.load(cells / "gradients.pt")


@pytest.fixture(scope="module")
def trained(cells: Path) -> list[dict[str, Any]]:
    return [torch.load(cells / f"training_{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("window", list(WINDOWS))
def test_two_processes_give_the_gradients_of_one(gradients: dict, stage: int, window: str) -> None:
    exact = reference_gradients(toy(stage).double(), structures(WINDOWS[window]))
    single = reference_gradients(toy(stage), structures(WINDOWS[window]))
    for name, expected in exact.items():
        ours = gradients[f"{stage}/{window}"][name]
        if not expected.any():  # a head whose task is not in the window
            assert not ours.any(), name
            continue
        # A tensor may by luck be exact in one process; then one rounding (2^-24) is what float32 could have given.
        error, allowed = relative(ours, expected), 3 * max(relative(single[name], expected), 2.0**-24)
        assert error <= min(allowed, 1e-5), (name, error, allowed)


def test_wrong_scaling_would_be_seen() -> None:
    window = WINDOWS["unequal"]
    exact = reference_gradients(ToyModel().double(), structures(window))
    per_process = [reference_gradients(ToyModel().double(), structures([rank])) for rank in window]
    local_means = {n: (per_process[0][n] + per_process[1][n]) / 2 for n in exact}
    assert max(relative(local_means[n], exact[n]) for n in exact if exact[n].any()) > 0.1


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_equals_torch(gradients: dict, stage: int) -> None:
    for name, clip in {
        "norm": lambda ps: torch.nn.utils.clip_grad_norm_(ps, 0.5),
        "value": lambda ps: torch.nn.utils.clip_grad_value_(ps, 0.05),
    }.items():
        model = toy(stage)
        reference = reference_gradients(model, structures(WINDOWS["unequal"]))
        for key, parameter in model.named_parameters():
            parameter.grad = reference[key].clone()
        clip(list(model.parameters()))
        changed = 0
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[f"{stage}/{name}"][key], parameter.grad, rtol=1e-5, atol=1e-7)
            changed += not torch.equal(parameter.grad, reference[key])
        assert changed, "nothing was clipped, so this showed nothing"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("cell", "window"), [("divided", "unequal"), ("divided_accumulated", "accumulated")])
def test_shared_gradients_are_divided_once(gradients: dict, stage: int, cell: str, window: str) -> None:
    reference = reference_gradients(toy(stage), structures(WINDOWS[window]))
    reference["bases.rbf.weight"] /= 4.0
    for name, expected in reference.items():
        torch.testing.assert_close(gradients[f"{stage}/{cell}"][name], expected, rtol=1e-4, atol=1e-6)


def plain_training(stage: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """What `training_cells.training` does, in plain torch with full parameters."""
    model = toy(stage)
    groups = parameter_groups(model.named_parameters(), RATES)
    optimizer = torch.optim.AdamW([{"params": g.params} for g in groups], betas=(0.9, 0.95), weight_decay=0.1)
    averaged = {k: v.clone() for k, v in model.state_dict().items()}
    counts, joined, norms = counts_of(WINDOWS["unequal"]), structures(WINDOWS["unequal"])[0], []
    for number in range(5):
        for group, multiplier in zip(optimizer.param_groups, (0.3, 0.5, 0.7, 1.0), strict=True):
            group["lr"] = 0.01 * multiplier * (number + 1)
        optimizer.zero_grad()
        sums = loss_sums(model(joined), joined)
        sum(sums[g] / counts[g] for g in counts).backward()
        for parameter in model.parameters():
            if parameter.grad is None:  # decayed all the same, as a zero gradient is under ZeRO
                parameter.grad = torch.zeros_like(parameter)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        for key, value in model.state_dict().items():
            averaged[key].lerp_(value, 0.1)
    return {k: v.clone() for k, v in model.state_dict().items()}, averaged, norms


@pytest.mark.parametrize("stage", STAGES)
def test_steps_groups_and_average_equal_plain_torch(trained: list, stage: int) -> None:
    weights, averaged, norms = plain_training(stage)
    for rank in (0, 1):
        ours = trained[rank][str(stage)]
        assert ours["norms"] == pytest.approx(norms, rel=1e-4)
        for key, expected in weights.items():
            torch.testing.assert_close(ours["weights"][key], expected, rtol=1e-4, atol=2e-6)
            torch.testing.assert_close(ours["averaged"][key], averaged[key], rtol=1e-4, atol=2e-6)
        assert all(torch.equal(ours["averaged"][k], v) for k, v in ours["exported"].items())
        assert bool(ours["exported"]) == (rank == 0)
        assert relative(averaged["embedding.weight"], weights["embedding.weight"]) > 1e-3
        assert ours["back"], "the weights after validation are not those before"


@pytest.mark.parametrize("stage", STAGES)
def test_validation_sees_the_average(trained: list, stage: int) -> None:
    ours = trained[0][str(stage)]
    model = toy(stage)
    model.load_state_dict(ours["averaged"])
    expected = model.eval()(batch(range(6)))
    for task, by_label in expected.items():
        for label, value in by_label.items():
            torch.testing.assert_close(ours["outputs"][task][label], value)


@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_number_on_one_process_skips_the_step_on_all(trained: list, stage: int) -> None:
    for rank in (0, 1):
        ours = trained[rank][str(stage)]
        assert ours["skipped"]
        assert ours["unchanged"]
        assert ours["finite"] == [rank == 0]
        assert not ours["after_skipped"]
        assert ours["after_changed"]


def test_processes_stay_identical(trained: list) -> None:
    for stage in STAGES:
        first, second = (t[str(stage)]["weights"] for t in trained)
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_impossible_options() -> None:
    config = load_ds_config({})
    with pytest.raises(UserError, match="clip_norm and clip_value are both set"):
        EngineOptions(ds_config=config, clip_norm=1.0, clip_value=1.0)
    with pytest.raises(UserError, match="accumulation must be at least 1"):
        EngineOptions(ds_config=config, accumulation=0)
