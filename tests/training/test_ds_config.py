"""DeepSpeed's configuration: what is misspelt, misplaced or impossible is refused with a message that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jmp_ds.errors import UserError
from jmp_ds.training.ds_config import load_ds_config, shipped_configs


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_files_are_valid(name: str) -> None:
    config = load_ds_config(name, gradient_forces=True)
    assert config.stage == int(name[4]) if name.startswith("zero") else config.stage == 1
    assert (config.autocast == "bfloat16") == name.endswith("bf16")


def test_the_shipped_ones_are_there() -> None:
    assert {"zero1_fp32", "zero1_bf16", "cpu_fp32", "cpu_bf16"} <= set(shipped_configs())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_optimisation": {"stage": 1}}, "unknown key; did you mean zero_optimization?"),
        ({"gradient_cliping": 1.0}, "unknown key; did you mean gradient_clipping?"),
        (
            {"zero_optimization": {"stge": 1}},
            "zero_optimization.stge: unknown key; did you mean zero_optimization.stage?",
        ),
        ({"torch_autocast": {"enable": True}}, "did you mean torch_autocast.enabled?"),
        ({"elasticity": {}}, "elasticity: unknown key; known are"),
        ({"gradient_clipping": 1.0}, "gradient_clipping is set by the run; remove it here and use train.clip_norm"),
        ({"optimizer": {"type": "AdamW"}}, "optimizer is set by the run; remove it here and use train.optimizer"),
        ({"train_batch_size": 8}, "train_batch_size is set by the run"),
        ({"fp16": {"enabled": True}}, "fp16 is not supported; use torch_autocast"),
        ({"zero_optimization": {"stage": "1"}}, "zero_optimization.stage: expected int, got '1'"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage: expected int, got True"),
        ({"zero_optimization": 1}, "zero_optimization: a section is expected, got 1"),
        ({"zero_optimization": {"stage": 5}}, "must be 0, 1, 2 or 3, got 5"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "dtype must be bfloat16"),
        ({"torch_autocast": {"lower_precision_safe_modules": [1]}}, "must list names"),
    ],
)
def test_mistakes_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_ds_config(values)
    assert message in str(error.value)


def test_stage_three() -> None:
    values = {"zero_optimization": {"stage": 3}}
    with pytest.raises(UserError, match="cannot train forces that are gradients of the energy"):
        load_ds_config(values, gradient_forces=True)
    with pytest.raises(UserError, match="stage 3 is not supported"):
        load_ds_config(values)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*nowhere.*zero1_fp32"):
        load_ds_config("nowhere.json")
    bad = tmp_path / "bad.json"
    bad.write_text("{'stage': 1}")
    with pytest.raises(UserError, match=r"bad.json: not valid JSON"):
        load_ds_config(bad)
    bad.write_text("[1]")
    with pytest.raises(UserError, match="a JSON object is expected, this is a list"):
        load_ds_config(bad)


def test_what_deepspeed_gets_is_explicit(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    settings = load_ds_config(path).completed(accumulation=3, world=4, clip_norm=None)
    assert settings["gradient_clipping"] == 0.0  # left out it would be 1.0
    assert (settings["train_micro_batch_size_per_gpu"], settings["train_batch_size"]) == (1, 12)
    assert load_ds_config(path).completed(accumulation=1, world=1, clip_norm=0.5)["gradient_clipping"] == 0.5
