"""Measured steps beside what planning predicts for them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jmp_ds.bench.tables import Table
from jmp_ds.planning.batches import head_rows
from jmp_ds.planning.devices import GIB
from jmp_ds.planning.measured import MeasuredStep, fitted_device, read_step
from jmp_ds.planning.memory import step_memory
from jmp_ds.planning.states import PRECISIONS


@dataclass(frozen=True)
class Compared:
    """One measured step; ratios are predicted over measured, None where there was nothing measured.

    Attributes:
        name: of the file.
        fitted: whether its time was among those that the device was fitted to.
        saved: kept activations.
        peak: memory above the level before, of forward and backward.
        time: forward and backward.
    """

    name: str
    fitted: bool
    saved: float | None
    peak: float | None
    time: float | None


def compare(files: Sequence[Path], fit: Sequence[Path]) -> list[Compared]:
    """Predict what was measured.

    Args:
        files: of `jmp-ds bench step --json`.
        fit: those that the device's rates are fitted to; steps in other precisions have no prediction of their time.

    Raises:
        UserError: a file that is none of these, or of several devices.
    """
    base = [read_step(path) for path in fit]
    fitted = {path.resolve() for path in fit}
    return [_compared(read_step(path), base, path.resolve() in fitted) for path in files]


def prediction_table(found: Sequence[Compared]) -> Table:
    """Errors in per cent."""
    rows: list[tuple[str, ...]] = [
        (c.name, _percent(c.saved), _percent(c.peak), _percent(c.time), "yes" if c.fitted else "no") for c in found
    ]
    columns = ("step", "kept activations", "peak", "forward and backward", "fitted to")
    return Table("predicted against measured, deviation in %", columns, rows)


def summary(found: Sequence[Compared]) -> list[str]:
    """Median and largest deviation of every quantity; of times apart for steps fitted to and others."""
    times = {"time, fitted to": True, "time, others": False}
    groups = {
        "kept activations": [c.saved for c in found],
        "peak": [c.peak for c in found],
        **{name: [c.time for c in found if c.fitted is fitted] for name, fitted in times.items()},
    }
    lines = []
    for name, ratios in groups.items():
        off = [abs(ratio - 1) for ratio in ratios if ratio is not None]
        if off:
            lines.append(f"{name}: median {100 * statistics.median(off):.0f} %, largest {100 * max(off):.0f} %")
    return lines


def _compared(step: MeasuredStep, base: Sequence[MeasuredStep], fitted: bool) -> Compared:
    how = PRECISIONS[step.precision]
    heads = head_rows(step.counts, 1, step.forces)
    memory = step_memory(step.config, step.counts, heads, step.forces, itemsize=how.feature, padded=not step.on_gpu)
    peak = memory.kept + memory.passing
    return Compared(
        name=step.path.stem,
        fitted=fitted,
        saved=memory.kept / step.saved if step.saved else None,
        peak=peak / step.peak if step.peak else None,
        time=_seconds(step, base) / step.network if _same_precision(step, base) else None,
    )


def _same_precision(step: MeasuredStep, base: Sequence[MeasuredStep]) -> bool:
    products = PRECISIONS[step.precision].products
    return any(PRECISIONS[other.precision].products == products for other in base)


def _seconds(step: MeasuredStep, base: Sequence[MeasuredStep]) -> float:
    """Predicted forward and backward."""
    device = fitted_device(base, step.precision, GIB)
    work, rate = step.work, device.flops[PRECISIONS[step.precision].products]
    return work.flops / rate + device.passes * work.kept / device.bandwidth + work.operations * device.per_operation


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * (ratio - 1):+.0f}"
