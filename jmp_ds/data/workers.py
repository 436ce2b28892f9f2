"""Worker processes that make whole batches, in the order asked for; with their graphs, or for the device to build them."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from jmp_ds.data.layout import check_size
from jmp_ds.data.sources import Source, sample_id
from jmp_ds.data.transport import Parcel, pack, unpack
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import gather
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.graphs.unbuilt import BatchDropout, BuiltOn, Unbuilt

StartMethod = Literal["fork", "spawn", "forkserver"]


class WorkerDied(RuntimeError):
    """A worker process ended while batches were expected from it."""


@dataclass(frozen=True)
class Work:
    """One micro-batch to build.

    Attributes:
        epoch: for the bits of edge dropout.
        samples: (number of the source, index in its store, repetition) of each structure.
    """

    epoch: int
    samples: tuple[tuple[int, int, int], ...]


class BatchBuilder:
    """Makes batches from work orders; a value that travels to worker processes."""

    def __init__(
        self,
        sources: Iterable[Source],
        tasks: Iterable[tuple[str, GraphSettings]],
        *,
        edge_dropout: float = 0.0,
        seed: int = 0,
        graphs: BuiltOn = "host",
        readahead: bool = False,
    ) -> None:
        """Args: where structures come from, all tasks of the model in its order, share of edges to drop, its seed;
        where graphs are built; whether what comes next often lies beside what came before.
        """
        self._tasks = tuple(tasks)
        numbers = {name: i for i, (name, _) in enumerate(self._tasks)}
        # Index arrays stay behind: workers are given indices in the store.
        self._origins = tuple(
            (numbers[s.task], s.task, s.store.with_readahead() if readahead else s.store, frozenset(s.labels))
            for s in sources
        )
        self._edge_dropout = edge_dropout
        self._seed = seed
        self._graphs = graphs

    def check_files(self) -> None:
        """Whether all shards are as long as they should be.

        Raises:
            StoreIncomplete: one is not.
        """
        for _, _, store, _ in self._origins:
            for shard in store.summary.shards:
                check_size(store.path, shard)

    def __call__(self, work: Work) -> Batch | Unbuilt:
        """The batch of one work order; the same wherever and whenever it is made."""
        structures, task_of, drawn = [], [], []
        labels: list[Mapping[str, np.ndarray]] = []
        for origin, (_, _, store, _) in enumerate(self._origins):
            store.check_sizes(index for number, index, _ in work.samples if number == origin)
        for number, index, repetition in work.samples:
            task, name, store, wanted = self._origins[number]
            record = store[index]
            structures.append(record.structure())
            task_of.append(task)
            labels.append({k: v for k, v in record.labels.items() if k in wanted})
            drawn.append(sample_id(name, store.summary.fingerprint, index, repetition))
        dropout = None
        if self._edge_dropout:
            samples = torch.tensor(drawn, dtype=torch.int64)
            dropout = BatchDropout(self._edge_dropout, seed=self._seed, epoch=work.epoch, samples=samples)
        batch = gather(structures, task_of, self._tasks, labels, dropout)
        return batch.on_host() if self._graphs == "host" else batch.prepared()


def built(
    builder: BatchBuilder, orders: Iterable[Work], *, workers: int, prefetch: int, start_method: StartMethod
) -> Iterator[Batch | Unbuilt]:
    """Batches of the orders, in order, made here (0 workers) or by worker processes.

    Workers live as long as the iterator; each is at most `prefetch` orders ahead. `orders` is read ahead by
    workers · prefetch. The number of workers changes nothing but the speed.

    Raises:
        WorkerDied: a worker was killed.
        UserError: what a worker met, such as a damaged record.
    """
    if workers == 0:
        yield from map(builder, orders)
        return
    loader: DataLoader[Any] = DataLoader(
        _Orders(builder),
        sampler=orders,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_as_it_is,
        worker_init_fn=_become_worker,
        multiprocessing_context=start_method,
        # Its own random state: otherwise it would take numbers from the program's, and a resumed run would differ.
        generator=torch.Generator(),
    )
    parcels: Any = iter(loader)
    # Left to the garbage collector, workers would live on as long as the traceback of some error refers to them.
    end_workers = parcels._shutdown_workers
    atexit.register(end_workers)
    try:
        while (parcel := _next(parcels)) is not None:
            if isinstance(parcel, UserError):
                raise parcel
            yield unpack(parcel)
    except WorkerDied:
        builder.check_files()  # a worker that reads from a file while it is cut short is killed for it
        raise
    finally:
        end_workers()
        atexit.unregister(end_workers)


def _next(parcels: Iterator[Parcel | UserError]) -> Parcel | UserError | None:
    """The next parcel, None at the end; the death of a worker is told in words of this program."""
    try:
        return next(parcels, None)
    except (RuntimeError, ConnectionError, EOFError) as error:
        # a worker that is killed while it hands something over shows as a broken connection
        broken = isinstance(error, ConnectionError | EOFError)
        if broken or ("DataLoader worker" in str(error) and ("exited" in str(error) or "killed" in str(error))):
            raise WorkerDied(
                f"a data worker process died ({error}); often memory ran out: use fewer workers, smaller batches, "
                "or more shared memory (/dev/shm)"
            ) from error
        raise


class _Orders(Dataset[Parcel | UserError]):
    """What a worker does with an order; a mistake is handed over as it is, since raised it would come with a traceback."""

    def __init__(self, builder: BatchBuilder) -> None:
        self._builder = builder

    def __getitem__(self, work: Work) -> Parcel | UserError:
        try:
            return pack(self._builder(work))
        except UserError as error:
            return error


def _as_it_is(parcel: Any) -> Any:
    return parcel


def _become_worker(number: int) -> None:
    """One thread, and steady under signals sent to the whole group of processes: the trainer decides when to stop, and
    tells its workers. A worker that is not told for a minute after such a signal ends by itself.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_in_a_minute)


def _end_in_a_minute(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
