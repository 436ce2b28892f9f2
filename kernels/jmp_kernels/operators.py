"""The one choice of backend: who passes messages, and how often dense layers can be differentiated."""

from __future__ import annotations

from dataclasses import dataclass, field

from jmp_kernels.dense_once import DenseOnce
from jmp_kernels.dense_twice import DenseTwice
from jmp_kernels.messages import TorchMessages


@dataclass(frozen=True)
class Operators:
    """What a network is built on; the default runs anywhere and differentiates twice.

    Attributes:
        messages: sums over edges, triplets and quadruplets.
        dense: dense layers; `DenseTwice` where forces are energy gradients.
    """

    messages: TorchMessages = field(default_factory=TorchMessages)
    dense: DenseOnce | DenseTwice = field(default_factory=DenseTwice)
