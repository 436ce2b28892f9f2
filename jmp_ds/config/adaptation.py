"""`freeze` and `lora`: patterns of names, and whether they fit the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch

from jmp_ds.config.finetune import FinetuneConfig
from jmp_ds.config.loading import Resolved
from jmp_ds.config.messages import nearest
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.low_rank import dense_layers_of
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import Task


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that any of the patterns matches; * stands for anything."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_adaptation(
    resolved: Resolved[FinetuneConfig], backbone: BackboneConfig, tasks: Sequence[Task], stage: int
) -> None:
    """Refuse patterns that match nothing, runs that would train nothing, and what ZeRO 3 cannot do.

    Raises:
        UserError: with the place of the key.
    """
    config = resolved.config
    if not config.freeze and config.lora is None:
        return
    with torch.device("meta"):
        model = MultiTaskModel(backbone, tasks)
    parameters = [name for name, _ in model.named_parameters()]
    _check_patterns(resolved, "freeze", config.freeze, parameters)
    if config.lora is not None:
        _check_patterns(resolved, "lora.layers", config.lora.layers, list(dense_layers_of(model)))
    elif len(matching(parameters, config.freeze)) == len(parameters):
        raise resolved.complaint("freeze", "nothing is left to train")
    if stage == 3:
        key = "freeze" if config.freeze else "lora"
        raise resolved.complaint(key, "ZeRO stage 3 does not go with frozen weights; use stage 0, 1 or 2")


def _check_patterns(
    resolved: Resolved[FinetuneConfig], key: str, patterns: Sequence[str], names: Sequence[str]
) -> None:
    for pattern in patterns:
        if not matching(names, [pattern]):
            raise resolved.complaint(key, f"{pattern!r} matches nothing; {nearest(pattern, names)}")
