"""The measurement: steps and their floors in turn, and what follows from their times."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jmp_kernels import BackendName

from jmp_ds.bench.accuracy import deviation_from_float32
from jmp_ds.bench.activity import count_activity
from jmp_ds.bench.batches import BenchBatch, load_batch
from jmp_ds.bench.enumerated.lists import padded_bytes
from jmp_ds.bench.floor import Floor, matmul_peak
from jmp_ds.bench.memory import estimate, peak_of, refuse_beyond_memory, saved_by
from jmp_ds.bench.parts import time_parts
from jmp_ds.bench.step import (
    DTYPES,
    Precision,
    Prepare,
    StepTimes,
    TrainingStep,
    build_model,
    enumerated,
    head_rows,
    linear_time,
    sizes_of,
)
from jmp_ds.bench.timing import Stopwatch
from jmp_ds.heap import keep_freed_memory
from jmp_ds.models.counts import BatchCounts, DenseLayer, dense_layers, step_flops
from jmp_ds.tasks.specs import ForceKind


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """What to measure.

    Attributes:
        model: name of a preset.
        batch: name of a batch, or a file.
        precision: of the dense layers; `bf16` is autocast over float32 parameters.
        forces: from a head, or as the gradient of the energy.
        kernels: what message passing is computed by.
        recompute: whether blocks keep only their inputs.
        compare: `enumerated` runs the published, padded form in turn with the model.
        device: where.
        threads: of PyTorch on the CPU; None: as it is.
        repeats: timed rounds.
        details: whether memory, counts of operations and parts are measured, too, in steps apart from the timed ones.
        cutoff, max_neighbors: of the graphs, instead of the batch's own.
    """

    model: str = "jmp-s"
    batch: str = "slab98"
    precision: Precision = "float32"
    forces: ForceKind = "direct"
    kernels: BackendName = "auto"
    recompute: bool = False
    compare: Literal["", "enumerated"] = ""
    device: str = "cpu"
    threads: int | None = None
    repeats: int = 5
    details: bool = True
    cutoff: float | None = None
    max_neighbors: int | None = None


@dataclass(frozen=True)
class Round:
    """One timed step and the floor run right after it, in seconds."""

    step: StepTimes
    floor: float


class Contender:
    """A training step with its floor, timed in rounds."""

    def __init__(self, step: TrainingStep, layers: Sequence[DenseLayer], precision: Precision) -> None:
        """Args: step: what is timed; layers: the published layers with the rows of this form; precision: of the floor."""
        self.step, self.layers = step, list(layers)
        self.details: dict[str, Any] = {}
        self.rounds: list[Round] = []
        self._stopwatch = Stopwatch(step.device)
        self._dtype = DTYPES[precision]
        self._floor: Floor | None = None

    def look_closely(self) -> None:
        """Memory, counts of operations and parts; before any timing, so that the peak of memory is seen."""
        ready = self.step.build()
        edges = ready.batch.graph.num_edges
        peak = peak_of(lambda: self.step.on(ready), self.step.device)
        saved = saved_by(lambda: self.step.loss(ready), self.step.model, ready.batch)
        activity = count_activity(self.step)
        self.details = {
            "peak_bytes": peak,
            "saved_bytes": saved.activations,
            "saved_bytes_per_edge": saved.activations / max(edges, 1),
            "saved_weight_copies_bytes": saved.weight_copies,
            **asdict(activity),
            "host_synchronisations": sum(activity.waits.values()),
            "parts_seconds": time_parts(self.step),
            **({"deviation_from_float32": deviation_from_float32(self.step)} if self.step.reduced else {}),
        }

    def run(self, *, counts: bool) -> None:
        """One round: the step, then its floor."""
        if self._floor is None:
            self._floor = Floor(self.layers, self.step.forces, self.step.device, self._dtype)
        times = self.step.timed()
        floor = self._stopwatch.seconds(self._floor.run)
        if counts:
            self.rounds.append(Round(times, floor))

    def summary(self) -> dict[str, Any]:
        """Medians in seconds and ratios; every ratio is taken within its round."""
        return {
            "seconds": {
                **{part: statistics.median(getattr(r.step, part) for r in self.rounds) for part in _PARTS},
                "floor": statistics.median(r.floor for r in self.rounds),
            },
            "step_over_floor": statistics.median(r.step.network / r.floor for r in self.rounds),
            "whole_step_over_floor": statistics.median(r.step.whole / r.floor for r in self.rounds),
            "flops": step_flops(self.layers, self.step.forces),
            "rounds": [{**asdict(r.step), "floor": r.floor} for r in self.rounds],
            **self.details,
        }


_PARTS = ("graph", "forward", "backward", "optimiser", "network", "whole")


def measure(request: StepRequest) -> dict[str, Any]:
    """Measure a step as asked for; the result is ready for JSON (docs/benchmarks.md says what each number means).

    Raises:
        UserError: an unknown model or batch, one that memory will not hold, or kernels that are not there.
    """
    if request.threads:
        torch.set_num_threads(request.threads)
    device = torch.device(request.device)
    if device.type == "cpu":
        keep_freed_memory()
    source = load_batch(request.batch, request.cutoff, request.max_neighbors)
    needed = _memory(request, source)
    refuse_beyond_memory(needed, device)
    contenders = _contenders(request, source, device)
    if request.details:
        for contender in contenders:
            contender.look_closely()
    peak = matmul_peak(device, DTYPES[request.precision], Stopwatch(device))
    for k in range(-_warm_ups(device), request.repeats):
        for contender in contenders:
            contender.run(counts=k >= 0)
    counts = BatchCounts.of(source.assemble(request.forces))
    result = {
        "request": asdict(request),
        "machine": machine(device),
        "counts": asdict(counts),
        "parameters": sum(p.numel() for p in contenders[0].step.model.parameters()),
        "estimated_bytes": needed,
        "matmul_peak_flops_per_s": peak,
        **_rates(contenders[0].summary(), counts, peak),
    }
    if len(contenders) > 1:
        result["enumerated"] = _rates(contenders[1].summary(), counts, peak)
        result |= _speed_up(contenders[0].rounds, contenders[1].rounds)
    return result


def _contenders(request: StepRequest, source: BenchBatch, device: torch.device) -> list[Contender]:
    """The model and, where asked for, its enumerated form on the same parameters."""
    tasks = source.tasks(request.forces)
    model = build_model(
        request.model, tasks, recompute=request.recompute, precision=request.precision, device=device,
        kernels=request.kernels,
    )  # fmt: skip
    batch = source.assemble(request.forces)
    counts = BatchCounts.of(batch)

    def contender(prepare: Prepare, *, every: bool) -> Contender:
        step = TrainingStep(prepare, model, source, request.forces, request.precision, device)
        layers = dense_layers(model.config, counts, head_rows(tasks, batch, every=every))
        return Contender(step, layers, request.precision)

    found = [contender(linear_time(model), every=False)]
    if request.compare == "enumerated":
        found.append(contender(enumerated(model), every=True))
    return found


def _memory(request: StepRequest, source: BenchBatch) -> int:
    """Bytes that the more demanding of the contenders will need."""
    tasks, batch = source.tasks(request.forces), source.assemble(request.forces)
    config = sizes_of(request.model, recompute=request.recompute, direct_forces=request.forces == "direct")
    layers = dense_layers(config, BatchCounts.of(batch), head_rows(tasks, batch, every=bool(request.compare)))
    itemsize = DTYPES[request.precision].itemsize
    padded = padded_bytes(batch, config, itemsize, request.forces == "gradient") if request.compare else 0
    return estimate(config, layers, request.forces, itemsize) + padded


def _warm_ups(device: torch.device) -> int:
    """Rounds before those that count: on a GPU kernels are loaded and libraries choose theirs."""
    return 3 if device.type == "cuda" else 1


def _rates(found: dict[str, Any], counts: BatchCounts, peak: float) -> dict[str, Any]:
    """A summary with what follows from its whole step."""
    whole = found["seconds"]["whole"]
    return {
        **found,
        "model_flop_utilisation": found["flops"] / whole / peak,
        "structures_per_s": counts.structures / whole,
        "atoms_per_s": counts.atoms / whole,
    }


def _speed_up(ours: Sequence[Round], theirs: Sequence[Round]) -> dict[str, float]:
    """How many times the second takes as long as the first, round by round."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "speedup_over_enumerated": statistics.median(b.step.network / a.step.network for a, b in pairs),
        "whole_speedup_over_enumerated": statistics.median(b.step.whole / a.step.whole for a, b in pairs),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Where a number comes from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else "",
    }
