"""Steps of training, and batches of validation, for one rank of many.

The order is a pure function of a position (mixture.py), and so is what goes into a step (packing.py): every rank finds
out by itself which part is its own, and to resume is to start from a position. Units: eV, Å.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.lookahead import LookAhead
from jmp_ds.data.mixture import Mixture
from jmp_ds.data.order import RULES_VERSION, Order
from jmp_ds.data.packing import BatchRule, StepPlan, plan_step
from jmp_ds.data.sources import Source, check_sources
from jmp_ds.data.workers import BatchBuilder, StartMethod, Work, built
from jmp_ds.errors import UserError
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.graphs.unbuilt import BuiltOn, Unbuilt


@dataclass(frozen=True)
class Loading:
    """How batches are made, apart from what is in them.

    Attributes:
        rank, world: this process and how many there are.
        accumulation: micro-batches per rank and optimizer step.
        workers: processes that make batches; 0 makes them in the trainer.
        prefetch: batches that each worker prepares ahead.
        start_method: how workers are started; `fork` is quick and shares memory, `spawn` needs a script whose main part
            is guarded.
        graphs: `host`: batches come with their graphs; `device`: without, and `batch.to(device)` builds them there.
    """

    rank: int = 0
    world: int = 1
    accumulation: int = 1
    workers: int = 0
    prefetch: int = 2
    start_method: StartMethod = "fork"
    graphs: BuiltOn = "host"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world}")
        for name, least in (("accumulation", 1), ("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"loading: {name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Step:
    """One optimizer step's work for one rank.

    Attributes:
        batches: `accumulation` micro-batches; at the end of an epoch some may hold no structure. Ready for the model after
            `to(device)`.
        epoch: counted from 0.
        plan: what all ranks do in this step.
        consumed: structures drawn over all ranks since the run began, this step included.
        last_of_epoch: whether the epoch ends with it.
        divided: (number of the micro-batch, parts) → the same structures again, in at most so many batches.
    """

    batches: list[Batch | Unbuilt]
    epoch: int
    plan: StepPlan
    consumed: int
    last_of_epoch: bool
    divided: Callable[[int, int], Sequence[Batch | Unbuilt]]

    @property
    def structures(self) -> int:
        """Structures in this step over all ranks."""
        return self.plan.stop - self.plan.start


class TrainLoader:
    """Steps of the whole run, epoch after epoch, from any position on.

    Iterating goes on where the loader's state stands; `state()` says where the step after the one last given out begins,
    whatever workers have prepared beyond it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tasks: Sequence[tuple[str, GraphSettings]],
        rule: BatchRule,
        *,
        seed: int,
        epochs: int,
        temperature: float = 1.0,
        order: Order = "random",
        edge_dropout: float = 0.0,
        loading: Loading | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Args: sources; name and graph of all tasks in the model's order; how steps are cut; seed of order and dropout;
        how many epochs; sampling temperature; kind of order; share of edges dropped; ranks and workers; where to go on.

        Raises:
            UserError: sources and tasks do not fit, or the state belongs to other data, sampling or seed.
        """
        check_sources(sources, tasks)
        self.sources = tuple(sources)
        self.loading = loading or Loading()
        self.mixture = Mixture([len(s) for s in sources], temperature, seed, order)
        self.rule = rule
        self.epochs = epochs
        self._builder = BatchBuilder(
            sources,
            tasks,
            edge_dropout=edge_dropout,
            seed=seed,
            graphs=self.loading.graphs,
            readahead=order == "local",
        )
        self._order = _order_digest(self.sources, self.mixture)
        self._epoch, self._position, self._step = 0, 0, 0
        if state is not None:
            self._go_on(state)

    @property
    def epoch_length(self) -> int:
        """Structures drawn per epoch, over all ranks."""
        return len(self.mixture)

    @property
    def total(self) -> int:
        """Structures drawn in the whole run, over all ranks."""
        return self.epochs * len(self.mixture)

    @property
    def consumed(self) -> int:
        """Structures drawn so far, over all ranks."""
        return self._epoch * len(self.mixture) + self._position

    def state(self) -> dict[str, Any]:
        """Where the next step begins, as plain values: epoch, position in it, steps done, and a digest of the order.

        It does not depend on ranks, accumulation or workers: these may be others afterwards.
        """
        return {"epoch": self._epoch, "position": self._position, "step": self._step, "order": self._order}

    def __iter__(self) -> Iterator[Step]:
        """The steps from the present state to the end of the run."""
        planned: deque[tuple[int, StepPlan]] = deque()
        how = self.loading
        orders = self._orders(planned)
        batches = built(
            self._builder, orders, workers=how.workers, prefetch=how.prefetch, start_method=how.start_method
        )
        while True:
            parts = [batch for _, batch in zip(range(how.accumulation), batches, strict=False)]
            if not parts:
                return
            epoch, plan = planned.popleft()
            last = plan.stop == len(self.mixture)
            self._epoch, self._position = (epoch + 1, 0) if last else (epoch, plan.stop)
            self._step += 1
            yield Step(
                batches=parts,
                epoch=epoch,
                plan=plan,
                consumed=self.consumed,
                last_of_epoch=last,
                divided=partial(self._divided, epoch, plan),
            )

    def plans(self) -> Iterator[tuple[int, StepPlan]]:
        """(epoch, plan) of every step from the present state on, without reading any structure."""
        return ((ahead.epoch, plan) for ahead, plan in self._plans())

    def orders(self) -> Iterator[Work]:
        """This rank's micro-batches from the present state on, as they are told to workers; no structure is read."""
        return self._orders(deque(maxlen=1))

    def _plans(self) -> Iterator[tuple[LookAhead, StepPlan]]:
        """What is drawn, and how it is shared out, step by step."""
        position, length = self._position, len(self.mixture)
        how = self.loading
        for epoch in range(self._epoch, self.epochs):
            ahead = LookAhead(self.mixture, self.sources, epoch)
            while position < length:
                ahead.move_to(position)
                plan = plan_step(ahead.costs, length, position, self.rule, how.world, how.accumulation)
                yield ahead, plan
                position = plan.stop
            position = 0

    def _orders(self, planned: deque[tuple[int, StepPlan]]) -> Iterator[Work]:
        """This rank's micro-batches; each step's plan is noted before its first one."""
        for ahead, plan in self._plans():
            planned.append((ahead.epoch, plan))
            for micro in range(plan.accumulation):
                yield Work(ahead.epoch, ahead.samples(plan.start + plan.part(micro, self.loading.rank)))

    def _divided(self, epoch: int, plan: StepPlan, number: int, parts: int) -> list[Batch | Unbuilt]:
        """A micro-batch of this rank made again, in parts of about equally many structures."""
        positions = plan.start + plan.part(number, self.loading.rank)
        samples = LookAhead(self.mixture, self.sources, epoch).samples(positions)
        chunks = np.array_split(np.arange(len(samples)), max(1, min(parts, len(samples))))
        return [self._builder(Work(epoch, tuple(samples[i] for i in chunk))) for chunk in chunks]

    def _go_on(self, state: Mapping[str, Any]) -> None:
        """Take over a state after checking that it means the same order."""
        if state["order"] != self._order:
            raise UserError(
                "resume: the structures, their selection, the sampling temperature or the seed differ from those of the "
                "run to go on with; restore them, or start a new run"
            )
        self._epoch, self._position, self._step = int(state["epoch"]), int(state["position"]), int(state["step"])


class EvalLoader:
    """Batches that show every structure of the sources exactly once over all ranks, the same number on each rank.

    `len` is the number of batches; where structures run out, a rank's last batch may be empty.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tasks: Sequence[tuple[str, GraphSettings]],
        rule: BatchRule,
        loading: Loading | None = None,
    ) -> None:
        """Args: sources; name and graph of all tasks in the model's order; how batches are cut; ranks and workers.

        Raises:
            UserError: sources and tasks do not fit.
        """
        check_sources(sources, tasks)
        self.loading = loading or Loading()
        self._builder = BatchBuilder(sources, tasks, graphs=self.loading.graphs)
        self._numbers = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
        self._indices = np.concatenate([source.indices[:] for source in sources])
        costs = np.concatenate([source.costs(np.arange(len(source))) for source in sources])
        self._plans: list[StepPlan] = []
        position = 0
        while position < len(costs):
            world = self.loading.world
            self._plans.append(plan_step(lambda a, b: costs[a:b], len(costs), position, rule, world, 1))
            position = self._plans[-1].stop

    def __len__(self) -> int:
        return len(self._plans)

    @property
    def structures(self) -> int:
        """Structures over all ranks."""
        return len(self._indices)

    def __iter__(self) -> Iterator[Batch | Unbuilt]:
        """This rank's batches, ready for the model after `to(device)`."""
        how = self.loading
        orders = (Work(0, self._samples(plan.start + plan.part(0, how.rank))) for plan in self._plans)
        return built(self._builder, orders, workers=how.workers, prefetch=how.prefetch, start_method=how.start_method)

    def _samples(self, positions: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
        """(source, index in its store, repetition 0) of each position."""
        numbers, indices = self._numbers[positions].tolist(), self._indices[positions].tolist()
        return tuple((number, index, 0) for number, index in zip(numbers, indices, strict=True))


def _order_digest(sources: Sequence[Source], mixture: Mixture) -> str:
    """Hash of all that the meaning of a position depends on."""
    parts = [f"{RULES_VERSION}/{mixture.order}/{mixture.seed}/{mixture.temperature}"]
    parts += [f"{s.task}/{s.store.summary.fingerprint}/{len(s)}/{s.indices.digest}" for s in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
