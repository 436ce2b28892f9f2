"""The report of a finished run: tables, loss curves, parity plots; one folder, `report/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jmp_kernels import BackendName
from rich.console import Console
from rich.table import Table

from jmp_ds.bundle import SPEC_FILE, load_bundle
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.experiment.breakdown import config_types
from jmp_ds.experiment.evaluate import Evaluation, evaluate
from jmp_ds.experiment.loaders import eval_loader
from jmp_ds.experiment.session import Material
from jmp_ds.files import write_json
from jmp_ds.report import Curve, markdown_table, plot_curves, plot_parity
from jmp_ds.tasks.metrics import metric_units, note_on_direction
from jmp_ds.training.metrics_log import read_metrics
from jmp_ds.training.outcome import Outcome
from jmp_ds.training.processes import Processes


def report_run(
    config: TrainingConfig,
    material: Material,
    outcome: Outcome,
    processes: Processes,
    *,
    kernels: BackendName,
    prefer_best: bool,
) -> dict[str, Evaluation]:
    """Evaluate the exported model on validation and test structures and write `report/`; collective.

    Args:
        config: of the run.
        material: tasks and structures.
        outcome: how training ended.
        processes: share the evaluation; the first writes.
        kernels: the backend of message passing.
        prefer_best: take the bundle that was best in validation, where there is one, instead of the final one.

    Returns:
        Evaluations by split.
    """
    run_dir = Path(config.run.dir)
    processes.barrier()  # the first process has written the bundles
    kind = judged_bundle(run_dir, prefer_best=prefer_best)
    model = load_bundle(run_dir / kind).build(device=processes.device, kernels=kernels)
    splits = {name: sources for name, sources in (("val", material.val), ("test", material.test)) if sources}
    found = {
        name: evaluate(
            model,
            eval_loader(config, material.tasks, sources, processes),
            processes,
            config_types=config_types(sources),
            progress=True,
        )
        for name, sources in splits.items()
    }
    if processes.first:
        _write(config, material, outcome, kind, found)
    return found


def judged_bundle(run_dir: Path, *, prefer_best: bool) -> str:
    """Which of a run's bundles its report is about."""
    return "best" if prefer_best and (run_dir / "best" / SPEC_FILE).is_file() else "final"


def _write(
    config: TrainingConfig, material: Material, outcome: Outcome, kind: str, found: dict[str, Evaluation]
) -> None:
    run_dir = Path(config.run.dir)
    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    units = metric_units(material.tasks)
    rows = [(name, unit, *(e.metrics.get(name, float("nan")) for e in found.values())) for name, unit in units.items()]
    header = ("metric", "unit", *found)
    numbers = {split: e.metrics for split, e in found.items()}
    told = {"model": kind, "outcome": vars(outcome), "metrics": numbers}
    told["breakdown"] = {split: e.breakdown for split, e in found.items()}
    write_json(folder / "metrics.json", told, finite=False)
    shown = "test" if "test" in found else "val"
    text = [
        f"# {run_dir.name}",
        f"Training ended at step {outcome.step} after {outcome.consumed} structures: {outcome.reason}.",
        f"Model: `{kind}/`. Structures: " + ", ".join(_counts(material)) + ".",
        markdown_table(header, rows),
        *([note] if (note := note_on_direction(units)) else []),
        "![loss](loss.png)" + (f" ![parity on {shown}](parity_{shown}.png)" if shown in found else ""),
        "Energies in the parity plots are per atom, without what the element references explain.",
    ]
    (folder / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    plot_curves(folder / "loss.png", run_curves(read_metrics(run_dir)), "epoch")
    for split, evaluation in found.items():
        plot_parity(folder / f"parity_{split}.png", evaluation.parity)
    _print(run_dir, header, rows)


def _counts(material: Material) -> list[str]:
    groups = (("training", material.train), ("validation", material.val), ("test", material.test))
    return [f"{sum(len(s) for s in sources)} {name}" for name, sources in groups]


def run_curves(lines: list[dict[str, Any]], label: str = "") -> dict[str, list[Curve]]:
    """Panels from metrics.jsonl: training loss and primary validation metric over epochs."""
    train = [line for line in lines if line["kind"] == "train" and line.get("loss") is not None]
    val = [line for line in lines if line["kind"] == "validate" and line.get("primary") is not None]
    panels = {"training loss": [Curve(label, [t["epoch"] for t in train], [t["loss"] for t in train])]}
    if val:
        points = [v["epoch"] for v in val], [v["primary"] for v in val]
        panels["validation (in units of the labels' scale)"] = [Curve(label, *points)]
    return panels


def _print(run_dir: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """The table on the terminal."""
    table = Table(title=f"{run_dir}: {header[0]}", title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if column in header[:2] else "right")
    for row in rows:
        table.add_row(*(f"{cell:.5g}" if isinstance(cell, float) else cell for cell in row))
    console = Console(stderr=True)
    console.print(table)
    console.print(f"report: {run_dir / 'report' / 'report.md'}", highlight=False)
