"""From a bundle's weights to a model with other tasks: what is taken over, what is new, what is left behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from jmp_ds.errors import UserError
from jmp_ds.tasks.model import ATOMIC, MultiTaskModel
from jmp_ds.tasks.specs import Task


@dataclass(frozen=True)
class Transfer:
    """Names of tensors.

    Attributes:
        loaded: of the model, now with the bundle's values.
        new: of the model, with fresh values.
        dropped: of the bundle, not used.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    def table(self) -> list[tuple[str, int, int, int]]:
        """Per part of the network: name, tensors loaded, new and dropped; every tensor is in exactly one row."""
        parts: dict[str, list[int]] = {}
        for column, names in enumerate((self.loaded, self.new, self.dropped)):
            for name in names:
                parts.setdefault(part_of(name), [0, 0, 0])[column] += 1
        return [(part, *(counts[0], counts[1], counts[2])) for part, counts in parts.items()]


def part_of(name: str) -> str:
    """The part of the network that a tensor belongs to, for a table: `backbone.int_blocks.0`, `heads.TASK.energy`."""
    words = name.split(".")
    deep = words[0] == "heads" or (len(words) > 2 and words[1] in ("int_blocks", "out_blocks"))
    return ".".join(words[: 3 if deep else 2])


def transfer_weights(model: nn.Module, weights: Mapping[str, Tensor], donors: Mapping[str, str]) -> Transfer:
    """Copy into the model what fits: the whole backbone, and the heads of tasks that have a donor.

    Args:
        model: a `MultiTaskModel` with fresh weights.
        weights: a bundle's state.
        donors: task of the model → task of the bundle whose heads it takes over.

    Raises:
        UserError: a tensor of the backbone, or of a head that shall be taken over, has another shape in the bundle.
    """
    own = model.state_dict()
    candidates = {name: _source(name, donors) for name in own}
    sources = {name: source for name, source in candidates.items() if source is not None and source in weights}
    for name, source in sources.items():
        if own[name].shape != weights[source].shape:
            raise UserError(
                f"{source} is {tuple(weights[source].shape)} in the bundle, but the model needs {tuple(own[name].shape)}; "
                "use a bundle of the same network, or `heads: new`"
            )
    with torch.no_grad():
        for name, source in sources.items():
            own[name].copy_(weights[source])
    used = set(sources.values())
    return Transfer(tuple(sources), _rest(own, sources), _rest(weights, used))


def rescale_heads(model: MultiTaskModel, donors: Mapping[str, Task]) -> None:
    """Make heads that were taken over predict in physical units what they did in the bundle, whatever the new scales.

    Means and element references are not the heads' business.

    Args:
        model: with the donors' heads in place.
        donors: by task of the model, the bundle's task that its heads are from.
    """
    with torch.no_grad():
        for task in model.tasks:
            if task.name not in donors:
                continue
            for name, head in cast(nn.ModuleDict, model.heads[task.name]).items():
                label = name if name in task.labels else name.removesuffix(ATOMIC)
                last = list(cast(nn.Sequential, head))[-1]
                cast(nn.Linear, last).weight.mul_(donors[task.name].scale(label) / task.scale(label))


def _rest(names: Iterable[str], without: Iterable[str]) -> tuple[str, ...]:
    excluded = set(without)
    return tuple(name for name in names if name not in excluded)


def _source(name: str, donors: Mapping[str, str]) -> str | None:
    """Where the bundle has what the model calls `name`; None for a new head."""
    words = name.split(".")
    if words[0] != "heads":
        return name
    donor = donors.get(words[1])
    return None if donor is None else ".".join(["heads", donor, *words[2:]])
