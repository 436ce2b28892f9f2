"""Time of an optimiser step: matrix products, passes over memory, starting operations, optimiser, collectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.counts import BatchCounts, DenseLayer, Forces, HeadRows, dense_layers
from jmp_ds.planning.collectives import step_collectives
from jmp_ds.planning.devices import Cluster, Device
from jmp_ds.planning.memory import kept_numbers
from jmp_ds.planning.states import PRECISIONS, PrecisionName, Stage

#: Operations of a step as counted on a CPU: at least, per dense layer; times with gradient forces, and with recomputation.
_OPERATIONS, _PER_LAYER, _WITH_FORCE_PASS, _WITH_RECOMPUTE = 1070, 12.5, 2.9, 1.2
#: Bytes per parameter that AdamW reads and writes, those of the moving average, and of the norm.
OPTIMISER_TRAFFIC = 28
_AVERAGE_TRAFFIC, _NORM_TRAFFIC = 12, 4
STEP_TRAFFIC = OPTIMISER_TRAFFIC + _AVERAGE_TRAFFIC + _NORM_TRAFFIC
#: Parts of the network that are computed again.
_BLOCKS = ("int_blocks", "out_blocks")


@dataclass(frozen=True)
class Work:
    """What forward and backward of one micro-batch take, whatever computes them.

    Attributes:
        flops: of dense products, recomputation included.
        kept: bytes that are kept between forward and backward without recomputation; a third more with it.
        operations: that are started.
    """

    flops: float
    kept: float
    operations: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step of one process.

    Attributes:
        products: matrix products of all micro-batches.
        passes: moving features and tables besides.
        starting: starting operations; counts only where it is longer than the rest, on devices that work meanwhile.
        optimiser: AdamW, norm and moving average.
        collectives: messages between processes, as if nothing else ran meanwhile.
        network: forward and backward of all micro-batches.
        transfers: between the device and the machine's memory, as if nothing else ran meanwhile.
    """

    products: float
    passes: float
    starting: float
    optimiser: float
    collectives: float
    network: float
    transfers: float = 0.0

    @property
    def total(self) -> float:
        """The whole step; graphs are built by other processes meanwhile."""
        return self.network + self.optimiser + self.collectives + self.transfers


def work_of(
    config: BackboneConfig, counts: BatchCounts, heads: Sequence[HeadRows], forces: Forces, *, itemsize: int = 4
) -> Work:
    """What one micro-batch takes.

    Args:
        config: of the network, `recompute` among it.
        counts: of the batch.
        heads: with their rows.
        forces: gradient forces have a second pass, and its derivative.
        itemsize: bytes per feature.
    """
    layers = dense_layers(config, counts, heads)
    kept = kept_numbers(replace(config, recompute=False), counts, heads).bytes(forces, itemsize)
    operations = _OPERATIONS + _PER_LAYER * len(layers)
    if forces == "gradient":
        operations *= _WITH_FORCE_PASS
    if config.recompute:
        kept, operations = kept * 4 // 3, operations * _WITH_RECOMPUTE
    flops = sum(layer.product * times for layer, times in _products(layers, config, forces))
    return Work(flops, kept, operations)


def step_time(
    config: BackboneConfig,
    counts: BatchCounts,
    heads: Sequence[HeadRows],
    forces: Forces,
    device: Device,
    cluster: Cluster,
    *,
    parameters: int,
    precision: PrecisionName,
    stage: Stage,
    world: int,
    accumulation: int = 1,
) -> StepTime:
    """Time of an optimiser step; nothing is taken to overlap but starting operations on a GPU."""
    how = PRECISIONS[precision]
    work = work_of(config, counts, heads, forces, itemsize=how.feature)
    rate = device.flops[how.products]
    products = work.flops / rate
    if device.roofline:
        layers = dense_layers(config, counts, heads)
        products = sum(
            times * max(layer.product / rate, _moved(layer, how.feature) / device.bandwidth)
            for layer, times in _products(layers, config, forces)
        )
    passes = device.passes * work.kept / device.bandwidth
    starting = work.operations * device.per_operation
    network = max(products + passes, starting) if device.concurrent else products + passes + starting
    mine = parameters if stage == 0 else parameters / world
    messages = step_collectives(parameters, stage, precision, accumulation)
    return StepTime(
        products=accumulation * products,
        passes=accumulation * passes,
        starting=accumulation * starting,
        optimiser=STEP_TRAFFIC * mine / device.bandwidth,
        collectives=sum(message.seconds(world, cluster) for message in messages),
        network=accumulation * network,
    )


def _products(layers: Sequence[DenseLayer], config: BackboneConfig, forces: Forces) -> list[tuple[DenseLayer, int]]:
    """Layers with how often each of them multiplies; blocks once or twice more where they are computed again."""
    again = (2 if forces == "gradient" else 1) if config.recompute else 0
    return [(x, sum(x.passes(forces)) + (again if x.name.startswith(_BLOCKS) else 0)) for x in layers]


def _moved(layer: DenseLayer, itemsize: int) -> int:
    """Bytes of the operands and the result of one product."""
    return itemsize * (layer.rows * (layer.inputs + layer.outputs) + layer.inputs * layer.outputs)
