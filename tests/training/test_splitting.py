"""A micro-batch that does not fit into memory: divided, or told with its counts and the settings to change."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from small_stores import write_pretrain
from training_fork import run_jobs

from jmp_ds.config import load_pretrain
from jmp_ds.config.checks import check_pretrain
from jmp_ds.errors import UserError
from jmp_ds.pretrain import run_pretrain
from jmp_ds.training.ds_config import DeepSpeedConfig
from jmp_ds.training.metrics_log import read_metrics
from jmp_ds.training.outcome import read_outcome

STAGES = [0, 1, 2]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("split")
    run_jobs([(2, "training_splitting:cells", {"out": str(out), "stages": STAGES})], out)
    return torch.load(out / "split_2.pt")


@pytest.mark.parametrize("stage", STAGES)
def test_parts_give_the_gradients_of_the_whole(split: dict, stage: int) -> None:
    for name, model, when in product(
        ("unequal", "empty", "accumulated"), ("plain", "divided"), ("forward", "backward")
    ):
        cell = split[f"{stage}/{name}/{model}"]
        assert cell[f"{when}/told"][0], "nothing was divided"
        assert not cell[f"{when}/told"][1]
        for key, expected in cell["whole"].items():
            torch.testing.assert_close(
                cell[when][key], expected, rtol=1e-4, atol=2e-6, msg=f"{name} {model} {when} {key}"
            )


@pytest.mark.parametrize("stage", STAGES)
def test_one_structure_that_does_not_fit_ends_the_run(split: dict, stage: int) -> None:
    assert "one structure of micro-batch 1 alone does not fit" in split[f"{stage}/hopeless"]


def scarce(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of memory for more than so many structures, in the real trainer."""
    from jmp_ds.tasks.model import MultiTaskModel

    forward = MultiTaskModel.forward

    def short(self: Any, batch: Any) -> Any:
        if self.training and batch.num_structures > limit:
            raise torch.OutOfMemoryError("made up")
        return forward(self, batch)

    monkeypatch.setattr(MultiTaskModel, "forward", short)


def test_the_message_has_counts_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = load_pretrain(write_pretrain(tmp_path), ["train={steps: 2}"])
    scarce(2, monkeypatch)
    with pytest.raises(UserError, match=r"out of memory in step 1 \(\d+ structures with \d+ atoms and \d+ edges\)"):
        run_pretrain(resolved, check_pretrain(resolved))
    outcome = read_outcome(tmp_path / "run")
    assert outcome is not None
    assert "sampling.batch" in outcome.reason
    assert "model.recompute" in outcome.reason


def test_the_trainer_goes_on_with_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    for name, words in (("whole", []), ("parts", ["train.on_out_of_memory=split"])):
        folder = tmp_path / name
        folder.mkdir()
        resolved = load_pretrain(write_pretrain(folder), ["train={steps: 10}", *words])
        if words:
            scarce(2, monkeypatch)
        assert run_pretrain(resolved, check_pretrain(resolved)).status == "finished"
        lines = read_metrics(folder / "run")
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    events = [line for line in lines if line["kind"] == "event"]
    assert all("out of memory" in event["split"] for event in events)
    assert len(events) >= 10
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_what_cannot_be_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = load_pretrain(write_pretrain(tmp_path), ["train={steps: 2, on_out_of_memory: split}"])
    stage_3 = DeepSpeedConfig("made up", {"zero_optimization": {"stage": 3}})
    monkeypatch.setattr("jmp_ds.config.checks.load_ds_config", lambda *_, **__: stage_3)
    with pytest.raises(UserError, match="ZeRO stages 0 to 2"):
        check_pretrain(resolved)
