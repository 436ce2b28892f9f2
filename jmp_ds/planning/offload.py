"""What moves to the memory of the machine when states are offloaded, and what carrying it there and back takes.

The rules follow DeepSpeed's source for the two ready configurations (`few_gpus_offload`, `few_gpus_offload_all`); no figure
here is measured. Persistent small parameters and DeepSpeed's own small change are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jmp_ds.planning.states import PRECISIONS, REDUCE_BUCKET, ModelStates, PrecisionName, Stage

Offload = Literal["none", "optimiser", "all"]
#: The stage of ZeRO that goes with each, as in the ready configurations.
STAGE_OF: dict[Offload, Stage] = {"optimiser": 2, "all": 3}
#: Parameters that are gathered at a time where all are offloaded (`stage3_max_live_parameters` of few_gpus_offload_all).
_LIVE = 200_000_000


@dataclass(frozen=True)
class Host:
    """One machine beside its devices.

    Attributes:
        memory: bytes that training may use.
        pcie: bytes per second between one device and this memory, one way.
        bandwidth: bytes per second of this memory, for all processes of the machine together.
    """

    memory: int
    pcie: float
    bandwidth: float


def device_states(parameters: int, world: int, precision: PrecisionName, offload: Offload) -> ModelStates:
    """What stays on the device of one process.

    Gradients go to the machine's memory bucket by bucket as they are summed, so that no more than buckets are held.

    Args:
        parameters: of the model.
        world: processes.
        precision: see `PRECISIONS`.
        offload: what goes: `optimiser` (masters, moments, averages, gradients) or `all` (parameters as well).
    """
    how = PRECISIONS[precision]
    part = -(-parameters // world)
    return ModelStates(
        parameters=0 if offload == "all" else how.weight * parameters,
        gathered=how.weight * min(parameters, _LIVE) if offload == "all" else 0,
        gradients=0,
        masters=0,
        moments=0,
        average=0,
        buckets=2 * how.reduced * min(parameters, REDUCE_BUCKET),
        stepping=how.weight * min(part, REDUCE_BUCKET),
    )


def host_bytes(parameters: int, world: int, precision: PrecisionName, offload: Offload) -> int:
    """What one process holds in the machine's memory: masters, moments, averages, gradients in float32; parameters."""
    if offload == "none":
        return 0
    part = -(-parameters // world)
    return (4 + 8 + 4 + 4) * part + (PRECISIONS[precision].weight * part if offload == "all" else 0)


def transfer_seconds(
    parameters: int, world: int, precision: PrecisionName, offload: Offload, accumulation: int, host: Host
) -> float:
    """Between a device and its machine in one optimiser step, as if nothing else ran meanwhile.

    Gradients go down after every micro-batch. Parameters come up once after the step, or, where they live below, for the
    forward and the backward pass of every micro-batch; each process carries its own part, collectives do the rest.
    """
    if offload == "none":
        return 0.0
    how, part = PRECISIONS[precision], parameters / world
    up = 2 * accumulation if offload == "all" else 1
    return part * (accumulation * how.gradient + up * how.weight) / host.pcie
