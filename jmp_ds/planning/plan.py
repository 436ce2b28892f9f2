"""One setting of a run, and what it will need: memory per process by component, time of a step, hours of a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.counts import Forces
from jmp_ds.planning.batches import BatchPlan, head_rows
from jmp_ds.planning.devices import Cluster, Device
from jmp_ds.planning.duration import STEP_TRAFFIC, StepTime, step_time
from jmp_ds.planning.memory import kept_bytes, parameter_count, working_bytes
from jmp_ds.planning.offload import Offload, device_states, host_bytes, transfer_seconds
from jmp_ds.planning.states import PRECISIONS, ModelStates, PrecisionName, Stage, model_states, why_refused


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is planned for.

    Attributes:
        model: name of the preset.
        config: its sizes; `recompute` and `direct_forces` are set from here.
        forces: from a head, or as gradient of the energy.
        tasks: with an energy head each, and a force head with direct forces.
        precision, stage, recompute: how it is trained.
        offload: what lies in the machine's memory (offload.py); decides the stage.
        world: processes, one device each.
        batch: micro-batch of one process.
        accumulation: micro-batches per optimiser step.
        padded: whether message passing keeps padded tables (PyTorch does, Triton does not).
    """

    model: str
    config: BackboneConfig
    forces: Forces = "direct"
    tasks: int = 4
    precision: PrecisionName = "bf16"
    stage: Stage = 1
    recompute: bool = False
    offload: Offload = "none"
    world: int = 1
    batch: BatchPlan
    accumulation: int = 1
    padded: bool = False

    @property
    def sizes(self) -> BackboneConfig:
        """The network's sizes under these settings."""
        return replace(self.config, recompute=self.recompute, direct_forces=self.forces == "direct")

    @property
    def parameters(self) -> int:
        """Of the network with its heads."""
        return parameter_count(self.sizes, head_rows(self.batch.counts, self.tasks, self.forces))


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one process.

    Attributes:
        states: parameters, gradients, optimiser, buckets.
        activations: what autograd keeps, copies of weights among it.
        workspace: what comes and goes while a block is computed, recomputed activations among it.
    """

    states: ModelStates
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """At the peak: in the backward pass, or in the optimiser's step."""
        return max(self.states.in_backward + self.activations + self.workspace, self.states.in_step)


@dataclass(frozen=True)
class Prediction:
    """What a setting needs.

    Attributes:
        setting: it.
        memory: of one process.
        time: of one optimiser step.
        limit: bytes that the device leaves to use.
        host, host_limit: bytes of one machine's memory that its processes take for states, and may take.
    """

    setting: Setting
    memory: ProcessMemory
    time: StepTime
    limit: int
    host: int = 0
    host_limit: int = 0

    @property
    def fits(self) -> bool:
        """Whether memory suffices, the machine's among it."""
        return self.memory.total <= self.limit and self.host <= self.host_limit

    @property
    def refused(self) -> str:
        """Why the engine would refuse this setting, or nothing."""
        return why_refused(self.setting.stage, gradient_forces=self.setting.forces == "gradient")

    @property
    def structures_per_s(self) -> float:
        """Of all processes together."""
        s = self.setting
        return s.world * s.accumulation * s.batch.counts.structures / self.time.total

    @property
    def edges_per_s(self) -> float:
        """Main edges, of all processes together."""
        s = self.setting
        return s.world * s.accumulation * s.batch.counts.main / self.time.total

    def device_hours(self, structures: float, epochs: float, mean_edges: float | None = None) -> float:
        """Devices times hours for a data set, validation and checkpoints left out.

        Args:
            structures: in one epoch.
            epochs: number of epochs.
            mean_edges: main edges per structure; those of the batch where not given.
        """
        counts = self.setting.batch.counts
        edges = mean_edges if mean_edges is not None else counts.main / counts.structures
        return structures * epochs * edges / self.edges_per_s / 3600 * self.setting.world


def predict(setting: Setting, device: Device, cluster: Cluster) -> Prediction:
    """Memory and time of a setting on a device."""
    counts, sizes = setting.batch.counts, setting.sizes
    heads, parameters = head_rows(counts, setting.tasks, setting.forces), setting.parameters
    memory = process_memory(setting, parameters)
    time = step_time(
        sizes, counts, heads, setting.forces, device, cluster,
        parameters=parameters, precision=setting.precision, stage=setting.stage, world=setting.world,
        accumulation=setting.accumulation,
    )  # fmt: skip
    host = cluster.host
    neighbours = min(setting.world, cluster.gpus_per_node)
    where = (parameters, setting.world, setting.precision, setting.offload)
    if setting.offload != "none":
        time = replace(
            time,
            optimiser=STEP_TRAFFIC * parameters / setting.world * neighbours / host.bandwidth,
            transfers=transfer_seconds(*where, setting.accumulation, host),
        )
    return Prediction(setting, memory, time, device.usable, neighbours * host_bytes(*where), host.memory)


def process_memory(setting: Setting, parameters: int) -> ProcessMemory:
    """Memory of one process.

    Args:
        setting: what is planned for.
        parameters: of its network.
    """
    counts, sizes, how = setting.batch.counts, setting.sizes, PRECISIONS[setting.precision]
    heads = head_rows(counts, setting.tasks, setting.forces)
    kept = kept_bytes(sizes, counts, heads, setting.forces, itemsize=how.feature, padded=setting.padded)
    copies = 0 if setting.recompute else int(how.copies * parameters)
    workspace = working_bytes(sizes, counts, setting.forces, itemsize=how.feature, padded=setting.padded)
    if setting.offload == "none":
        states = model_states(parameters, setting.stage, setting.world, setting.precision)
    else:
        states = device_states(parameters, setting.world, setting.precision, setting.offload)
    return ProcessMemory(states, kept + copies, workspace)
