"""One training step as it is timed: graph building, forward with loss, backward, optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jmp_kernels import BackendName
from torch import Tensor, nn

from jmp_ds.bench.batches import BenchBatch
from jmp_ds.bench.enumerated.model import EnumeratedModel
from jmp_ds.bench.timing import Stopwatch
from jmp_ds.errors import UserError
from jmp_ds.graphs.batch import Batch
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.counts import HeadRows
from jmp_ds.models.presets import PRESETS
from jmp_ds.models.scaling import scale_factors
from jmp_ds.planning import backend
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.model import MultiTaskModel, Outputs
from jmp_ds.tasks.specs import ForceKind, Task
from jmp_ds.training.optimizer import OptimizerOptions, adamw, parameter_groups

Precision = Literal["float32", "bf16", "float64"]


#: The dtype of the dense products.
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}

#: Scale factors of a trained network, roughly (specification section 6), so that activations keep a sane size.
_SCALES = {
    "scale_rbf": 9.0,
    "scale_cbf": 30.0,
    "scale_sbf_sum": 8.0,
    "scale_rbf_sum": 0.5,
    "scale_sum": 0.7,
    "scale_rbf_F": 8.0,
}
_SCALES_OF_TRIPLETS = {"trip_interaction": 4.5, "atom_edge_interaction": 6.0, "edge_atom_interaction": 0.5}


@dataclass(frozen=True)
class StepTimes:
    """Wall times in seconds of one step.

    Attributes:
        graph: building the batch with its graph, and bringing it to the device.
        forward: network and loss.
        backward: of the loss.
        optimiser: forgetting the old gradients and updating the parameters.
    """

    graph: float
    forward: float
    backward: float
    optimiser: float

    @property
    def network(self) -> float:
        """Forward, loss and backward: what the floor is the floor of."""
        return self.forward + self.backward

    @property
    def whole(self) -> float:
        """Everything."""
        return self.graph + self.forward + self.backward + self.optimiser


#: Takes a batch, makes what the network wants beside it, and gives the evaluation: nothing in, outputs out.
Prepare = Callable[[Batch], Callable[[], Outputs]]


@dataclass(frozen=True)
class Ready:
    """A batch on the device, and the evaluation of the network on it."""

    batch: Batch
    evaluate: Callable[[], Outputs]


class TrainingStep:
    """A network with its optimiser, and the batch it is trained on over and over."""

    def __init__(
        self,
        prepare: Prepare,
        model: MultiTaskModel,
        source: BenchBatch,
        forces: ForceKind,
        precision: Precision,
        device: torch.device,
    ) -> None:
        """Set up an optimiser over the model's parameters.

        Args:
            prepare: the network: the model itself, or another form with its parameters.
            model: holds the parameters; in training mode.
            source: the structures.
            forces: of the model's tasks.
            precision: `bf16` is autocast.
            device: the model's.
        """
        self.model, self.source, self.forces = model, source, forces
        self.device, self._stopwatch = device, Stopwatch(device)
        self._prepare = prepare
        self._autocast = DTYPES[precision] if precision == "bf16" else None
        self._optimiser = adamw(parameter_groups(model.named_parameters()), OptimizerOptions(lr=1e-6), device)
        self._counts = count_labels(source.assemble(forces), model.tasks)

    def build(self) -> Ready:
        """The batch, made anew, on the device."""
        batch = self.source.assemble(self.forces, self.device)
        return Ready(batch, self._prepare(batch))

    @property
    def reduced(self) -> bool:
        """Whether the step runs under autocast."""
        return self._autocast is not None

    def loss(self, ready: Ready, *, reduced: bool = True) -> Tensor:
        """Training's own loss: weighted errors of every group over its count; without autocast unless `reduced`."""
        with torch.autocast(self.device.type, dtype=self._autocast, enabled=reduced and self.reduced):
            outputs = ready.evaluate()
        sums = loss_sums(outputs, ready.batch, self.model.tasks)
        return torch.stack([total / max(self._counts[group], 1) for group, total in sums.items()]).sum()

    def forget(self) -> None:
        """Drop the gradients."""
        self._optimiser.zero_grad(set_to_none=True)

    def update(self) -> None:
        """One step of the optimiser; the learning rate is so small that runs stay alike."""
        self._optimiser.step()

    def on(self, ready: Ready) -> None:
        """Forward, loss and backward on a batch that is there, without measuring anything; gradients start anew."""
        self.forget()
        self.loss(ready).backward()

    def timed(self) -> StepTimes:
        """One whole step."""
        seconds = self._stopwatch.seconds
        made: list[Ready] = []
        losses: list[Tensor] = []
        graph = seconds(lambda: made.append(self.build()))
        forgetting = seconds(self.forget)
        forward = seconds(lambda: losses.append(self.loss(made[0])))
        backward = seconds(losses[0].backward)
        optimiser = seconds(self.update)
        return StepTimes(graph, forward, backward, forgetting + optimiser)


def linear_time(model: MultiTaskModel) -> Prepare:
    """The model as it is trained."""
    return lambda batch: lambda: model(batch)


def enumerated(model: MultiTaskModel) -> Prepare:
    """The published, padded form with the model's parameters; its lists are made with the batch, before the forward."""
    network = EnumeratedModel(model)

    def prepare(batch: Batch) -> Callable[[], Outputs]:
        lists = network.prepare(batch)
        return lambda: network(batch, lists)

    return prepare


def sizes_of(size: str, *, recompute: bool, direct_forces: bool) -> BackboneConfig:
    """The sizes of a preset.

    Raises:
        UserError: no such preset.
    """
    if size not in PRESETS:
        raise UserError(f"no model {size!r}; there are {', '.join(PRESETS)}")
    return replace(PRESETS[size], recompute=recompute, direct_forces=direct_forces)


def build_model(
    size: str,
    tasks: Sequence[Task],
    *,
    recompute: bool,
    precision: Precision,
    device: torch.device,
    kernels: BackendName = "auto",
) -> MultiTaskModel:
    """A network of a named size; see `model_of`.

    Raises:
        UserError: no such size, or kernels that are not there.
    """
    direct = any(task.direct_forces for task in tasks)
    config = sizes_of(size, recompute=recompute, direct_forces=direct)
    return model_of(config, tasks, precision=precision, device=device, kernels=kernels)


def model_of(
    config: BackboneConfig,
    tasks: Sequence[Task],
    *,
    precision: Precision,
    device: torch.device,
    kernels: BackendName = "auto",
) -> MultiTaskModel:
    """A network with random weights and plausible scale factors, in training mode, on the device.

    Raises:
        UserError: kernels that are not there.
    """
    messages = backend(kernels, device)
    torch.manual_seed(0)
    with torch.device(device):
        model = MultiTaskModel(config, tasks, messages)
    set_scales(model)
    return model.to(device=device, dtype=torch.float64 if precision == "float64" else torch.float32).train()


def set_scales(model: nn.Module) -> None:
    """Give every scale factor a typical value."""
    for name, factor in scale_factors(model).items():
        parent, leaf = name.split(".")[-2:]
        factor.scale_factor.fill_(_SCALES_OF_TRIPLETS[parent] if leaf == "scale_cbf_sum" else _SCALES[leaf])


def head_rows(tasks: Sequence[Task], batch: Batch, *, every: bool = False) -> list[HeadRows]:
    """The heads of a model and their rows in a batch; `every`: as published, each head on every structure."""
    heads = []
    for task in tasks:
        rows = batch.rows[task.name]
        atoms = batch.num_atoms if every else rows.atoms.shape[0]
        edges = batch.graph.num_edges if every else rows.edges.shape[0]
        heads.append(HeadRows(f"{task.name}.energy", "atoms", atoms))
        if task.direct_forces:
            heads.append(HeadRows(f"{task.name}.forces", "edges", edges))
    return heads
