"""Exponential moving average of the weights, kept as shards of the float32 masters: no communication, no full copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from jmp_ds.training.engine import Engine


class Ema:
    """Average of the weights after every step: shadow = decay * shadow + (1 - decay) * weights.

    It starts from the initial weights and has no bias correction (specification section 7). Each process keeps its own
    partition (all parameters without ZeRO), 4 bytes * parameters / processes.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        self.decay = decay
        self._engine = engine
        self.shards: list[Tensor] = [m.clone() for m in engine.masters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take note of the weights after a step."""
        torch._foreach_lerp_(self.shards, self._engine.masters(), 1.0 - self.decay)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """The model has the averaged weights inside; collective."""
        with self._engine.weights(self.shards):
            yield
