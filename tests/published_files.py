"""Made-up Lightning files in the published layout, filled with the recorded tiny state."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from golden_systems import recorded
from torch import Tensor


@dataclass
class ForeignConfig:
    """Stands beside the tensors in such files; its class must not be needed to read them."""

    name: str = "pretrain"
    nested: dict[str, Any] = field(default_factory=lambda: {"lr": 3e-4})


def is_parameter(key: str) -> bool:
    """Whether the optimizer of the published code knows this entry."""
    return not (
        ".rbf." in key or ".seq_energy_pre." in key or key.startswith("task_steps") or key.endswith("scale_factor")
    )


def raw_state(name: str = "tiny_pretrain_state") -> dict[str, Tensor]:
    """The recorded state under its published names, with the counters that real files have."""
    state = {k: torch.tensor(v) for k, v in recorded(name).items()}
    state["task_steps._module_dict._typed_moduledict_oc20.sum_value"] = torch.tensor(17.0)
    return state


def checkpoint(raw: dict[str, Tensor], ema: list[Tensor] | None) -> dict[str, Any]:
    """What Lightning saves."""
    optimizer: dict[str, Any] = {"state": {}, "param_groups": [{"lr": 3e-4, "params": [0]}]}
    if ema is not None:
        optimizer = {"opt": optimizer, "ema": tuple(ema), "current_step": 3, "decay": 0.99}
    return {
        "epoch": 1,
        "global_step": 3,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": raw,
        "optimizer_states": [optimizer],
        "hyper_parameters": {"hparams": ForeignConfig()},
    }


def averaged(raw: dict[str, Tensor], shift: float) -> list[Tensor]:
    """Moving averages that differ from the raw weights by a known shift."""
    return [x + shift for k, x in raw.items() if is_parameter(k)]


def write(path: Path, raw: dict[str, Tensor], ema: list[Tensor] | None) -> Path:
    """Save such a file."""
    torch.save(checkpoint(raw, ema), path)
    return path
