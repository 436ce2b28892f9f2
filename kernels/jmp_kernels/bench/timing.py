"""Times, memory, and what the device can do at its best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Written between two runs on a GPU, so that no operand is still in its cache.
_CACHE_BYTES = 256 * 2**20
_LEAST, _MOST = 5, 100


@dataclass(frozen=True)
class Times:
    """Seconds of one pass: 20th, 50th and 80th percentile of so many runs."""

    p20: float
    p50: float
    p80: float
    runs: int


@dataclass(frozen=True)
class Roofline:
    """Bytes per second of a large copy (read and written), operations per second of a large matrix product."""

    bandwidth: float
    products: float

    def share(self, moved: int, flops: int, seconds: float) -> float:
        """The least time for so many bytes and operations, over the time it took."""
        return max(moved / self.bandwidth, flops / self.products) / seconds


Prepare = Callable[[], Tensor | None]
Work = Callable[[Tensor | None], object]


def time_work(prepare: Prepare, work: Work, device: torch.device, budget: float) -> Times:
    """Time a piece of work, what it needs made anew before every run.

    Args:
        prepare: not timed.
        work: timed; takes what `prepare` gave.
        device: where both run.
        budget: seconds to spend, roughly; at least five runs are made.
    """
    one = _on_gpu(device) if device.type == "cuda" else _on_cpu
    one(prepare, work)
    begin = time.perf_counter()
    one(prepare, work)
    whole = time.perf_counter() - begin
    runs = max(_LEAST, min(_MOST, int(budget / max(whole, 1e-6))))
    seconds = [one(prepare, work) for _ in range(runs)]
    p20, _, _, p80 = statistics.quantiles(seconds, n=5)
    return Times(p20, statistics.median(seconds), p80, runs)


def _on_cpu(prepare: Prepare, work: Work) -> float:
    ready = prepare()
    begin = time.perf_counter()
    work(ready)
    return time.perf_counter() - begin


def _on_gpu(device: torch.device) -> Callable[[Prepare, Work], float]:
    """Between two events; a long write before them fills the cache and lets the host run ahead of the device."""
    cache = torch.empty(_CACHE_BYTES, dtype=torch.int8, device=device)

    def one(prepare: Prepare, work: Work) -> float:
        ready = prepare()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        begin.record()
        work(ready)
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1e3

    return one


def peak_bytes(prepare: Prepare, work: Work, device: torch.device) -> int | None:
    """Bytes that the allocator held at most beyond what it held before; None on a CPU, where nobody counts."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work(prepare())
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def roofline(dtype: torch.dtype, device: torch.device, budget: float = 0.3) -> Roofline:
    """Measure both, in this process, with what else is set (TF32, threads)."""
    gpu = device.type == "cuda"
    source = torch.ones(2**30 if gpu else 2**27, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = time_work(lambda: None, lambda _: target.copy_(source), device, budget)
    size = 8192 if gpu else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = time_work(lambda: None, lambda _: torch.mm(a, b), device, budget)
    return Roofline(2 * source.numel() / copy.p20, 2 * size**3 / product.p20)
