"""The whole matrix by one command: every way to train against one process without DeepSpeed.

    python tests/training/matrix.py --out docs

writes docs/scale/matrix.csv, a line per cell, and the section "The matrix" of docs/scale.md. One start of processes per
world size walks all its cells. `--continue` keeps the lines that are there, but for failed ones. Set
OMP_NUM_THREADS=1 where cores are few.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, astuple
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from matrix_cells import STEPS, Cell, Verdict, all_cells, refusal, with_bad_step  # noqa: E402
from training_spawn import finish, launch  # noqa: E402

#: What may be refused, by what the reason must say.
ALLOWED = {
    "gradient forces at stage 3": "stage 3 cannot train forces that are gradients",
    "fp16 on a CPU": "fp16 needs a GPU",
}
BEGIN, END = "<!-- the matrix: written by tests/training/matrix.py -->", "<!-- end of the matrix -->"


def run(cells: list[Cell], timeout: float = 3600.0) -> list[tuple[Cell, Verdict]]:
    """Every cell's verdict, in the given order."""
    verdicts: dict[Cell, Verdict] = {}
    for cell in cells:
        reason = refusal(cell)
        if reason is not None:
            expected = any(text in reason for text in ALLOWED.values())
            verdicts[cell] = Verdict("refused" if expected else "failed", reason)
    for world in sorted({cell.world for cell in cells}):
        left = [cell for cell in cells if cell.world == world and cell not in verdicts]
        while left:
            verdicts |= _world(world, left, timeout)
            left = [cell for cell in left if cell not in verdicts]
    return [(cell, verdicts[cell]) for cell in cells]


def _world(world: int, cells: list[Cell], timeout: float) -> dict[Cell, Verdict]:
    """One start of processes; where it breaks, the cell at which it did so has failed."""
    with tempfile.TemporaryDirectory() as out:
        arguments = {"out": out, "cells": [list(astuple(cell)) for cell in cells]}
        ends = finish(launch(world, "matrix_cells:walk", arguments), timeout)
        path = Path(out) / f"results_{world}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    fields = list(asdict(cells[0]))
    found = {
        Cell(**{f: line[f] for f in fields}): Verdict(**{k: v for k, v in line.items() if k not in fields})
        for line in lines
    }
    broken = [f"process {rank} ended with {code}: {output[-1500:]}" for rank, (code, output) in enumerate(ends) if code]
    if broken:
        at = next(cell for cell in cells if cell not in found)
        found[at] = Verdict("failed", " | ".join(broken).replace("\n", " ")[-3000:])
    return found


def table(results: list[tuple[Cell, Verdict]]) -> list[str]:
    """Markdown: a row per stage, forces and precision; all else together."""
    rows: dict[tuple[Any, ...], list[tuple[Cell, Verdict]]] = {}
    for cell, verdict in results:
        rows.setdefault((cell.stage, cell.forces, cell.precision), []).append((cell, verdict))
    lines = [
        "| ZeRO | forces | precision | passed | refused | failed | gradients: worst tensor | median | after the steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (stage, forces, precision), own in rows.items():
        count = Counter(v.outcome for _, v in own)
        ran = [v for _, v in own if v.outcome == "passed"]
        figures = [max((getattr(v, name) for v in ran), default=None) for name in ("worst", "median", "steps")]
        shown = " | ".join("–" if x is None else f"{x:.1e}" for x in figures)
        outcomes = " | ".join(str(count[name]) for name in ("passed", "refused", "failed"))
        lines.append(f"| {stage} | {forces} | {precision} | {outcomes} | {shown} |")
    return lines


def section(results: list[tuple[Cell, Verdict]], minutes: float, command: str) -> str:
    """The section of docs/scale.md."""
    count = Counter(v.outcome for _, v in results)
    reasons = Counter(
        name for _, v in results if v.outcome == "refused" for name, text in ALLOWED.items() if text in v.reason
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("deepspeed", "torch"))
    outcomes = f"{count['passed']} passed, {count['refused']} were refused before the run, {count['failed']} failed"
    lines = "\n".join(table(results))
    bad = [(c.recompute, v.outcome) for c, v in results if with_bad_step(c) and v.outcome != "refused"]
    with_loss, failed = sum(not recompute for recompute, _ in bad), sum(outcome == "failed" for _, outcome in bad)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    refused = ", ".join(f"{n} for {name}" for name, n in reasons.items())
    return f"""{BEGIN}
## The matrix

**{outcomes}**, of {len(results)} cells. Refused: {refused} (what is both counts as gradient forces).

{today}; {versions}, Python {platform.python_version()}, {os.cpu_count()} cores; {minutes:.1f} minutes: `{command}`.

{lines}

Every row: 1, 2 and 3 processes × accumulation 1 and 2 × recomputation on and off × all tasks everywhere, a task missing on
the last process, the last process without structures. A cell makes {STEPS} steps of a small network of the published
architecture with clipping by norm, learning rates by depth, weight decay on some groups, and averaged weights. The figures
are relative L2 distances from one process without DeepSpeed in float64, the largest among the row's cells; the last column
is that of weights and averages (in reduced precision the median of their change). In float32 every tensor must be within
3 times the error of one process in float32 (the larger one of two orders of the structures, at least two
roundings, 2⁻²³) and within 1e-5; in reduced precision the median within 2e-2. Each cell is a
line of [scale/matrix.csv](scale/matrix.csv).

Steps that are not finite: {with_loss} cells (those with a missing task, without recomputation) begin with one where the
loss of the last micro-batch of the last process is NaN, {len(bad) - with_loss} (with recomputation) with one where only its
gradient is. Every process must skip it, with weights, moments and averages unchanged to the bit, and the steps that follow
must be as above: {failed} failed.
{END}"""


def write(results: list[tuple[Cell, Verdict]], out: Path, text: str) -> None:
    """The CSV, and the section in its place."""
    (out / "scale").mkdir(parents=True, exist_ok=True)
    with (out / "scale" / "matrix.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*asdict(results[0][0]), *asdict(results[0][1])])
        for cell, verdict in results:
            figures = [f"{x:.3g}" if isinstance(x, float) else x for x in astuple(verdict)]
            writer.writerow([*astuple(cell), *figures])
    page = out / "scale.md"
    old = page.read_text() if page.exists() else "# Scale\n\n"
    if BEGIN in old:
        before, rest = old.split(BEGIN)
        page.write_text(before + text + rest.split(END)[1])
    else:
        page.write_text(f"{old.rstrip()}\n\n{text}\n")


def earlier(out: Path) -> tuple[dict[Cell, Verdict], float]:
    """What an earlier run found, but for failed cells, and how many minutes it took."""
    result = {}
    kinds: dict[str, Any] = {"int": int, "str": str, "bool": lambda text: text == "True", "float": float}
    with (out / "scale" / "matrix.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            made = [
                kind(**{f.name: kinds[str(f.type)](row[f.name]) for f in dataclasses.fields(kind)})
                for kind in (Cell, Verdict)
            ]
            if made[1].outcome != "failed":
                result[made[0]] = made[1]
    found = re.search(r"([\d.]+) minutes: `", (out / "scale.md").read_text())
    return result, float(found.group(1)) if found else 0.0


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of scale.md")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="keep what has passed or was refused")
    parser.add_argument("--world", type=int, action="append", help="only these numbers of processes")
    parser.add_argument("--every", type=int, default=1, help="only every n-th cell, for a trial")
    arguments = parser.parse_args()
    begun = time.monotonic()
    cells = [cell for cell in all_cells() if not arguments.world or cell.world in arguments.world][:: arguments.every]
    known, spent = earlier(arguments.out) if arguments.go_on else ({}, 0.0)
    known |= dict(run([cell for cell in cells if cell not in known]))
    results = [(cell, known[cell]) for cell in cells]
    minutes = spent + (time.monotonic() - begun) / 60
    write(results, arguments.out, section(results, minutes, "python tests/training/matrix.py --out docs"))
    failed = [(cell, verdict) for cell, verdict in results if verdict.outcome == "failed"]
    told = [f"{cell} {verdict.reason}\n" for cell, verdict in failed]
    sys.stdout.write("".join(told) + f"{len(results)} cells, {len(failed)} failed, {minutes:.1f} minutes\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
