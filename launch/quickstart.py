"""The quickstart: pre-train on four demonstration domains, fine-tune on three other sets, compare with scratch.

Everything goes through the `jmp-ds` command line; the commands are printed, and every run leaves its own folder with its
configuration, curves and report. The data are made with a semi-empirical method: a demonstration, of no scientific use.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

MARKER = "quickstart.json"
SIDES = ("pre-trained", "scratch")
RATES = (3.0e-4, 1.0e-3, 3.0e-3)
SLABS = {"cutoff": 8.0, "max_neighbors": 12}
MOLECULES = {"cutoff": 6.0, "max_neighbors": 12}
PRETRAIN_GRAPHS = {"slabs": SLABS, "oxides": SLABS, "molecules": MOLECULES, "paths": MOLECULES}
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Target:
    """One fine-tuning set.

    Attributes:
        task: its section in the configuration, without the store.
        epochs: length of a run.
        metrics: what the table shows, the first one decides; the name in a report, and the unit.
    """

    task: dict[str, Any]
    epochs: int
    metrics: dict[str, str]


TARGETS = {
    "malonaldehyde": Target(
        {
            "energy": {"weight": 1},
            "forces": {"kind": "gradient", "weight": 10},
            "split": {"train": 0.25, "val": 0.1, "test": 0.3},
        },
        6,
        {"forces_mae": "meV/Å", "energy_mae_per_atom": "meV/atom"},
    ),
    "dipeptide": Target(
        {
            "energy": {"weight": 1},
            "forces": {"kind": "direct", "weight": 10},
            "split": {"train": 0.34, "val": 0.1, "test": 0.33},
        },
        6,
        {"forces_mae": "meV/Å", "energy_mae_per_atom": "meV/atom"},
    ),
    "gaps": Target(
        {
            "scalar": {"label": "gap", "unit": "eV", "reduction": "mean"},
            "split": {"train": 0.4, "val": 0.15, "test": 0.4},
        },
        6,
        {"gap_mae": "eV"},
    ),
}


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


def main() -> None:
    """The whole quickstart."""
    options = parse()
    started = time.monotonic()
    out = Path(options.out)
    make_room(out)
    data = prepare_data(out, options)
    run_pretrain(out, data, options)
    trials = [Trial(*values) for values in product(TARGETS, SIDES, range(options.seeds), RATES)]
    run_trials(out, data, trials, options)
    minutes = (time.monotonic() - started) / 60
    results = [result for trial in trials if (result := read_trial(out, trial)) is not None]
    summarise(out, results, minutes)


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="launch/quickstart.sh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", default="runs/quickstart", help="folder of the results (%(default)s); an earlier one is replaced"
    )
    parser.add_argument(
        "--data", help="folder with demonstration stores made before, instead of the set that comes along"
    )
    parser.add_argument("--regenerate", action="store_true", help="compute the demonstration data anew (many minutes)")
    parser.add_argument("--epochs", type=int, default=12, help="length of the pre-training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many times every fine-tuning is done (%(default)s)")
    return parser.parse_args()


def make_room(out: Path) -> None:
    """An empty folder; what an earlier quickstart left is removed, and nothing else ever is."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).is_file():
            sys.exit(f"quickstart: {out} holds something that no quickstart made; choose another folder with --out")
        console.print(f"{out}: starting anew, the results of the last time are removed")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("{}\n")
    except OSError as error:
        sys.exit(f"quickstart: {out} cannot be written ({error.strerror}); choose another folder with --out")


def prepare_data(out: Path, options: argparse.Namespace) -> Path:
    """The folder with the demonstration stores."""
    if options.data is not None:
        return Path(options.data)
    heading("1. Demonstration data: seven small sets, labelled by xTB")
    jmp_ds("data", "demo", str(out / "data"), *(["--regenerate"] if options.regenerate else []))
    return out / "data"


def run_pretrain(out: Path, data: Path, options: argparse.Namespace) -> None:
    """One network on four domains, two processes."""
    heading("2. Pre-training on four domains at once, two processes through the deepspeed launcher")
    split = {"train": 0.92, "val": 0.08, "by": "structure"}
    weights = {"energy": {"weight": 1}, "forces": {"weight": 10}}
    config = {
        "run": {"dir": str(out / "pretrain"), "device": "cpu", "threads": 1},
        "model": {"preset": "tiny"},
        "tasks": {
            name: {"store": str(data / name), "graph": graph, **weights, "split": split}
            for name, graph in PRETRAIN_GRAPHS.items()
        },
        "sampling": {"batch": {"edges": 2000}},
        "train": {
            "epochs": options.epochs,
            "optimizer": {"lr": 2.0e-3},
            "schedule": {"warmup": 0.05, "cosine_to": 0.05},
        },
        "engine": {"deepspeed": "cpu_fp32"},
        "validate": {"every": max(1.0, options.epochs / 4)},
        "checkpoint": {"every": max(1.0, options.epochs / 2)},
    }
    file = out / "pretrain.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    jmp_ds("pretrain", str(file), "--processes", "2")


def run_trials(out: Path, data: Path, trials: Sequence[Trial], options: argparse.Namespace) -> None:
    """All fine-tuning runs, in two series side by side; each series is one start."""
    heading(f"3. Fine-tuning: {len(TARGETS)} sets, pre-trained and from scratch, three learning rates each")
    files = [write_trial(out, data, trial) for trial in trials]
    series = [files[k::2] for k in range(2)]
    logs = [(out / f"finetune-{k}.log").open("w") for k in range(2)]
    started = [start(log, "finetune", *map(str, part)) for log, part in zip(logs, series, strict=True)]
    columns = (TextColumn("fine-tuning runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=len(trials))
        while any(process.poll() is None for process in started):
            bar.update(task, completed=sum(finished(out, trial) for trial in trials))
            time.sleep(1.0)
        bar.update(task, completed=sum(finished(out, trial) for trial in trials))
    for process, log in zip(started, logs, strict=True):
        log.close()
        if process.returncode != 0:
            sys.stderr.write(Path(log.name).read_text()[-3000:])
            sys.exit(f"quickstart: fine-tuning failed; the end of {log.name} is above")


def write_trial(out: Path, data: Path, trial: Trial) -> Path:
    """The configuration file of one run; equal on both sides but for the weights it starts from."""
    target = TARGETS[trial.target]
    task = {"store": str(data / trial.target), "graph": MOLECULES, **target.task}
    config = {
        "run": {"dir": str(out / "finetune" / trial.name), "seed": trial.seed, "device": "cpu", "threads": 1},
        "from": {"bundle": str(out / "pretrain" / "final"), "heads": "new"}
        if trial.side == "pre-trained"
        else "scratch",
        "tasks": {trial.target: {**task, "split": {**task["split"], "seed": trial.seed}}},
        "sampling": {"batch": {"structures": 8}},
        "train": {
            "epochs": target.epochs,
            "optimizer": {"lr": trial.rate},
            "schedule": {"warmup": 0.1, "cosine_to": 0.05},
            "ema": 0.95,
        },
        "engine": {"deepspeed": "cpu_fp32"},
        "validate": {"every": 2.0},
        "checkpoint": {"every": float(target.epochs), "keep": 1},
    }
    file = out / "configs" / f"{trial.name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def finished(out: Path, trial: Trial) -> bool:
    """Whether a run has come to its report."""
    outcome = read_outcome(out / "finetune" / trial.name)
    return outcome is not None and outcome.status == "finished"


def read_trial(out: Path, trial: Trial) -> dict[str, Any] | None:
    """Numbers of one finished run."""
    folder = out / "finetune" / trial.name
    file = folder / "report" / "metrics.json"
    if not file.is_file():
        return None
    metrics = json.loads(file.read_text())["metrics"]
    best = min(line["primary"] for line in read_metrics(folder) if line["kind"] == "validate")
    return {"trial": trial, "validation": best, "test": metrics["test"], "folder": folder}


def summarise(out: Path, results: Sequence[dict[str, Any]], minutes: float) -> None:
    """Table, pictures, report.md, quickstart.json, and what to try next."""
    chosen = {
        (target, side, seed): min(
            (r for r in results if (r["trial"].target, r["trial"].side, r["trial"].seed) == (target, side, seed)),
            key=lambda r: r["validation"],
        )
        for target, side, seed in {(r["trial"].target, r["trial"].side, r["trial"].seed) for r in results}
    }
    seeds = sorted({seed for _, _, seed in chosen})
    rows = list(table_rows(chosen, seeds))
    header = ("fine-tuning set", "test error (MAE)", "unit", *SIDES, "ratio", "better", "learning rates")
    table = markdown_table(header, rows)
    panels = {"pre-training loss": run_curves(read_metrics(out / "pretrain"))["training loss"]}
    for target in TARGETS:
        curves = [validation_curve(chosen[target, side, seeds[0]], side) for side in SIDES]
        panels[f"{target}: validation"] = [curve for curve in curves if curve is not None]
    plot_curves(out / "curves.png", panels, "epoch")
    names = [f"{row[0]}\n{row[1]}" for row in rows]
    sides = {side: [row[3 + i] for row in rows] for i, side in enumerate(SIDES)}
    plot_pairs(out / "comparison.png", names, sides, [row[2] for row in rows])
    (out / "report.md").write_text(report_text(out, table, chosen, seeds, minutes), encoding="utf-8")
    numbers = [dict(zip(header, row, strict=True)) for row in rows]
    every = [{**vars(r["trial"]), "validation": r["validation"], "test": r["test"]} for r in results]
    (out / MARKER).write_text(json.dumps({"minutes": minutes, "table": numbers, "runs": every}, indent=1) + "\n")
    heading(f"Done in {minutes:.1f} minutes: test errors, pre-trained against scratch")
    say(table)
    say(f"\nReport, curves and parity plots: {out / 'report.md'}")
    say(
        "Try next: jmp-ds data convert YOUR_FILES data/mine --format ase, then write a finetune.yaml like those in "
        f"{out / 'configs'} and run jmp-ds finetune on it"
    )


def table_rows(chosen: dict[Any, dict[str, Any]], seeds: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """One row per metric: mean over seeds of the run that was best in validation."""
    for target, spec in TARGETS.items():
        for metric, unit in spec.metrics.items():
            means = [
                sum(chosen[target, side, seed]["test"][f"{target}/{metric}"] for seed in seeds) / len(seeds)
                for side in SIDES
            ]
            rates = ", ".join(
                "/".join(f"{chosen[target, side, seed]['trial'].rate:g}" for seed in seeds) for side in SIDES
            )
            better = SIDES[0] if means[0] < means[1] else SIDES[1]
            yield (target, metric.replace("_", " "), unit, *means, means[0] / means[1], better, rates)


def validation_curve(result: dict[str, Any], side: str) -> Curve | None:
    """Primary metric over epochs of the chosen run."""
    curves = next(
        (c for title, c in run_curves(read_metrics(result["folder"]), side).items() if "validation" in title), None
    )
    return curves[0] if curves else None


def report_text(out: Path, table: str, chosen: dict[Any, dict[str, Any]], seeds: Sequence[int], minutes: float) -> str:
    """The page that ties everything together."""
    parity = [
        f"- {target}, {side}: ![parity]({chosen[target, side, seeds[0]]['folder'].relative_to(out)}/report/parity_test.png)"
        for target, side in product(TARGETS, SIDES)
    ]
    return (
        "\n\n".join(
            [
                "# Quickstart: pre-trained against scratch",
                "Same structures, steps and schedule on both sides; each side at the best of the learning rates "
                f"{', '.join(f'{r:g}' for r in RATES)} by its validation error; {len(seeds)} seed(s); "
                f"{minutes:.1f} minutes. A ratio below 1 means that pre-training helped. The data are a demonstration "
                "(xTB labels, few structures); "
                "the numbers say that the software works, not how good the method is.",
                table,
                "![comparison](comparison.png)",
                "![curves](curves.png)",
                "Pre-training: [report](pretrain/report/report.md), ![parity](pretrain/report/parity_val.png)",
                "Parity on the test structures:\n\n" + "\n".join(parity),
            ]
        )
        + "\n"
    )


def say(text: str) -> None:
    """A result, on standard output."""
    sys.stdout.write(f"{text}\n")


def heading(text: str) -> None:
    """A line between the parts."""
    console.print(f"\n[bold]{text}[/bold]")


def jmp_ds(*arguments: str) -> None:
    """Run a verb and end the quickstart if it fails."""
    command = [sys.executable, "-m", "jmp_ds.cli", *arguments]
    console.print(f"[dim]$ jmp-ds {shlex.join(arguments)}[/dim]", soft_wrap=True)
    code = subprocess.run(command, env=environment(), check=False).returncode
    if code:
        sys.exit(f"quickstart: jmp-ds {arguments[0]} failed with exit code {code}; its message is above")


def start(log: Any, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a verb whose output goes to a file."""
    command = [sys.executable, "-m", "jmp_ds.cli", *arguments]
    return subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)


def environment() -> dict[str, str]:
    """One thread per process: two processes share the machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
