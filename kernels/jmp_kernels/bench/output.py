"""The report: one CSV, and a picture per batch, widths and dtype."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jmp_kernels.bench.forms import PASSES
from jmp_kernels.bench.measure import Row

TITLES = {"forward": "forward", "backward": "backward", "double": "recorded backward and its backward"}


class Table:
    """A CSV that grows row by row, so that what was measured is there even if a later measurement fails."""

    def __init__(self, path: Path) -> None:
        """Begin the file; its folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._columns = [field.name for field in fields(Row)]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(self._columns)

    def add(self, row: Row) -> None:
        """Append a row; numbers with four digits."""
        values = asdict(row)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(_text(values[name]) for name in self._columns)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a report."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plot(rows: Sequence[dict[str, str]], folder: Path) -> list[Path]:
    """A picture per batch, widths and dtype: median times of all operators and forms, pass by pass.

    Returns:
        The files; none where matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return []
    keys = dict.fromkeys((row["batch"], row["sizes"], row["dtype"]) for row in rows)
    return [_picture([r for r in rows if (r["batch"], r["sizes"], r["dtype"]) == key], key, folder) for key in keys]


def _picture(rows: list[dict[str, str]], key: tuple[str, ...], folder: Path) -> Path:
    from matplotlib.figure import Figure

    operators, forms = _names(rows, "operator"), _names(rows, "form")
    figure = Figure(figsize=(15, 1.5 + 0.18 * len(operators) * len(forms)), layout="constrained")
    panels: Any = figure.subplots(1, len(PASSES), sharey=True)
    for panel, which in zip(panels, PASSES, strict=True):
        chosen = [row for row in rows if row["which"] == which]
        for k, form in enumerate(forms):
            own = [row for row in chosen if row["form"] == form]
            places = [operators.index(row["operator"]) + 0.8 * ((k + 0.5) / len(forms) - 0.5) for row in own]
            panel.barh(places, [float(row["p50_ms"]) for row in own], 0.8 / len(forms), label=form, color=f"C{k}")
        panel.set(title=TITLES[which], xlabel="median (ms)")
        if chosen:
            panel.set_xscale("log")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(operators)), operators)
    panels[0].invert_yaxis()
    handles, labels = max((panel.get_legend_handles_labels() for panel in panels), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(forms))
    figure.suptitle(f"{', '.join(key)}; {rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['date']}")
    path = folder / f"kernels-{'-'.join(key)}.png"
    figure.savefig(path, dpi=100)
    return path


def _names(rows: Iterable[dict[str, str]], column: str) -> list[str]:
    """Distinct values in the order in which they come."""
    return list(dict.fromkeys(row[column] for row in rows))
