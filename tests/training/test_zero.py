"""ZeRO's details on two processes: what is resident at stage 3, float64, the shipped files, and the guard of the order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix_cells import judge, oracle_of, window
from training_spawn import run
from training_zero import SAVED, tied

from jmp_ds.training.ds_config import load_ds_config, shipped_configs


def _compiled_adam() -> bool:
    """Whether DeepSpeed's Adam for CPUs has been compiled on this machine."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or str(Path.home() / ".cache" / "torch_extensions")
    return any(Path(root).rglob("cpu_adam.so"))


def _needs_compiler(name: str) -> bool:
    config = load_ds_config(name)
    return config.offloads_optimizer and config.compiled_cpu_adam


RUNNABLE = [name for name in shipped_configs() if _compiled_adam() or not _needs_compiler(name)]


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("zero")
    run(2, "training_zero:everything", {"out": str(out), "names": RUNNABLE})
    return [torch.load(out / f"zero_{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("recompute", ["False", "True"])
def test_stage_three_has_one_unit_at_a_time(zero: list, recompute: str) -> None:
    for ours in (rank["residents"][recompute] for rank in zero):
        allowed = ours["outside"] + ours["largest"]
        assert ours["calls"] > 174, "nobody looked while gradients came"
        assert ours["first"] <= allowed < 0.5 * ours["total"]
        assert ours["later"] <= allowed
        assert ours["between"] == 0


def test_float64_is_exact(zero: list) -> None:
    for forces, error in zero[0]["float64"].items():
        assert error <= 1e-10, forces


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_files_train(zero: list, name: str) -> None:
    if name not in RUNNABLE:
        pytest.skip("DeepSpeed's Adam for CPUs is not compiled here (ds_configs/README.md says how)")
    ours = zero[0]["shipped"][name]
    cell = ours["cell"]
    verdict = judge(cell, ours["ours"], oracle_of(window(cell), cell.forces))
    assert verdict.outcome == "passed", verdict.reason
    assert ours["same_constants"], "constants of the geometry were rounded"


@pytest.mark.parametrize(("stage", "precision"), SAVED)
def test_checkpoints_bring_everything_back(zero: list, stage: int, precision: str) -> None:
    assert all(rank["saved"][f"{stage}/{precision}"] for rank in zero)


@pytest.mark.parametrize("stage", ["1", "2"])
def test_another_order_on_one_process_stops_all(zero: list, stage: str) -> None:
    for rank in zero:
        said = rank["disordered"][stage]
        assert "processes compute gradients in different orders (process 0 and 1 differ from number 1 on" in said
        assert "heads.path" in said
        assert "heads.slab" in said


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("recompute", [False, True])
def test_no_two_parameters_hang_on_one_node(forces: str, recompute: bool) -> None:
    assert tied(forces, recompute) == []
