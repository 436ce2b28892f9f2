"""What a process holds of the model and its training: parameters, gradients, optimiser, by ZeRO stage and precision.

The rules are those of DeepSpeed 0.19.8 under this project's engine (AdamW, moving average as shards of the masters), read
in its source and counted in processes for stages 0 to 2 (tests/training/test_held_states.py). Stage 3 is from its
estimator and its defaults alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PrecisionName = Literal["float32", "bf16", "deepspeed-bf16", "deepspeed-fp16"]
Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)

#: Elements of the reduction bucket in the shipped configurations; without ZeRO DeepSpeed flattens so many at a time.
REDUCE_BUCKET, REPLICATED_BUCKET = 50_000_000, 500_000_000
#: Parameters that stage 3 may hold gathered at a time (DeepSpeed's `stage3_max_live_parameters`).
MAX_LIVE = 1_000_000_000


@dataclass(frozen=True)
class Precision:
    """How numbers are kept.

    Attributes:
        weight, gradient, feature: bytes per parameter, per entry of its gradient, per feature of an edge.
        reduced: bytes per entry of a gradient while it is summed over processes.
        products: what matrix products are computed in: the key of a device's rates.
        copies: bytes per parameter of scaled and cast weights that autograd keeps (seen with JMP-S).
    """

    weight: int
    gradient: int
    feature: int
    reduced: int
    products: Literal["float32", "bf16", "fp16"]
    copies: float


#: `bf16` is autocast over float32 parameters, as everywhere in the project; DeepSpeed's own casts hold 16-bit parameters
#: and float32 masters.
PRECISIONS: dict[PrecisionName, Precision] = {
    "float32": Precision(4, 4, 4, 4, "float32", 0.16),
    "bf16": Precision(4, 4, 2, 4, "bf16", 0.65),
    "deepspeed-bf16": Precision(2, 2, 2, 2, "bf16", 0.08),
    "deepspeed-fp16": Precision(2, 2, 2, 2, "fp16", 0.08),
}


@dataclass(frozen=True)
class ModelStates:
    """Bytes per process.

    Attributes:
        parameters: as the network uses them.
        gathered: parameters of others that stage 3 holds for a while, at most.
        gradients: between backward and step.
        masters: float32 values that the optimiser changes, where they are not the parameters themselves.
        moments: AdamW's two.
        average: moving average of the masters.
        buckets: buffers of collectives, in the backward pass.
        stepping: what the optimiser's step needs in place of gradients and buckets.
    """

    parameters: int
    gathered: int
    gradients: int
    masters: int
    moments: int
    average: int
    buckets: int
    stepping: int

    @property
    def resident(self) -> int:
        """What is always there."""
        return self.parameters + self.masters + self.moments + self.average

    @property
    def in_backward(self) -> int:
        """What is there at the end of the backward pass, without activations."""
        return self.resident + self.gathered + self.gradients + self.buckets

    @property
    def in_step(self) -> int:
        """What is there while the optimiser works."""
        return self.resident + self.stepping


def why_refused(stage: int, *, gradient_forces: bool) -> str:
    """Why the engine cannot train at a stage of ZeRO, or nothing.

    Args:
        stage: of ZeRO.
        gradient_forces: whether forces are derivatives of the energy.
    """
    if stage == 3 and gradient_forces:
        return (
            "ZeRO stage 3 cannot train forces that are gradients of the energy "
            "(parameters are gone when the second derivative needs them)"
        )
    return ""


def model_states(parameters: int, stage: Stage, world: int, precision: PrecisionName) -> ModelStates:
    """States of one process.

    Args:
        parameters: of the model.
        stage: of ZeRO.
        world: processes.
        precision: see `PRECISIONS`.
    """
    p, part, how = parameters, -(-parameters // world), PRECISIONS[precision]
    if stage == 0:
        cast = how.weight != 4
        return ModelStates(
            parameters=how.weight * p,
            gathered=0,
            gradients=how.gradient * p,
            masters=4 * p if cast else 0,
            moments=8 * p,
            average=4 * p,
            buckets=how.reduced * min(p, REPLICATED_BUCKET) if world > 1 else 0,
            stepping=(how.gradient + 4 * cast) * p,
        )
    return ModelStates(
        parameters=how.weight * (part if stage == 3 else p),
        gathered=how.weight * min(p - part, MAX_LIVE) if stage == 3 else 0,
        # stage 1 keeps all of them until the window ends; the process's own part is copied out of the bucket
        gradients=how.gradient * (p if stage == 1 else part),
        masters=4 * part,
        moments=8 * part,
        average=4 * part,
        # the bucket, and its flat copy that is summed
        buckets=2 * how.reduced * min(p, REDUCE_BUCKET),
        # the part as it was reduced, flat, and that in float32 for the optimiser
        stepping=8 * part,
    )
