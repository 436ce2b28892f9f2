"""What a run of training is made of, besides the engine and the schedule: data, validation, lengths, position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor


class Window(Protocol):
    """What one optimizer step consumes (`jmp_ds.data.loading.Step`)."""

    @property
    def batches(self) -> Sequence[Any]:
        """This process's `accumulation` micro-batches, made ready by `to(device)`; some may be empty."""

    @property
    def structures(self) -> int:
        """Structures of all processes."""

    def divided(self, number: int, parts: int) -> Sequence[Any]:
        """This process's micro-batch `number` again, in at most so many parts."""


class Loader(Protocol):
    """Yields windows (`jmp_ds.data.loading.TrainLoader`)."""

    def __iter__(self) -> Iterator[Window]:
        """Windows from the position on; equally many on every process."""

    def state(self) -> dict[str, Any]:
        """Position after the last window handed out, as JSON values, the same on all processes."""


class MetricSums(Protocol):
    """Accumulates a validation (`jmp_ds.tasks.metrics.Metrics`)."""

    state: Tensor

    def update(self, outputs: Any, batch: Any) -> None:
        """Add a batch."""

    def compute(self) -> dict[str, float]:
        """Numbers by name, from `state`."""


@dataclass(frozen=True)
class Validation:
    """What validation needs.

    Attributes:
        batches: this process's part; equally many on every process, since gathering weights is collective.
        metrics: a new accumulator.
        primary: the number that decides what is best, the smaller the better, from all metrics.
    """

    batches: Callable[[], Iterable[Any]]
    metrics: Callable[[], MetricSums]
    primary: Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How long, how often, where.

    Attributes:
        run_dir: the run folder.
        length: of the run, in `measure`.
        measure: `structures` or `steps`.
        schedule_unit: how much of `measure` is 1 in the schedule's positions: `length` for fractions of the run, the
            structures of an epoch for epochs.
        epoch: structures per epoch, for what is told to people.
        validate_every, checkpoint_every: in structures.
        keep: checkpoints that stay, besides the best one.
        keep_best: write a checkpoint after every validation that was the best so far, so that it can stay.
        background: write checkpoints while training goes on.
        log_every: steps between lines in metrics.jsonl.
        ema_decay: of the averaged weights, which are then validated and exported; None: there are none.
        max_bad_steps: consecutive steps without finite gradient after which the run ends.
        seed: of dropout and whatever else draws during training.
        stop_grace: seconds after a stop request without a step boundary (or validation batch) until the process is
            ended without a checkpoint.
        wall_time: seconds from the start of the loop after which the run will be ended from outside; it stops by itself
            early enough to save.
        hung_after: seconds without any progress (four times as many for the first step and for checkpoints) after which
            the process writes down where it hangs and ends; None: it waits forever.
        on_out_of_memory: `stop` with a message, or `split` the batch and go on (see splitting.py).
        resume: False ignores checkpoints (the trainers refuse a folder that has some).
    """

    run_dir: Path
    length: float
    measure: Literal["structures", "steps"] = "structures"
    schedule_unit: float
    epoch: float
    validate_every: float = math.inf
    checkpoint_every: float = math.inf
    keep: int = 2
    keep_best: bool = False
    background: bool = False
    log_every: int = 10
    ema_decay: float | None = None
    max_bad_steps: int = 10
    seed: int = 0
    stop_grace: float = 10.0
    wall_time: float | None = None
    hung_after: float | None = None
    on_out_of_memory: Literal["stop", "split"] = "stop"
    resume: bool = True


@dataclass
class Position:
    """How far a run is.

    Attributes:
        step: windows trained on, skipped ones included.
        consumed: structures.
        bad_steps: skipped ones in a row, up to now.
        best: of the primary metric; None before the first validation.
        primary: the metric at this boundary; None if there was no validation here.
        loader: the loader's state at this boundary; None at the beginning.
        validation_due: whether a validation at this boundary is still to be made.
        ended: why the run is over before its length; empty while it is not.
    """

    step: int = 0
    consumed: int = 0
    bad_steps: int = 0
    best: float | None = None
    primary: float | None = None
    loader: dict[str, Any] | None = None
    validation_due: bool = False
    ended: str = ""
