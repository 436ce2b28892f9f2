"""Opening, private memory and time per batch of the way from a position to a micro-batch's structures, at any size.

`python -m jmp_ds.bench.positions FOLDER SIZES WORLD,...` measures in this process, which should be a fresh one, and prints
JSON; `jmp-ds bench loading` makes the stores, starts such processes and collects what they say.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jmp_ds.bench import synthetic
from jmp_ds.data.loading import Loading, TrainLoader
from jmp_ds.data.order import Order
from jmp_ds.data.packing import EdgeBudget

#: Sizes of the largest joint data set: slabs, oxides, molecules, reactions.
LARGE = (100_000_000, 8_000_000, 2_000_000, 10_000_000)
WORLDS = (1, 2, 8, 16, 32, 64, 128, 256, 512, 1024)
BUDGET = 20_000
EPOCH, PLACE = 2, 0.9
#: Batches per number of ranks: some that do not count, then those that do.
WARM, TIMED = 3, 40


@dataclass(frozen=True)
class Memory:
    """Bytes of a process, from /proc/self/smaps_rollup.

    Attributes:
        unshared: in this process alone: what would be free if it ended.
        dirty: that part of it which is not a copy of a file: heap, stacks, what was written.
    """

    unshared: int
    dirty: int


def memory_now() -> Memory:
    """Of this process (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
    dirty = 1024 * (kib["Private_Dirty"] + kib.get("Private_Hugetlb", 0))
    return Memory(dirty + 1024 * kib["Private_Clean"], dirty)


def here(folder: Path, sizes: Sequence[int], worlds: Sequence[int], order: Order) -> dict[str, Any]:
    """Measure in this process.

    Returns:
        Seconds until stores, counts and a loader in the middle of a run are open and the first step of a rank is planned;
        what that and the rest added to memory; by number of ranks, milliseconds per batch: median, mean, worst.
    """
    before = memory_now()
    begin = time.perf_counter()
    sources = synthetic.open_all(folder, sizes)
    loader = _loader(sources, worlds[-1], order)
    opened = time.perf_counter() - begin
    next(loader.orders())
    first = time.perf_counter() - begin
    after_opening = memory_now()
    batches = [_timed(sources, world, order) for world in worlds]
    after_all = memory_now()
    return {
        "open_s": opened,
        "first_batch_s": first,
        "positions_per_epoch": loader.epoch_length,
        "state": loader.state(),
        "opening_mb": _grown(before, after_opening),
        "running_mb": _grown(before, after_all),
        "batches": batches,
    }


def measure(
    folder: Path, sizes: Sequence[int], worlds: Sequence[int], order: Order, *, cold: bool = False, beside: bool = False
) -> dict[str, Any]:
    """The same in a process of its own.

    Args:
        folder: of `synthetic.make`.
        sizes: structures per set.
        worlds: numbers of ranks.
        order: of the epoch.
        cold: whether the system is asked to forget the files before.
        beside: whether another process, this one, has all tables mapped and read, as further ranks on a machine have.
    """
    if cold:
        synthetic.forget(synthetic.files(folder))
    tables = synthetic.touch(folder, sizes) if beside else []
    command = [sys.executable, "-m", __spec__.name, str(folder), _joined(sizes), _joined(worlds), order]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    del tables
    return {"cold": cold, "beside": beside, "order": order, **json.loads(done.stdout)}


def _loader(sources: Sequence[Any], world: int, order: Order) -> TrainLoader:
    """The loader of a rank in the middle of a run, late in an epoch."""

    def make(state: dict[str, Any] | None) -> TrainLoader:
        how = Loading(rank=world // 2, world=world)
        tasks = synthetic.graphs()[: len(sources)]
        return TrainLoader(
            sources, tasks, EdgeBudget(BUDGET), seed=1, epochs=9, temperature=2.0, order=order, loading=how, state=state
        )

    fresh = make(None)
    return make({**fresh.state(), "epoch": EPOCH, "position": int(PLACE * fresh.epoch_length), "step": 10**6})


def _timed(sources: Sequence[Any], world: int, order: Order) -> dict[str, float]:
    """Milliseconds per batch of one rank, and structures in a batch."""
    orders = _loader(sources, world, order).orders()
    for _ in islice(orders, WARM):
        pass
    times, structures = [], 0
    for _ in range(TIMED):
        begin = time.perf_counter()
        structures += len(next(orders).samples)
        times.append(1e3 * (time.perf_counter() - begin))
    mean = sum(times) / TIMED
    return {
        "ranks": world,
        "median_ms": sorted(times)[TIMED // 2],
        "mean_ms": mean,
        "worst_ms": max(times),
        "structures": structures / TIMED,
    }


def _grown(before: Memory, after: Memory) -> dict[str, float]:
    return {name: (getattr(after, name) - getattr(before, name)) / 1e6 for name in ("unshared", "dirty")}


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


if __name__ == "__main__":
    _, place, many, ranks, kind = sys.argv
    found = here(Path(place), _numbers(many), _numbers(ranks), "local" if kind == "local" else "random")
    sys.stdout.write(json.dumps(found))
