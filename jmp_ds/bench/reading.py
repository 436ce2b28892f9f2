"""How random an order is, and how fast a store is read in it when nothing of it is in memory yet."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jmp_ds.bench.synthetic import files, forget
from jmp_ds.data.mixture import Mixture
from jmp_ds.data.order import RUN, Order
from jmp_ds.data.record import Record, make_record
from jmp_ds.data.store import Store
from jmp_ds.data.writer import StoreWriter

#: Structures per batch, whose neighbours are looked at; batches looked at.
BATCH, BATCHES = 12, 2000
#: Steps of so many structures, whose composition is looked at.
STEP, STEPS = 12_288, 50


def randomness(sizes: Sequence[int], temperature: float, order: Order, seed: int = 1) -> dict[str, float]:
    """Figures of an epoch's order, each with the value that a uniform random order would have.

    Returns:
        displacement: mean |place in the order - place in the sets| over the length; 1/3 if uniform.
        neighbours: correlation of the places of consecutive structures; 0 if uniform.
        same_run: share of pairs of one batch that lie within `RUN` places of each other; `same_run_uniform`.
        share_spread: spread (standard deviation) over steps of the largest set's share, over that of a uniform order.
    """
    mixture = Mixture(sizes, temperature, seed, order)
    n = len(mixture)
    rng = np.random.default_rng(0)
    places, moved, close = [], [], 0
    for start in rng.integers(0, n - BATCH, BATCHES).tolist():
        slots = mixture.slots(0, start, start + BATCH)
        places.append(slots)
        moved.append(np.abs(slots - np.arange(start, start + BATCH)))
        gaps = np.abs(slots[:, None] - slots[None, :])[np.triu_indices(BATCH, 1)]
        close += int((gaps < RUN).sum())
    before = np.concatenate([p[:-1] for p in places])
    after = np.concatenate([p[1:] for p in places])
    largest = int(np.argmax(mixture.expanded))
    starts = rng.integers(0, n - STEP, STEPS).tolist()
    shares = [float((mixture.items(0, start, start + STEP).dataset == largest).mean()) for start in starts]
    share = mixture.expanded[largest] / n
    uniform = np.sqrt(share * (1.0 - share) / STEP) if len(sizes) > 1 else float("nan")
    return {
        "displacement": float(np.mean(moved)) / n,
        "neighbours": float(np.corrcoef(before, after)[0, 1]),
        "same_run": close / (BATCHES * BATCH * (BATCH - 1) / 2),
        "same_run_uniform": (2 * RUN - 1) / n,
        "share_spread": float(np.std(shares) / uniform),
    }


def write_store(path: Path, structures: int, atoms: int) -> Store:
    """A real store of made-up periodic structures with energies and forces; about 50 bytes per atom each."""
    rng = np.random.default_rng(0)
    template = rng.normal(size=(atoms, 3)) * 5.0
    numbers = rng.integers(1, 80, atoms)

    def made(i: int) -> Record:
        labels: dict[str, Any] = {"energy": float(i), "forces": rng.normal(size=(atoms, 3))}
        pos = template + 0.1 * rng.normal(size=(atoms, 3))
        return make_record(
            pos=pos, atomic_numbers=numbers, cell=np.eye(3) * 30.0, pbc=[True] * 3, id=str(i), labels=labels
        )

    with StoreWriter(path, {"origin": "made up for measurements"}, shard_size=25_000) as writer:
        for start in range(0, structures, 1000):
            writer.append(made(i) for i in range(start, min(start + 1000, structures)))
    return Store(path)


def read(path: Path, order: Order | Literal["as stored"], count: int, *, cold: bool = True) -> dict[str, float]:
    """Read the first structures of an epoch one by one, as a worker does.

    Args:
        path: of a store of one set.
        order: of the epoch.
        count: how many.
        cold: whether the system is asked to forget the store before; files that are mapped by nobody are forgotten.

    Returns:
        seconds, structures per second, bytes read from disk (as Linux counts them for this process) and used, faults
        that waited for the disk.
    """
    store = Store(path)
    if order == "as stored":
        indices = np.arange(count)
    else:
        indices = Mixture([len(store)], 1.0, 1, order).items(0, 0, count).index
    if order != "random":
        store = store.with_readahead()
    if cold:
        forget(files(path))
    from_disk, faults, begin = _read_bytes(), _faults(), time.perf_counter()
    used = sum(record.pos.nbytes for record in map(store.__getitem__, indices.tolist()))
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "structures_per_s": count / seconds,
        "read_mb": (_read_bytes() - from_disk) / 1e6,
        "positions_mb": used / 1e6,
        "waits": float(_faults() - faults),
    }


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
