"""AdamW and its parameter groups.

The groups are made before DeepSpeed sees the parameters: with ZeRO each becomes one flat tensor afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from jmp_ds.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW (specification section 7): decoupled weight decay, on all parameters as published.

    Attributes:
        lr: peak learning rate, before the groups' multipliers.
        betas, eps, weight_decay: as in torch.
    """

    lr: float = 3.0e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1.0e-8
    weight_decay: float = 0.1


@dataclass(frozen=True, kw_only=True)
class LayerwiseRates:
    """Learning-rate multipliers by depth (specification section 9.1).

    Attributes:
        embedding: of the atom embedding.
        blocks: of block i = `int_blocks.i` with `out_blocks.(i+1)`; block 0 also has `out_blocks.0`. Empty: 1 for all.
        rest: of bases, `out_mlp_*` and heads.
    """

    embedding: float = 1.0
    blocks: tuple[float, ...] = ()
    rest: float = 1.0


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate.

    Attributes:
        name: `embedding`, `blocks_i` or `rest`.
        multiplier: of the learning rate.
        names: the parameters' names.
        params: the parameters.
        weight_decay: of these parameters; None: the optimizer's.
    """

    name: str
    multiplier: float
    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)
    weight_decay: float | None = None


_BLOCK = re.compile(r"(?:^|\.)(int_blocks|out_blocks)\.(\d+)\.")


def group_of(name: str) -> str:
    """The layer-wise group that a parameter belongs to, by its name."""
    found = _BLOCK.search(name)
    if found:
        number = int(found.group(2))
        return f"blocks_{number if found.group(1) == 'int_blocks' else max(number - 1, 0)}"
    return "embedding" if re.search(r"(?:^|\.)embedding\.", name) else "rest"


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], rates: LayerwiseRates | None = None
) -> list[ParameterGroup]:
    """Divide trainable parameters into groups of one learning rate.

    Args:
        parameters: `model.named_parameters()`.
        rates: multipliers; without them everything is one group.

    Raises:
        UserError: the number of multipliers is not the number of blocks.
    """
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    if rates is None:
        return [ParameterGroup("all", 1.0, [n for n, _ in trainable], [p for _, p in trainable])]
    by_name: dict[str, ParameterGroup] = {}
    for name, parameter in trainable:
        group = by_name.setdefault(group_of(name), ParameterGroup(group_of(name), 1.0))
        group.names.append(name)
        group.params.append(parameter)
    blocks = sorted(int(name.removeprefix("blocks_")) for name in by_name if name.startswith("blocks_"))
    if rates.blocks and len(rates.blocks) != len(blocks):
        raise UserError(
            f"layerwise_lr: {len(rates.blocks)} multipliers in `blocks`, but the model has {len(blocks)} blocks; "
            "give one for each"
        )
    by_block = dict(zip(blocks, rates.blocks or (1.0,) * len(blocks), strict=True))
    for name, group in by_name.items():
        if name.startswith("blocks_"):
            group.multiplier = by_block[int(name.removeprefix("blocks_"))]
        else:
            group.multiplier = rates.embedding if name == "embedding" else rates.rest
    order = ["embedding", *(f"blocks_{i}" for i in blocks), "rest"]
    return [by_name[name] for name in order if name in by_name]


def group_settings(groups: Iterable[ParameterGroup], options: OptimizerOptions) -> list[dict[str, Any]]:
    """The groups as optimizers take them."""
    return [
        {
            "params": g.params,
            "lr": options.lr * g.multiplier,
            "weight_decay": options.weight_decay if g.weight_decay is None else g.weight_decay,
        }
        for g in groups
    ]


def adamw(groups: Iterable[ParameterGroup], options: OptimizerOptions, device: torch.device) -> torch.optim.AdamW:
    """AdamW over the groups, on the device of the masters; the schedule sets their learning rates before every step."""
    return torch.optim.AdamW(
        group_settings(groups, options),
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=device.type == "cuda",
    )


def clip_by_value_before_step(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """Clamp every gradient entry to [-limit, limit] at the moment the optimizer is about to use it.

    Under ZeRO the optimizer holds this process's flat partition of float32 masters, and their gradient is by
    then the average over processes and window; without ZeRO it is the averaged gradient of each parameter. Clipping
    earlier (per process, as hooks would do) is not the published operation.
    """

    def clamp(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.clamp_(-limit, limit)

    optimizer.register_step_pre_hook(clamp)
