"""Tables and pictures of runs: plain values in, files out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

#: Points drawn per panel at most; more only make the file large.
MAX_POINTS = 20_000


@dataclass(frozen=True)
class Parity:
    """Predictions of one label against its reference values.

    Attributes:
        title: what is shown, e.g. `slabs: energy`.
        unit: of both arrays.
        reference: values of the label, any shape, float64.
        predicted: the model's, same shape.
    """

    title: str
    unit: str
    reference: NDArray[np.float64]
    predicted: NDArray[np.float64]

    @property
    def mae(self) -> float:
        """Mean absolute error; NaN without points."""
        return float(np.abs(self.predicted - self.reference).mean()) if self.reference.size else math.nan


@dataclass(frozen=True)
class Curve:
    """One line of a picture: y over x."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Sample:
    """What several runs of one recipe came to.

    Attributes:
        name: of the recipe.
        metric, unit: what the numbers are.
        asked: how many runs there shall be.
        test, val: one number per finished run.
        published: by network, for comparison.
    """

    name: str
    metric: str
    unit: str
    asked: int
    test: Sequence[float]
    val: Sequence[float]
    published: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Of the test numbers; NaN without any."""
        return float(np.mean(self.test)) if self.test else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation of the test numbers (denominator n - 1); NaN for fewer than two."""
        return float(np.std(self.test, ddof=1)) if len(self.test) > 1 else math.nan


def comparison_table(samples: Sequence[Sample]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean ± deviation of every sample beside what was published."""
    networks = ["jmp-s", "jmp-l"]
    header = ["recipe", "metric", "unit", "runs", "validation", "test", *(f"published {n}" for n in networks)]
    rows = [
        [
            sample.name,
            sample.metric,
            sample.unit,
            f"{len(sample.test) or len(sample.val)} of {sample.asked}",
            cell_text(float(np.mean(sample.val))) if sample.val else "",
            plus_minus(sample.mean, sample.deviation),
            *(f"{sample.published[n]:.4g}" if n in sample.published else "" for n in networks),
        ]
        for sample in samples
    ]
    return header, rows


def plus_minus(mean: float, deviation: float) -> str:
    """`1.234 ± 0.056`; without a deviation the mean alone, without a mean nothing."""
    if math.isnan(mean):
        return ""
    return f"{mean:.4g}" if math.isnan(deviation) else f"{mean:.4g} ± {deviation:.2g}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that reads well as text, too; numbers are rounded to four digits."""
    cells = [[cell_text(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def cell_text(value: object) -> str:
    """A number with four digits, a dash for NaN, anything else as it is."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def plot_curves(path: Path, panels: Mapping[str, Sequence[Curve]], x_label: str, *, log_x: bool = False) -> None:
    """One panel per title, with a logarithmic y axis and, for power laws, x axis; panels without points are left out."""
    shown = {title: [c for c in curves if len(c.x)] for title, curves in panels.items()}
    shown = {title: curves for title, curves in shown.items() if curves}
    figure, axes = _grid(len(shown))
    for ax, (title, curves) in zip(axes, shown.items(), strict=True):
        for curve in curves:
            ax.plot(curve.x, curve.y, label=curve.label, linewidth=1.2, marker="." if len(curve.x) < 30 else None)
        if all(value > 0 for curve in curves for value in curve.y):
            ax.set_yscale("log")
        if log_x:
            ticks = sorted({x for curve in curves for x in curve.x})
            ax.set_xscale("log")
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
            ax.set_xticks([], minor=True)
        ax.set_title(title)
        ax.set_xlabel(x_label)
        if any(curve.label for curve in curves):
            ax.legend(fontsize=7)
    _save(figure, path)


def plot_parity(path: Path, panels: Sequence[Parity]) -> None:
    """Predicted against reference values, one panel each, with the mean absolute error in the title."""
    panels = [p for p in panels if p.reference.size]
    figure, axes = _grid(len(panels))
    for ax, panel in zip(axes, panels, strict=True):
        x, y = panel.reference.ravel(), panel.predicted.ravel()
        every = max(1, -(-len(x) // MAX_POINTS))
        ax.scatter(x[::every], y[::every], s=4, alpha=0.5, linewidths=0)
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
        ax.plot([low, high], [low, high], color="black", linewidth=0.8)
        ax.set_title(f"{panel.title}\nMAE {panel.mae:.4g} {panel.unit}")
        ax.set_xlabel(f"reference ({panel.unit})")
        ax.set_ylabel(f"predicted ({panel.unit})")
    _save(figure, path)


def plot_pairs(path: Path, names: Sequence[str], groups: Mapping[str, Sequence[float]], units: Sequence[str]) -> None:
    """Bars side by side for each name, e.g. pre-trained against scratch; one panel per name, because units differ."""
    figure, axes = _grid(len(names))
    for i, ax in enumerate(axes):
        heights = [values[i] for values in groups.values()]
        bars = ax.bar(list(groups), heights, color=[f"C{k}" for k in range(len(groups))])
        ax.bar_label(bars, fmt="%.4g")
        ax.margins(y=0.15)
        ax.set_title(names[i])
        ax.set_ylabel(f"test MAE ({units[i]})")
    _save(figure, path)


def plot_samples(path: Path, samples: Sequence[Sample]) -> None:
    """One panel per recipe: every run as a point, mean and deviation, published numbers as lines."""
    shown = [sample for sample in samples if sample.test]
    figure, axes = _grid(len(shown))
    for ax, sample in zip(axes, shown, strict=False):
        ax.plot([0.0] * len(sample.test), sample.test, ".", color="C0", alpha=0.6)
        error = 0.0 if math.isnan(sample.deviation) else sample.deviation
        ax.errorbar([0.2], [sample.mean], yerr=[error], fmt="o", capsize=4, color="C0")
        for number, (network, value) in enumerate(sample.published.items()):
            ax.axhline(value, color=f"C{number + 1}", linestyle="--", label=f"published {network}")
        if sample.published:
            ax.legend(fontsize=7)
        ax.set_xlim(-0.5, 0.7)
        ax.set_xticks([])
        ax.set_title(f"{sample.name} ({len(sample.test)} runs)")
        ax.set_ylabel(f"test {sample.metric}" + (f" ({sample.unit})" if sample.unit else ""))
    _save(figure, path)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, at most four in a row."""
    columns = min(max(count, 1), 4)
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
