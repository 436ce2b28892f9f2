"""The measurement: steps and their floors in turn, and what follows from their times."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from jmp_ds.bench.batches import load_batch
from jmp_ds.bench.floor import Floor, matmul_peak
from jmp_ds.bench.step import DTYPES, Precision, StepTimes, TrainingStep, build_model, head_rows
from jmp_ds.bench.timing import Stopwatch
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
        recompute: whether blocks keep only their inputs.
        device: where.
        threads: of PyTorch on the CPU; None: as it is.
        repeats: timed rounds.
        cutoff, max_neighbors: of the graphs, instead of the batch's own.
    """

    model: str = "jmp-s"
    batch: str = "slab98"
    precision: Precision = "float32"
    forces: ForceKind = "direct"
    recompute: bool = False
    device: str = "cpu"
    threads: int | None = None
    repeats: int = 5
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
        self.step, self.layers = step, list(layers)
        self._stopwatch = Stopwatch(step.device)
        self._floor = Floor(self.layers, step.forces, step.device, DTYPES[precision])
        self.rounds: list[Round] = []

    def warm_up(self, rounds: int) -> None:
        """Rounds that do not count."""
        for _ in range(rounds):
            self._round()

    def run(self) -> None:
        """One round that counts."""
        self.rounds.append(self._round())

    def summary(self) -> dict[str, Any]:
        """Medians in seconds and ratios; every ratio is taken within its round."""
        network = [r.step.network for r in self.rounds]
        return {
            "seconds": {
                **{part: statistics.median(getattr(r.step, part) for r in self.rounds) for part in _PARTS},
                "floor": statistics.median(r.floor for r in self.rounds),
            },
            "rounds": [{**asdict(r.step), "floor": r.floor} for r in self.rounds],
            "step_over_floor": statistics.median(r.step.network / r.floor for r in self.rounds),
            "whole_step_over_floor": statistics.median(r.step.whole / r.floor for r in self.rounds),
            "flops": step_flops(self.layers, self.step.forces),
            "network_seconds": statistics.median(network),
        }

    def _round(self) -> Round:
        times = self.step.timed()
        return Round(times, self._stopwatch.seconds(self._floor.run))


_PARTS = ("graph", "forward", "backward", "optimiser", "network", "whole")


def measure(request: StepRequest) -> dict[str, Any]:
    """Measure a step as asked for; the result is ready for JSON (docs/benchmarks.md says what each number means).

    Raises:
        UserError: an unknown model or batch.
    """
    if request.threads:
        torch.set_num_threads(request.threads)
    device = torch.device(request.device)
    source = load_batch(request.batch, request.cutoff, request.max_neighbors)
    tasks = source.tasks(request.forces)
    model = build_model(request.model, tasks, recompute=request.recompute, precision=request.precision, device=device)
    step = TrainingStep(model, model, source, request.forces, request.precision, device)
    batch = step.build()
    counts = BatchCounts.of(batch)
    contender = Contender(step, dense_layers(model.config, counts, head_rows(tasks, batch)), request.precision)
    contender.warm_up(3 if device.type == "cuda" else 1)
    for _ in range(request.repeats):
        contender.run()
    found = contender.summary()
    peak = matmul_peak(device, DTYPES[request.precision], Stopwatch(device))
    whole = found["seconds"]["whole"]
    return {
        "request": asdict(request),
        "machine": machine(device),
        "counts": asdict(counts),
        "parameters": sum(p.numel() for p in model.parameters()),
        **found,
        "matmul_peak_flops_per_s": peak,
        "model_flop_utilisation": found["flops"] / whole / peak,
        "structures_per_s": counts.structures / whole,
        "atoms_per_s": counts.atoms / whole,
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
