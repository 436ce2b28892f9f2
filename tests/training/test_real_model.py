"""The model and the loader that `pretrain` uses, on two processes, against one process in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_real import WINDOWS, reference
from training_spawn import run

from jmp_ds.training.metrics_log import read_metrics

STAGES = [1, 2]
INTERRUPTIONS = [1, 6]  # steps of the first and second epoch, of four each


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("real")
    arguments = {"out": str(out), "stages": STAGES, "interruptions": INTERRUPTIONS}
    run(2, "training_real:everything_real", arguments)
    return out, [torch.load(out / f"real_{rank}.pt", weights_only=False) for rank in (0, 1)]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("window", list(WINDOWS))
def test_two_processes_give_the_gradients_of_one(real: tuple, window: str) -> None:
    exact, single = (reference(dtype, WINDOWS[window]) for dtype in (torch.float64, torch.float32))
    for stage in STAGES:
        ours = real[1][0]["gradients"][f"{stage}/{window}"]
        assert ours.keys() == exact.keys()
        for name, expected in exact.items():
            if not expected.any():
                assert not ours[name].any(), name
                continue
            error, own = relative(ours[name], expected), relative(single[name], expected)
            # A tensor may by luck be exact in one process; then one rounding (2^-24) is what float32 could have given.
            assert error <= min(3 * max(own, 2.0**-24), 1e-5), (stage, name, error, own)


@pytest.mark.parametrize("window", list(WINDOWS))
def test_autocast_stays_near(real: tuple, window: str) -> None:
    exact, ours = reference(torch.float64, WINDOWS[window]), real[1][0]["gradients"][f"bf16/{window}"]
    errors = torch.tensor([relative(ours[n], g) for n, g in exact.items() if g.any()])
    assert errors.median() <= 2e-2
    assert errors.median() > 1e-5, "that was not bfloat16"


def test_interrupted_equals_uninterrupted(real: tuple) -> None:
    from test_loop import same

    out, ranks = real
    for rank, results in enumerate(ranks):
        results = results["resumed"]
        for part in results["straight"]:
            assert same(results["straight"][part], results["broken"][part]), (rank, part)
        straight, *broken = results["outcomes"]
        assert [o["status"] for o in broken] == ["stopped"] * len(INTERRUPTIONS) + ["finished"]
        assert [o["step"] for o in broken] == [*(at + 1 for at in INTERRUPTIONS), straight["step"]]
    validated = [line for line in read_metrics(out / "broken") if line["kind"] == "validate"]
    assert len(validated) == 3
    assert {"slabs/energy_mae", "slabs/forces_mae", "molecules/energy_mae_per_atom", "molecules/gap_mae"} <= set(
        validated[0]
    )
