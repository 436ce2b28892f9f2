"""What of a network a fine-tuning run trains: everything, all but what is frozen, or low-rank changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from jmp_ds.config.adaptation import matching
from jmp_ds.config.finetune import FinetuneConfig
from jmp_ds.models.low_rank import add_low_rank, dense_layers_of, merged
from jmp_ds.training.optimizer import ParameterGroup


def adapt(config: FinetuneConfig, model: nn.Module) -> None:
    """Freeze what is to stay, then put low-rank changes in place of dense layers; patterns must match."""
    frozen = set(matching([name for name, _ in model.named_parameters()], config.freeze))
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if config.lora is not None:
        layers = matching(dense_layers_of(model), config.lora.layers)
        add_low_rank(model, layers, config.lora.rank, config.lora.alpha)


def whole_weights(config: FinetuneConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A trained state as one of the network without low-rank changes."""
    return state if config.lora is None else merged(state, config.lora.alpha / config.lora.rank)


def rate_table(model: nn.Module, groups: Sequence[ParameterGroup], rate: float) -> list[tuple[str, int, int, float]]:
    """Per group: name, tensors, numbers, peak learning rate; what is frozen comes last, with rate 0."""
    rows = [(g.name, len(g.params), sum(p.numel() for p in g.params), rate * g.multiplier) for g in groups]
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    return [*rows, ("frozen", len(frozen), sum(frozen), 0.0)] if frozen else rows
