"""Pre-trained against scratch: fine-tuning runs on several sets, each side at the best of some learning rates, one table.

Everything goes through the `jmp-ds` command line; the commands are printed, and every run leaves its own folder with its
configuration, curves and report.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jmp_ds.experiment.reporting import run_curves
from jmp_ds.report import Curve, markdown_table, plot_curves, plot_pairs
from jmp_ds.training.metrics_log import read_metrics
from jmp_ds.training.outcome import read_outcome

SIDES = ("pre-trained", "scratch")
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One fine-tuning set.

    Attributes:
        task: its section in the configuration, with the store.
        epochs: length of a run.
        structures: per step.
        metrics: what the table shows, the first one decides; the name in a report, and the unit.
    """

    task: Mapping[str, Any]
    epochs: int
    structures: int
    metrics: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared.

    Attributes:
        out: folder of the results.
        bundle: pre-trained model.
        model: section of the configuration from scratch: the same network and graph rules.
        targets: by name, which is also the task's.
        rates: learning rates; the best in validation counts.
        seeds: how many; a seed draws the split, the weights and the order.
    """

    out: Path
    bundle: Path
    model: Mapping[str, Any]
    targets: Mapping[str, Target]
    rates: Sequence[float]
    seeds: int = 1


@dataclass(frozen=True)
class Trial:
    """One fine-tuning run."""

    target: str
    side: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.target}-{self.side}-seed{self.seed}-lr{self.rate:g}"


@dataclass(frozen=True)
class Result:
    """Numbers of one finished run: primary metric in validation, metrics of the test structures."""

    trial: Trial
    validation: float
    test: Mapping[str, float]
    folder: Path = field(repr=False)


# ------------------------------------------------------------------------------------------------------- running


def fresh_folder(out: Path, marker: str, who: str) -> None:
    """An empty folder; what an earlier run of the same script left is removed, and nothing else ever is."""
    if out.exists() and any(out.iterdir()):
        if not (out / marker).is_file():
            sys.exit(f"{who}: {out} holds something that no {who} made; choose another folder with --out")
        say(f"{out}: starting anew, the results of the last time are removed")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / marker).write_text("{}\n")
    except OSError as error:
        sys.exit(f"{who}: {out} cannot be written ({error.strerror}); choose another folder with --out")


def compare(study: Study) -> list[Result]:
    """Fine-tune all trials, in two series side by side, each series one start; what has finished before is not repeated."""
    trials = [Trial(*t) for t in product(study.targets, SIDES, range(study.seeds), study.rates)]
    waiting = [trial for trial in trials if not finished(study, trial)]
    files = [write_trial(study, trial) for trial in waiting]
    started = []
    for k in range(2):
        if part := files[k::2]:
            log = (study.out / f"finetune-{k}.log").open("w")
            started.append((start(log, "finetune", *map(str, part)), log))
    columns = (TextColumn("fine-tuning runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(trials))
        while any(process.poll() is None for process, _ in started):
            bar.update(task, completed=sum(finished(study, trial) for trial in trials))
            time.sleep(1.0)
        bar.update(task, completed=sum(finished(study, trial) for trial in trials))
    for process, log in started:
        log.close()
        if process.returncode != 0:
            sys.stderr.write(Path(log.name).read_text()[-3000:])
            sys.exit(f"fine-tuning failed; the end of {log.name} is above")
    return [result for trial in trials if (result := read_trial(study, trial)) is not None]


def write_trial(study: Study, trial: Trial) -> Path:
    """The configuration file of one run; equal on both sides but for the weights it starts from."""
    target = study.targets[trial.target]
    pretrained = trial.side == SIDES[0]
    config = {
        "run": {"dir": str(folder_of(study, trial)), "seed": trial.seed, "device": "cpu", "threads": 1},
        "from": {"bundle": str(study.bundle), "heads": "new"} if pretrained else "scratch",
        **({} if pretrained else {"model": dict(study.model)}),
        "tasks": {trial.target: {**target.task, "split": {**target.task["split"], "seed": trial.seed}}},
        "sampling": {"batch": {"structures": target.structures}},
        "train": {
            "epochs": target.epochs,
            "optimizer": {"lr": trial.rate},
            "schedule": {"warmup": 0.1, "cosine_to": 0.05},
            "ema": 0.95,
        },
        "engine": {"deepspeed": "cpu_fp32"},
        "validate": {"every": max(1.0, target.epochs / 5)},
        "checkpoint": {"every": float(target.epochs), "keep": 1},
    }
    file = study.out / "configs" / f"{trial.name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def folder_of(study: Study, trial: Trial) -> Path:
    """Run folder of a trial."""
    return study.out / "finetune" / trial.name


def finished(study: Study, trial: Trial) -> bool:
    """Whether a run has come to its end."""
    outcome = read_outcome(folder_of(study, trial))
    return outcome is not None and outcome.status == "finished"


def read_trial(study: Study, trial: Trial) -> Result | None:
    """Numbers of one finished run."""
    folder = folder_of(study, trial)
    file = folder / "report" / "metrics.json"
    if not file.is_file():
        return None
    best = min(line["primary"] for line in read_metrics(folder) if line["kind"] == "validate")
    return Result(trial, best, json.loads(file.read_text())["metrics"]["test"], folder)


def jmp_ds(*arguments: str) -> None:
    """Run a verb and end the script if it fails."""
    say(f"$ jmp-ds {shlex.join(arguments)}")
    code = subprocess.run([sys.executable, "-m", "jmp_ds.cli", *arguments], env=environment(), check=False).returncode
    if code:
        sys.exit(f"jmp-ds {arguments[0]} failed with exit code {code}; its message is above")


def start(log: Any, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a verb whose output goes to a file."""
    command = [sys.executable, "-m", "jmp_ds.cli", *arguments]
    return subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)


def environment() -> dict[str, str]:
    """One thread per process: two processes share the machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def say(text: str) -> None:
    """One line for people, as it is."""
    console.print(text, style="dim", soft_wrap=True, markup=False)


def heading(text: str) -> None:
    """A line between the parts."""
    console.print(f"\n{text}", style="bold", markup=False)


# ------------------------------------------------------------------------------------------------------- summary


def summarise(study: Study, results: Sequence[Result], curves: Mapping[str, list[Curve]]) -> tuple[str, dict[str, Any]]:
    """Write comparison.png and curves.png; the table as Markdown, and all numbers for a JSON file.

    Args:
        study: what was compared.
        results: finished runs.
        curves: more panels for curves.png, before those of the targets.
    """
    chosen: dict[tuple[str, str, int], Result] = {}
    for result in results:
        key = (result.trial.target, result.trial.side, result.trial.seed)
        if key not in chosen or result.validation < chosen[key].validation:
            chosen[key] = result
    rows = list(_rows(study, chosen))
    header = ("fine-tuning set", "test error (MAE)", "unit", *SIDES, "ratio", "better", "learning rates")
    panels = dict(curves)
    for target in study.targets:
        own = [_validation_curve(chosen[target, side, 0], side) for side in SIDES if (target, side, 0) in chosen]
        panels[f"{target}: validation error / std"] = [curve for curve in own if curve is not None]
    plot_curves(study.out / "curves.png", panels, "epoch")
    sides = {side: [row[3 + i] for row in rows] for i, side in enumerate(SIDES)}
    plot_pairs(study.out / "comparison.png", [f"{r[0]}\n{r[1]}" for r in rows], sides, [r[2] for r in rows])
    numbers = [dict(zip(header, row, strict=True)) for row in rows]
    runs = [{**vars(r.trial), "validation": r.validation, "test": dict(r.test)} for r in results]
    return markdown_table(header, rows), {"table": numbers, "runs": runs}


def parity_pictures(study: Study, results: Sequence[Result]) -> str:
    """Markdown with the parity plots of the best run of every set and side."""
    lines = []
    for target, side in product(study.targets, SIDES):
        own = [r for r in results if (r.trial.target, r.trial.side, r.trial.seed) == (target, side, 0)]
        if own:
            best = min(own, key=lambda r: r.validation).folder.relative_to(study.out)
            lines.append(f"- {target}, {side}: ![parity]({best}/report/parity_test.png)")
    return "\n".join(lines)


def _rows(study: Study, chosen: Mapping[tuple[str, str, int], Result]) -> Iterator[tuple[Any, ...]]:
    """One row per metric: mean over seeds of the run that was best in validation."""
    for target, spec in study.targets.items():
        seeds = [s for s in range(study.seeds) if all((target, side, s) in chosen for side in SIDES)]
        if not seeds:
            continue
        for metric, unit in spec.metrics.items():
            means = []
            for side in SIDES:
                errors = [chosen[target, side, seed].test[f"{target}/{metric}"] for seed in seeds]
                means.append(sum(errors) / len(errors))
            rates = ", ".join("/".join(f"{chosen[target, side, s].trial.rate:g}" for s in seeds) for side in SIDES)
            better = SIDES[0] if means[0] < means[1] else SIDES[1]
            yield target, metric.replace("_", " "), unit, *means, means[0] / means[1], better, rates


def _validation_curve(result: Result, side: str) -> Curve | None:
    """Primary metric over epochs."""
    found = run_curves(read_metrics(result.folder), side)
    return next((curves[0] for title, curves in found.items() if "validation" in title and curves), None)
