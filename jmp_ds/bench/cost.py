"""A calibration of some minutes: the time of forward and backward on batches of all kinds, and the cost model it gives."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jmp_kernels import BackendName
from numpy.typing import NDArray

from jmp_ds.bench.population import Population, population
from jmp_ds.bench.step import Precision, TrainingStep, build_model, linear_time
from jmp_ds.bench.timing import Stopwatch
from jmp_ds.data.costs import COUNTS, CostModel
from jmp_ds.errors import UserError
from jmp_ds.heap import keep_freed_memory
from jmp_ds.planning.fitting import Floats, fit_seconds
from jmp_ds.tasks.specs import ForceKind

#: Fewest batches that a fit is made of; one in so many is kept out of the fit, to be predicted.
FEWEST, KEPT_OUT = 12, 4


@dataclass(frozen=True, kw_only=True)
class CostRequest:
    """What to calibrate.

    Attributes:
        model, forces, precision, kernels, recompute, device: as of `StepRequest`.
        edges: of the largest batch; the others have down to a tenth of it.
        seconds: when to stop.
        repeats: of each batch; the fastest counts.
    """

    model: str = "jmp-s"
    forces: ForceKind = "direct"
    precision: Precision = "float32"
    kernels: BackendName = "auto"
    recompute: bool = False
    device: str = "cpu"
    edges: int = 20_000
    seconds: float = 120.0
    repeats: int = 2


@dataclass(frozen=True)
class Timings:
    """Measured batches.

    Attributes:
        counts: [m, 7], sums over the structures, columns as in `COUNTS`.
        seconds: [m], forward, loss and backward.
    """

    counts: Floats
    seconds: Floats


class Runner:
    """Times forward, loss and backward of one network on drawn batches."""

    def __init__(self, request: CostRequest, drawn_from: Population) -> None:
        """Build the network. Raises: UserError: no such preset, kernels that are not there."""
        keep_freed_memory()
        self._request, self._from = request, drawn_from
        self._device = torch.device(request.device)
        first = drawn_from.batch(np.arange(len(drawn_from.structures)))
        self._model = build_model(
            request.model,
            first.tasks(request.forces),
            recompute=request.recompute,
            precision=request.precision,
            device=self._device,
            kernels=request.kernels,
        )

    def seconds(self, chosen: NDArray[np.int64]) -> float:
        """The fastest of some runs on a batch of these structures."""
        r = self._request
        source = self._from.batch(chosen)
        step = TrainingStep(linear_time(self._model), self._model, source, r.forces, r.precision, self._device)
        ready = step.build()
        watch = Stopwatch(self._device)
        return min(watch.seconds(lambda: step.on(ready)) for _ in range(r.repeats))


def measure(request: CostRequest) -> Timings:
    """Time batches of all sizes and mixtures until the time is over.

    Raises:
        UserError: too few batches in that time.
    """
    drawn_from = population()
    runner = Runner(request, drawn_from)
    rng = np.random.default_rng(0)
    runner.seconds(drawn_from.draw(2, rng))  # the first call does not count
    counts, seconds = [], []
    end = time.monotonic() + request.seconds
    while time.monotonic() < end:
        chosen = _some(drawn_from, rng, request.edges * 10.0 ** -rng.random())
        seconds.append(runner.seconds(chosen))
        counts.append(drawn_from.counts[chosen].sum(axis=0))
    if len(seconds) < FEWEST:
        raise UserError(
            f"bench cost: {len(seconds)} batches in {request.seconds:.0f} s, {FEWEST} are needed; "
            "ask for smaller batches (--edges) or more time (--seconds)"
        )
    return Timings(np.array(counts, dtype=np.float64), np.array(seconds))


def fit(timings: Timings, request: CostRequest) -> CostModel:
    """Coefficients that are not negative, with the least squared relative error; with the error of prediction."""
    out = np.arange(len(timings.seconds)) % KEPT_OUT == 0
    trial = _solve(timings.counts[~out], timings.seconds[~out])
    unseen = _predict(trial, timings.counts[out]) / timings.seconds[out] - 1.0
    final = _solve(timings.counts, timings.seconds)
    seen = _predict(final, timings.counts) / timings.seconds - 1.0
    edges = timings.counts[:, COUNTS.index("main")]
    main_only = timings.counts * (np.array(COUNTS) == "main")
    by_edges = _predict(_solve(main_only, timings.seconds), main_only) / timings.seconds - 1.0
    about: dict[str, Any] = {
        "model": request.model,
        "forces": request.forces,
        "precision": request.precision,
        "recompute": request.recompute,
        "device": _device_name(request.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batches": len(timings.seconds),
        "edges": [int(edges.min()), int(edges.max())],
        "relative_error_rms": float(np.sqrt((seen**2).mean())),
        "relative_error_worst": float(np.abs(seen).max()),
        "unseen_relative_error_rms": float(np.sqrt((unseen**2).mean())),
        "edges_alone_relative_error_rms": float(np.sqrt((by_edges**2).mean())),
    }
    coefficients = {name: float(c) for name, c in zip(COUNTS, final[:-1], strict=True) if c > 0.0}
    per_edge = float((timings.seconds.sum() - final[-1] * len(timings.seconds)) / edges.sum())
    return CostModel(coefficients, per_edge, float(final[-1]), about)


def _some(drawn_from: Population, rng: np.random.Generator, edges: float) -> NDArray[np.int64]:
    """Structures with about so many edges, in a mixture of their own."""
    chosen = drawn_from.draw(int(edges / 100) + 2, rng, slab_share=float(rng.choice([0.0, 0.1, 0.3, 0.6, 1.0])))
    total = np.cumsum(drawn_from.counts[chosen, COUNTS.index("main")])
    return chosen[: max(1, int(np.searchsorted(total, edges)))]


def _solve(counts: Floats, seconds: Floats) -> Floats:
    """Coefficients [8], the last one of a batch."""
    return fit_seconds(np.column_stack([counts, np.ones(len(seconds))]), seconds)


def _predict(coefficients: Floats, counts: Floats) -> Floats:
    return np.asarray(counts @ coefficients[:-1] + coefficients[-1])


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    return platform.processor() or platform.machine()
