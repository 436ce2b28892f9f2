"""DeepSpeed's JSON configuration, validated key by key: DeepSpeed itself accepts misspelt keys and ignores them.

What belongs to the run (optimizer, schedule, clipping, accumulation, batch) is set by us and refused in the file.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from jmp_ds.errors import UserError
from jmp_ds.planning.states import STAGES, why_refused

#: Files that come with the project, by name.
SHIPPED = Path(str(resources.files("jmp_ds.ds_configs")))

_NUMBER = (int, float)
_BF16 = {"enabled": bool, "check_grad_overflow": bool}
_FP16 = {
    "enabled": bool,
    "loss_scale": _NUMBER,
    "initial_scale_power": int,
    "loss_scale_window": int,
    "hysteresis": int,
    "consecutive_hysteresis": bool,
    "min_loss_scale": int,
}
_OFFLOAD = {"device": str, "pin_memory": bool}
_AUTOCAST = {"enabled": bool, "dtype": str, "lower_precision_safe_modules": list}
_ZERO = {
    "stage": int,
    "contiguous_gradients": bool,
    "reduce_scatter": bool,
    "reduce_bucket_size": _NUMBER,
    "use_multi_rank_bucket_allreduce": bool,
    "allgather_partitions": bool,
    "allgather_bucket_size": _NUMBER,
    "overlap_comm": bool,
    "round_robin_gradients": bool,
    "sub_group_size": _NUMBER,
    "stage3_prefetch_bucket_size": _NUMBER,
    "stage3_param_persistence_threshold": _NUMBER,
    "stage3_model_persistence_threshold": _NUMBER,
    "stage3_max_live_parameters": _NUMBER,
    "stage3_max_reuse_distance": _NUMBER,
    "offload_optimizer": _OFFLOAD,
    "offload_param": _OFFLOAD,
}
#: Every key that may be written: the type of its value, or the keys of its section.
SCHEMA: dict[str, Any] = {
    "zero_optimization": _ZERO,
    "torch_autocast": _AUTOCAST,
    "bf16": _BF16,
    "fp16": _FP16,
    "zero_force_ds_cpu_optimizer": bool,
    "communication_data_type": str,
    "prescale_gradients": bool,
    "gradient_predivide_factor": _NUMBER,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "comms_logger": {
        "enabled": bool,
        "verbose": bool,
        "prof_all": bool,
        "debug": bool,
        "prof_ops": list,
    },
    "flops_profiler": {
        "enabled": bool,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str,
    },
}
#: Keys that the run sets, with the place where the user says them.
_OURS = {
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "gradient_clipping": "train.clip_norm or train.clip_value",
    "gradient_accumulation_steps": "sampling.accumulation",
    "train_batch_size": "sampling.batch",
    "train_micro_batch_size_per_gpu": "sampling.batch",
    "steps_per_print": "nothing: the run reports its own progress",
    "tensorboard": "nothing: the run writes its own",
    "csv_monitor": "nothing: the run writes metrics.jsonl",
}


@dataclass(frozen=True)
class DeepSpeedConfig:
    """A validated file.

    Attributes:
        source: where it comes from, for messages.
        values: its content.
    """

    source: str
    values: dict[str, Any]

    @property
    def stage(self) -> int:
        """ZeRO stage: 0 replicates all, 1 shards the optimizer, 2 also the gradients, 3 also the parameters."""
        return int(self.values.get("zero_optimization", {}).get("stage", 0))

    @property
    def autocast(self) -> str | None:
        """The dtype of autocast, `bfloat16`, or None when everything is float32."""
        section = self.values.get("torch_autocast", {})
        return section.get("dtype", "bfloat16") if section.get("enabled", False) else None

    @property
    def narrow(self) -> str | None:
        """Precision of the parameters where it is not float32, `bf16` or `fp16`; the masters are float32 all the same."""
        return next((name for name in ("bf16", "fp16") if self.values.get(name, {}).get("enabled", False)), None)

    @property
    def offloads_optimizer(self) -> bool:
        """Whether masters, moments and the optimizer's arithmetic are in the CPU's memory."""
        return self._offload("offload_optimizer") == "cpu"

    @property
    def compiled_cpu_adam(self) -> bool:
        """Whether an optimizer in the CPU's memory is DeepSpeed's own, which needs a compiler on first use."""
        return bool(self.values.get("zero_force_ds_cpu_optimizer", True))

    def _offload(self, what: str) -> str:
        """Where something is kept."""
        return str(self.values.get("zero_optimization", {}).get(what, {}).get("device", "none"))

    def completed(self, *, accumulation: int, world: int, clip_norm: float | None) -> dict[str, Any]:
        """What DeepSpeed is given: the file plus the run's own settings, all explicit.

        `gradient_clipping` in particular is 1.0, not off, when it is left out (deepspeed.md section 0). A batch is
        counted as one sample; the loop counts structures itself.
        """
        return {
            **self.values,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": accumulation,
            "train_batch_size": accumulation * world,
            "gradient_clipping": clip_norm or 0.0,
        }


def shipped_configs() -> list[str]:
    """Names of the files that come with the project."""
    return sorted(p.stem for p in SHIPPED.glob("*.json"))


def load_ds_config(source: str | Path | Mapping[str, Any], *, gradient_forces: bool = False) -> DeepSpeedConfig:
    """Read and validate a configuration.

    Args:
        source: a JSON file, the name of a shipped one, or its content.
        gradient_forces: whether the model's forces are derivatives of its energy.

    Raises:
        UserError: no such file, not JSON, an unknown key (the nearest one is named), a wrong type, or a combination
            that does not work.
    """
    if isinstance(source, Mapping):
        name, values = "DeepSpeed configuration", dict(source)
    else:
        name, values = str(source), _read(Path(source))
    _check(values, SCHEMA, name, "")
    config = DeepSpeedConfig(name, values)
    _check_combinations(config, gradient_forces)
    return config


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file or in a shipped file of that name."""
    if not path.is_file() and (SHIPPED / f"{path}.json").is_file():
        path = SHIPPED / f"{path}.json"
    if not path.is_file():
        raise UserError(
            f"engine.deepspeed: no file {path}, and no shipped one of that name ({_list(shipped_configs())})"
        )
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON object is expected, this is a {type(values).__name__}")
    return values


def _check(values: Mapping[str, Any], schema: Mapping[str, Any], source: str, prefix: str) -> None:
    """Refuse unknown keys and wrong types, section by section."""
    for key, value in values.items():
        where = f"{source}: {prefix}{key}"
        if not prefix and key in _OURS:
            raise UserError(f"{where} is set by the run; remove it here and use {_OURS[key]}")
        if key not in schema:
            near = difflib.get_close_matches(key, [*schema, *([] if prefix else _OURS)], n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known are {_list(schema)}"
            raise UserError(f"{where}: unknown key{hint}")
        expected = schema[key]
        if isinstance(expected, dict):
            if not isinstance(value, dict):
                raise UserError(f"{where}: a section is expected, got {value!r}")
            _check(value, expected, source, f"{prefix}{key}.")
        elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            kinds = expected if isinstance(expected, tuple) else (expected,)
            raise UserError(f"{where}: expected {' or '.join(k.__name__ for k in kinds)}, got {value!r}")


def _check_combinations(config: DeepSpeedConfig, gradient_forces: bool) -> None:
    """Refuse what cannot work, with the reason."""
    if config.stage not in STAGES:
        raise UserError(f"{config.source}: zero_optimization.stage must be 0, 1, 2 or 3, got {config.stage}")
    refusal = why_refused(config.stage, gradient_forces=gradient_forces)
    if refusal:
        raise UserError(f"{config.source}: {refusal}; use stage 1 or 2")
    _check_precision(config)
    _check_offload(config)


def _check_precision(config: DeepSpeedConfig) -> None:
    """One kind of reduced precision at most, of a kind that is supported."""
    chosen = [name for name in ("bf16", "fp16") if config.values.get(name, {}).get("enabled", False)]
    chosen += ["torch_autocast"] if config.autocast else []
    if len(chosen) > 1:
        raise UserError(f"{config.source}: {' and '.join(chosen)} are both enabled; use one of them")
    if config.autocast not in (None, "bfloat16"):
        raise UserError(f"{config.source}: torch_autocast.dtype must be bfloat16, got {config.autocast!r}")
    for module in config.values.get("torch_autocast", {}).get("lower_precision_safe_modules", []):
        if not isinstance(module, str):
            raise UserError(f"{config.source}: torch_autocast.lower_precision_safe_modules must list names")


def _check_offload(config: DeepSpeedConfig) -> None:
    """Only to the CPU, and only what the stage shards."""
    for what, least in (("offload_optimizer", 1), ("offload_param", 3)):
        where, name = config._offload(what), f"{config.source}: zero_optimization.{what}"
        if where == "nvme":
            raise UserError(
                f"{name}.device: nvme is not supported, because averages of the weights need the masters in memory; use cpu"
            )
        if where not in ("none", "cpu"):
            raise UserError(f"{name}.device must be cpu or none, got {where!r}")
        if where == "cpu" and config.stage < least:
            raise UserError(f"{name} needs ZeRO stage {' or '.join(map(str, range(least, 4)))}, this is {config.stage}")


def check_device(config: DeepSpeedConfig, device: torch.device | str) -> None:
    """Refuse what the device of a run cannot do.

    Args:
        config: validated.
        device: `cpu` or `cuda`, with or without a number.

    Raises:
        UserError: fp16 on a CPU.
    """
    if config.narrow == "fp16" and torch.device(device).type == "cpu":
        raise UserError(
            f"{config.source}: fp16 needs a GPU, and this run is on a CPU; "
            "use bf16, torch_autocast with dtype bfloat16, or float32"
        )


def _list(names: Any) -> str:
    """Names in a row."""
    return ", ".join(names) or "none"
