"""The claims of JMP in miniature, on real data: pre-training against scratch, large against small, and what matters in it.

    python launch/claims.py DATA [--out runs/claims] [--hours 6]

DATA holds the publishers' files that launch/claims.yaml names (not part of the project). Every run is a `jmp-ds` command,
two at a time, one thread each. What is done is kept: the same command goes on where it was interrupted, and tables are
written from what there is (`--tables` only writes them).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from claims_runs import Command, Plan, Series, finished
from claims_tables import write_results
from comparison import console, heading, jmp_ds, say, start
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

AT_A_TIME = 2


@dataclass(frozen=True)
class Job:
    """One process: what it waits for, what it runs, when it need not run."""

    name: str
    ready: Callable[[], bool]
    done: Callable[[], bool]
    commands: Callable[[], list[Command]]


@dataclass
class Running:
    """A started job."""

    job: Job
    process: subprocess.Popen[bytes]
    since: float


def main() -> None:
    """Everything, in order; at the end, or when the hours are over, the tables."""
    options = parse()
    file = Path(__file__).parent / "claims.yaml"
    plan = Plan(yaml.safe_load(file.read_text(encoding="utf-8")), Path(options.out))
    if not options.tables:
        heading("1. Conversion and splits")
        convert(plan, Path(options.data))
        split(plan)
        heading("2. Pre-training, fine-tuning, test")
        try:
            run_all(plan, list(jobs(plan)), options.hours * 3600)
        except KeyboardInterrupt:  # the processes have got it too, and stop with a checkpoint
            sys.exit("claims: interrupted; the same command goes on")
    print(write_results(plan))


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="folder with the publishers' files")
    parser.add_argument("--out", default="runs/claims", help="folder of stores and results (%(default)s)")
    parser.add_argument("--hours", type=float, default=6.0, help="start nothing new after so many hours (%(default)s)")
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is there")
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        sys.exit(f"claims: {options.data} is not a folder")
    return options


def convert(plan: Plan, data: Path) -> None:
    """Stores of all sources."""
    for name, source in plan.settings["stores"].items():
        if not plan.store(name).exists():
            label = ("--label", source["label"]) if "label" in source else ()
            files = (str(data / file) for file in source["files"])
            jmp_ds("data", "convert", *files, str(plan.store(name)), "--format", source["format"], *label)


def split(plan: Plan) -> None:
    """Which structures train, validate and test, by target and seed."""
    for target, seed in sorted({(series.target, series.seed) for series in plan.series()}):
        folder = plan.split(target, seed)
        if not (folder / "split.json").is_file():
            parts = plan.settings["targets"][target]["parts"]
            shares = (word for part, count in parts.items() for word in ("--part", f"{part}={count}"))
            jmp_ds("data", "split", str(plan.store(target)), str(folder), *shares, "--seed", str(seed))


def jobs(plan: Plan) -> Iterator[Job]:
    """All of them; a pre-training comes just before the first series that needs it."""
    variants: set[str] = set()
    for series in plan.series():
        variant = plan.variant_of(series)
        if variant is not None and variant not in variants:
            variants.add(variant)
            yield pretraining(plan, variant)
        yield from fine_tuning(plan, series)


def pretraining(plan: Plan, variant: str) -> Job:
    """One pre-training; it waits for nothing."""
    folder = plan.bundle(variant).parent
    return Job(f"pretrain-{variant}", lambda: True, lambda: finished(folder), lambda: plan.pretraining(variant))


def fine_tuning(plan: Plan, series: Series) -> Iterator[Job]:
    """The runs of a series, then the test structures."""
    variant = plan.variant_of(series)

    def ready() -> bool:
        weights = variant is None or finished(plan.bundle(variant).parent)
        return weights and plan.rates(series) is not None

    yield Job(series.name, ready, lambda: plan.best_rate(series) is not None, lambda: plan.finetuning(series))
    yield Job(
        f"{series.name}-test",
        lambda: plan.best_rate(series) is not None,
        lambda: plan.test_errors(series) is not None,
        lambda: plan.evaluation(series),
    )


def run_all(plan: Plan, waiting: Sequence[Job], seconds: float) -> None:
    """Start jobs as they become ready, the earlier ones first; nothing new is started after the time is over."""
    began = time.monotonic()
    left = [job for job in waiting if not job.done()]
    running: list[Running] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("processes", total=len(waiting), completed=len(waiting) - len(left))
        while left or running:
            over = time.monotonic() - began > seconds
            while not over and len(running) < AT_A_TIME and (job := next((j for j in left if j.ready()), None)):
                left.remove(job)
                running.append(launch(plan, job))
            if not running:
                break
            time.sleep(0.5)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                record(plan, one, [other.process for other in running])
                bar.advance(task)
    if left:
        say(f"{len(left)} processes were not started; the same command goes on")


def launch(plan: Plan, job: Job) -> Running:
    """Start a job; what it prints goes to a file of its name."""
    logs = plan.out / "logs"
    logs.mkdir(exist_ok=True)
    (command,) = job.commands()
    with (logs / f"{job.name}.log").open("a") as log:
        return Running(job, start(log, *command), time.monotonic())


def record(plan: Plan, one: Running, others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Keep how long a job took; end the script if it failed."""
    if one.process.returncode != 0 or not one.job.done():
        for process in others:
            process.terminate()
        log = plan.out / "logs" / f"{one.job.name}.log"
        sys.stderr.write(log.read_text()[-3000:])
        sys.exit(f"claims: {one.job.name} failed; the end of {log} is above")
    line = {"job": one.job.name, "seconds": round(time.monotonic() - one.since, 1)}
    with (plan.out / "times.jsonl").open("a") as times:
        times.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
