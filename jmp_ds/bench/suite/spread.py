"""Are backends and precisions closer to each other than seeds are? `python -m jmp_ds.bench.suite.spread OUTDIR`.

Reads all OUTDIR/curves-*.csv; writes OUTDIR/curves.json and, where matplotlib is installed, curves.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Steps that a point of a smoothed curve is the mean of, at most.
WINDOW = 20

Curves = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Spread:
    """Largest minus smallest of smoothed curves, as a mean over the second half of the steps.

    Attributes:
        seeds: among the seeds of one backend and precision; the mean over these.
        backends: among backends and precisions of one seed; the mean over seeds.
        runs: number of curves.
        closer: whether backends and precisions are closer than seeds.
    """

    seeds: float
    backends: float
    runs: int
    closer: bool


def smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the running mean over at most `WINDOW` steps, and a quarter of the run in a short one."""
    window = max(1, min(WINDOW, len(losses) // 4))
    return np.log(np.convolve(losses, np.ones(window) / window, "valid"))


def compare(curves: Curves) -> Spread:
    """Spreads of curves named BACKEND/PRECISION/SEED.

    Raises:
        ValueError: fewer than two seeds, fewer than two backends and precisions, or not every one with every seed.
    """
    smooth = {tuple(name.rsplit("/", 1)): smoothed(losses) for name, losses in curves.items()}
    forms, seeds = (sorted({key[k] for key in smooth}) for k in (0, 1))
    if len(forms) < 2 or len(seeds) < 2:
        raise ValueError(f"nothing to compare: {len(forms)} backends and precisions, {len(seeds)} seeds")
    missing = ["/".join(key) for key in product(forms, seeds) if key not in smooth]
    if missing:
        raise ValueError(f"no curve of {', '.join(missing)}")
    among_seeds = [_spread([smooth[form, seed] for seed in seeds]) for form in forms]
    among_forms = [_spread([smooth[form, seed] for form in forms]) for seed in seeds]
    found = float(np.mean(among_seeds)), float(np.mean(among_forms))
    return Spread(*found, runs=len(smooth), closer=found[1] < found[0])


def _spread(curves: Sequence[NDArray[np.float64]]) -> float:
    second_half = np.stack(curves)[:, len(curves[0]) // 2 :]
    return float(np.ptp(second_half, axis=0).mean())


def read_curves(folder: Path) -> dict[str, NDArray[np.float64]]:
    """All curves in a folder, by name."""
    curves: dict[str, NDArray[np.float64]] = {}
    for path in sorted(folder.glob("curves-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            names, *rows = csv.reader(file)
        values = np.array(rows, dtype=np.float64)
        curves |= {name: values[:, k] for k, name in enumerate(names) if k}
    return curves


def plot(curves: Curves, spread: Spread, path: Path) -> None:
    """All smoothed curves: a colour per backend and precision, a line style per seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    forms = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in curves))
    for name, losses in curves.items():
        form, seed = name.rsplit("/", 1)
        axes.plot(
            np.exp(smoothed(losses)), color=f"C{forms.index(form)}", ls=("-", "--", ":")[int(seed) % 3], label=name
        )
    axes.set(yscale="log", xlabel="step", ylabel="loss, running mean")
    axes.set_title(f"log spread among seeds {spread.seeds:.3g}, among backends and precisions {spread.backends:.3g}")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where backends and precisions differ by more than seeds do."""
    parser = argparse.ArgumentParser(prog="python -m jmp_ds.bench.suite.spread")
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    curves = read_curves(given.out)
    try:
        spread = compare(curves)
    except ValueError as problem:
        sys.stderr.write(f"curves cannot be compared: {problem}\n")
        return 1
    (given.out / "curves.json").write_text(json.dumps(asdict(spread), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{spread}\n")
    if find_spec("matplotlib") is None:
        sys.stdout.write("no plot: matplotlib is not installed\n")
    else:
        plot(curves, spread, given.out / "curves.png")
    return int(not spread.closer)


if __name__ == "__main__":
    sys.exit(main())
