"""What fine-tuning gained and forgot: told at step 0, and at the end as one HTML page and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from rich.console import Console
from rich.table import Table as Printed

from jmp_ds.bundle import load_bundle
from jmp_ds.config.checks import Checked
from jmp_ds.config.finetune import FinetuneConfig
from jmp_ds.experiment.forgetting import forgotten
from jmp_ds.experiment.reporting import judged_bundle
from jmp_ds.experiment.session import Material
from jmp_ds.experiment.starting import CONSTANT, THIS_RUN, Start
from jmp_ds.experiment.transfer import Transfer
from jmp_ds.files import write_json, write_text
from jmp_ds.page import Section, Table, html_page
from jmp_ds.report import cell_text
from jmp_ds.tasks.metrics import larger_is_better, metric_units, note_on_direction
from jmp_ds.training.processes import Processes

#: In the run folder: what was known before the first step.
START = "start.json"


def report_tuning(config: FinetuneConfig, material: Material, checked: Checked, processes: Processes) -> None:
    """Write `report/report.html` and `report/tuning.json`, after `report_run`; collective.

    Args:
        config: of the run.
        material: tasks and structures.
        checked: holds the bundle that the run started from.
        processes: share the evaluation of remembered tasks; the first writes.
    """
    run_dir = Path(config.run.dir)
    lost: dict[str, tuple[float, float]] = {}
    if checked.bundle is not None and config.remember:
        after = load_bundle(run_dir / judged_bundle(run_dir, prefer_best=True))
        lost = forgotten(config, checked.bundle, after, processes, kernels=checked.kernels)
    if not processes.first:
        return
    units = metric_units([*material.tasks, *(checked.bundle.tasks if checked.bundle is not None else ())])
    start = json.loads((run_dir / START).read_text(encoding="utf-8")) if (run_dir / START).is_file() else {}
    told = json.loads((run_dir / "report" / "metrics.json").read_text(encoding="utf-8"))
    gained = _gained(start.get("errors", {}), told["metrics"].get("val", {}))
    write_json(
        run_dir / "report" / "tuning.json",
        {"gained": gained, "forgotten": lost, "references": start.get("references", {})},
        finite=False,
    )
    sections = _sections(run_dir / "report", told, gained, lost, start.get("references", {}), units)
    write_text(run_dir / "report" / "report.html", html_page(f"Fine-tuning: {run_dir.name}", sections))
    for name, (before, after_) in lost.items():
        line = f"remembered {name}: {cell_text(before)} -> {cell_text(after_)} {units.get(name, '')}"
        Console(stderr=True).print(line, markup=False, highlight=False)


def _gained(start: Mapping[str, Mapping[str, float]], end: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By metric: validation error of every predictor before the first step, and of the tuned model."""
    names = [name for name in end if all(name in errors for errors in start.values())]
    order = [who for who in (CONSTANT, THIS_RUN) if who in start]
    order += [who for who in start if who not in order]
    return {name: {**{who: start[who][name] for who in order}, "tuned": end[name]} for name in names}


def _sections(
    folder: Path,
    told: Mapping[str, Any],
    gained: Mapping[str, Mapping[str, float]],
    lost: Mapping[str, tuple[float, float]],
    references: Mapping[str, Mapping[str, Sequence[float]]],
    units: Mapping[str, str],
) -> list[Section]:
    metrics: dict[str, dict[str, float]] = told["metrics"]
    shown = "test" if "test" in metrics else "val"
    errors = [[name, unit, *(m.get(name, float("nan")) for m in metrics.values())] for name, unit in units.items()]
    errors = [row for row in errors if any(value == value for value in row[2:])]
    who = list(next(iter(gained.values()), {}))
    rows = [[name, units.get(name, ""), *values.values()] for name, values in gained.items()]
    changes = [[n, units.get(n, ""), b, a, _ratio(n, b, a)] for n, (b, a) in lost.items()]
    direction = note_on_direction([*metrics.get(shown, {}), *gained, *lost])
    return [
        Section("Errors", f"Of the exported model. {direction}".strip(), [Table(["metric", "unit", *metrics], errors)]),
        Section(
            "Gained",
            "On validation structures: a constant (mean and element references, no forces), the network before its "
            "first step, heads of the bundle that were not taken, and the tuned network. Before the first step at most "
            "1,000 structures per task were looked at.",
            [Table(["metric", "unit", *who], rows)] if rows else [],
        ),
        Section(
            "Forgotten",
            "Pre-training tasks with their old heads on the network before and after; ratios are of errors.",
            [Table(["metric", "unit", "before", "after", "ratio"], changes)] if changes else [],
        ),
        Section(
            "Element references",
            "Where heads were taken over: energies per atom before and now, in eV.",
            [_reference_table(name, pairs) for name, pairs in references.items() if pairs],
        ),
        Section("Learning", "", [file for file in [folder / "loss.png"] if file.is_file()]),
        Section("Predictions", "", [file for file in [folder / f"parity_{shown}.png"] if file.is_file()]),
        Section(
            "Where it errs",
            f"Mean absolute errors on the {shown} split by element (forces), size and kind of structure.",
            _breakdown_tables(told.get("breakdown", {}).get(shown, {}), units),
        ),
    ]


def _ratio(name: str, before: float, after: float) -> float:
    """By what an error has grown; NaN of what is no error."""
    return float("nan") if larger_is_better(name) or not before else after / before


def _reference_table(task: str, pairs: Mapping[str, Sequence[float]]) -> Table:
    rows = [[chemical_symbols[int(z)], before, now, now - before] for z, (before, now) in pairs.items()]
    return Table([task, "before (eV)", "now (eV)", "shift (eV)"], rows)


def _breakdown_tables(
    breakdown: Mapping[str, Mapping[str, Mapping[str, float]]], units: Mapping[str, str]
) -> list[Table]:
    tables = []
    for metric, kinds in breakdown.items():
        for kind, values in kinds.items():
            name = (lambda z: chemical_symbols[int(z)]) if kind == "element" else str
            rows = [[name(value), error] for value, error in values.items()]
            tables.append(Table([f"{metric} by {kind}", units.get(metric, "")], rows))
    return tables


def show_transfer(transfer: Transfer, source: str) -> None:
    """The table of step 0: what came from the bundle, what is new, what was left behind."""
    table = _printed(f"tensors from {source}", "part", "loaded", "new", "dropped")
    for part, *counts in transfer.table():
        table.add_row(part, *(str(n) if n else "" for n in counts))
    table.add_row("all", *(str(len(names)) for names in (transfer.loaded, transfer.new, transfer.dropped)))
    Console(stderr=True).print(table)


def show_start(start: Start, units: Mapping[str, str]) -> None:
    """Errors before the first step, and what became of element references."""
    console = Console(stderr=True)
    if start.errors:
        table = _printed("validation errors before the first step", "metric", "unit", *start.errors)
        for name, unit in units.items():
            if all(name in errors for errors in start.errors.values()):
                table.add_row(name, unit, *(cell_text(errors[name]) for errors in start.errors.values()))
        console.print(table)
    for task, pairs in start.references.items():
        if not pairs:
            continue
        shifts = ", ".join(f"{chemical_symbols[z]} {now - before:+.3f}" for z, (before, now) in pairs.items())
        console.print(f"{task}: element references moved by (eV): {shifts}", markup=False, highlight=False)


def show_rates(rows: Sequence[tuple[str, int, int, float]]) -> None:
    """What is trained at which rate."""
    table = _printed("parameters", "group", "tensors", "numbers", "peak learning rate")
    for name, tensors, numbers, rate in rows:
        table.add_row(name, str(tensors), f"{numbers:,}", f"{rate:.3g}" if rate else "frozen")
    Console(stderr=True).print(table)


def _printed(title: str, first: str, *columns: str) -> Printed:
    table = Printed(title=title, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
