"""Exponential moving average of the weights, kept as shards of the float32 masters: no communication, no full copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jmp_ds.errors import UserError
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

    def state(self) -> dict[str, Any]:
        """This process's part, marked with the partition it belongs to."""
        return {
            "stage": self._engine.stage,
            "world": self._engine.processes.world,
            "decay": self.decay,
            "shards": [s.cpu() for s in self.shards],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`.

        Raises:
            UserError: it was written with another ZeRO stage or number of processes.
        """
        written = (state["stage"], state["world"])
        now = (self._engine.stage, self._engine.processes.world)
        if written != now or [s.shape for s in state["shards"]] != [s.shape for s in self.shards]:
            raise UserError(
                f"the checkpoint's averaged weights belong to ZeRO stage {written[0]} on {written[1]} processes, "
                f"this run has stage {now[0]} on {now[1]}; resume with the same"
            )
        for mine, saved in zip(self.shards, state["shards"], strict=True):
            mine.copy_(saved)
