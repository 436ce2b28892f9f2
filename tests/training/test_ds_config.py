"""DeepSpeed's configuration: what is misspelt, misplaced or impossible is refused with a message that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jmp_ds.errors import UserError
from jmp_ds.training.ds_config import SHIPPED, check_device, load_ds_config, shipped_configs


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_files_are_valid(name: str) -> None:
    config = load_ds_config(name)
    check_device(config, "cpu")
    if name.startswith("zero"):
        assert config.stage == int(name[4])
    assert (config.autocast or config.narrow) in ((None,) if "fp32" in name else ("bfloat16", "bf16", None))
    if config.stage < 3:
        load_ds_config(name, gradient_forces=True)


def test_every_shipped_file_is_explained() -> None:
    page = (SHIPPED / "README.md").read_text()
    assert [name for name in shipped_configs() if f"`{name}`" not in page] == []


def test_there_is_one_for_every_situation() -> None:
    situations = {"one_gpu", "one_node", "many_nodes", "few_gpus_offload", "few_gpus_offload_all", "cpu_fp32"}
    assert situations <= set(shipped_configs())


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
        ({"bf16": {"enable": True}}, "bf16.enable: unknown key; did you mean bf16.enabled?"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16 and fp16 are both enabled; use one of them"),
        (
            {"bf16": {"enabled": True}, "torch_autocast": {"enabled": True}},
            "bf16 and torch_autocast are both enabled; use one of them",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param needs ZeRO stage 3, this is 1",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer needs ZeRO stage 1 or 2 or 3, this is 0",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device: nvme is not supported, because",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "disk"}}},
            "offload_optimizer.device must be cpu or none, got 'disk'",
        ),
        (
            {"zero_optimization": {"stage": 3, "stage3_max_live_parameter": 1}},
            "did you mean zero_optimization.stage3_max_live_parameters?",
        ),
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
    assert load_ds_config(values).stage == 3


def test_fp16_is_for_gpus() -> None:
    config = load_ds_config({"fp16": {"enabled": True, "initial_scale_power": 12}})
    assert config.narrow == "fp16"
    check_device(config, "cuda:1")
    with pytest.raises(UserError, match="fp16 needs a GPU, and this run is on a CPU; use bf16"):
        check_device(config, "cpu")
    check_device(load_ds_config({"fp16": {"enabled": False}}), "cpu")


def test_where_the_optimizer_is() -> None:
    values = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    assert load_ds_config(values).offloads_optimizer
    assert load_ds_config(values).compiled_cpu_adam
    assert not load_ds_config({**values, "zero_force_ds_cpu_optimizer": False}).compiled_cpu_adam
    assert not load_ds_config({"zero_optimization": {"stage": 2}}).offloads_optimizer


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
