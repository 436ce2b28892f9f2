"""What processes send each other in an optimiser step, and how long that takes.

DeepSpeed's stages 1 and 2 sum gradients by all-reduce (`use_multi_rank_bucket_allreduce`, its default), not by
reduce-scatter, so that they send half as much again as stage 0; counted in two processes by
tests/training/test_held_states.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jmp_ds.planning.devices import Cluster
from jmp_ds.planning.states import PRECISIONS, REDUCE_BUCKET, REPLICATED_BUCKET, PrecisionName, Stage


@dataclass(frozen=True)
class Collective:
    """One kind of message of an optimiser step.

    Attributes:
        kind: of operation.
        size: bytes of the whole tensor, all calls together.
        calls: into how many calls it is divided.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter"]
    size: int
    calls: int

    def sent(self, world: int) -> float:
        """Bytes that each process sends, at best."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * (world - 1) / world * self.size

    def seconds(self, world: int, cluster: Cluster) -> float:
        """Time: bytes over the slowest link on the way, and a delay per call (tree for sums, ring otherwise)."""
        if world == 1:
            return 0.0
        nodes = -(-world // cluster.gpus_per_node)
        inside = min(world, cluster.gpus_per_node)
        if self.kind == "all_reduce":
            delay = 2 * (math.log2(nodes) * cluster.network_delay + math.log2(inside) * cluster.link_delay)
        else:
            delay = (nodes - 1) * cluster.network_delay + (inside - 1) * cluster.link_delay
        return self.sent(world) / cluster.rate(world) + self.calls * delay


def step_collectives(
    parameters: int, stage: Stage, precision: PrecisionName, accumulation: int = 1
) -> list[Collective]:
    """Messages of one optimiser step, those of a few bytes left out.

    Args:
        parameters: of the model.
        stage: of ZeRO.
        precision: decides the bytes of gradients and of parameters.
        accumulation: micro-batches; stages 2 and 3 sum gradients after each.
    """
    how = PRECISIONS[precision]
    bucket = REPLICATED_BUCKET if stage == 0 else REDUCE_BUCKET
    rounds = accumulation if stage >= 2 else 1
    calls = rounds * -(-parameters // bucket)
    sums = Collective("all_reduce" if stage < 3 else "reduce_scatter", rounds * how.reduced * parameters, calls)
    if stage == 0:
        return [sums]
    if stage == 3:
        # forward and backward of every micro-batch need every parameter
        return [sums, Collective("all_gather", 2 * rounds * how.weight * parameters, 2 * calls)]
    return [sums, Collective("all_gather", how.weight * parameters, 1)]
