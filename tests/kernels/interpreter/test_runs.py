"""What is asked for by `kernels: triton` runs on the Triton operators: prediction, fitting, training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from jmp_kernels import TorchMessages
from small_stores import write_pretrain

from jmp_ds.bench.step import set_scales
from jmp_ds.bundle import Bundle, load_bundle
from jmp_ds.config import load_pretrain
from jmp_ds.config.checks import check_pretrain
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.predictor import Predictor
from jmp_ds.models.presets import preset
from jmp_ds.pretrain import run_pretrain
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForceKind, ForcesTarget, Task

SIZES = {"num_blocks": 1, "num_radial": 16, "num_spherical": 4, "emb_size_atom": 16, "emb_size_edge": 24}
WATER = Atoms("OH2", [[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.1, -0.7, -0.45]])


def _bundle(kind: ForceKind) -> Bundle:
    torch.manual_seed(0)
    task = Task(name="t", graph=GraphSettings(cutoff=5.0), energy=EnergyTarget(), forces=ForcesTarget(kind=kind))
    model = MultiTaskModel(replace(preset("tiny"), **SIZES), (task,))
    set_scales(model)
    return Bundle.of(model, {})


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's triplets raise when they are called."""

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("PyTorch passed messages")

    monkeypatch.setattr(TorchMessages, "triplet", staticmethod(refuse))


@pytest.mark.parametrize("kind", ["direct", "gradient"])
def test_predictions_are_those_of_pytorch(kind: ForceKind, device: torch.device) -> None:
    bundle = _bundle(kind)
    (expected,), (found,) = (
        Predictor(bundle, device=device, dtype="float64", kernels=kernels).predict([WATER])
        for kernels in ("torch", "triton")
    )
    assert found.energy == pytest.approx(expected.energy, rel=1e-12)
    assert expected.forces is not None
    assert found.forces == pytest.approx(expected.forces, rel=1e-11, abs=1e-13 * np.abs(expected.forces).max())


@pytest.mark.usefixtures("refused")
def test_the_predictor_uses_what_it_is_told_to(device: torch.device) -> None:
    bundle = _bundle("direct")
    assert Predictor(bundle, device=device, kernels="triton").predict([WATER])[0].energy is not None
    with pytest.raises(AssertionError, match="PyTorch passed"):
        Predictor(bundle, device=device, kernels="torch").predict([WATER])


@pytest.mark.slow
@pytest.mark.usefixtures("refused")
def test_a_run_from_fit_to_report(tmp_path: Path, device: torch.device, capfd: pytest.CaptureFixture[str]) -> None:
    """Scale factors, one step, validation and report, and no triplet in PyTorch; the bundle does not say so."""
    words = [f"run.device={device.type}", "model.kernels=triton", f"model.overrides={SIZES}", "train={steps: 1}"]
    resolved = load_pretrain(write_pretrain(tmp_path), words)
    assert run_pretrain(resolved, check_pretrain(resolved)).status == "finished"
    assert f"message passing: triton on {device}" in capfd.readouterr().err
    assert "triton" not in (tmp_path / "run" / "final" / "bundle.json").read_text()
    assert load_bundle(tmp_path / "run" / "final").config.num_blocks == 1
