"""Recipes over folds and seeds: one run folder each, and one table of what came out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from jmp_ds.config.checks import check_finetune
from jmp_ds.config.described import metric_of
from jmp_ds.config.finetune import FinetuneConfig
from jmp_ds.config.loading import Resolved, load_target
from jmp_ds.config.targets import Target, find_target, published_results, targets
from jmp_ds.errors import UserError
from jmp_ds.experiment.resume import refused_differences
from jmp_ds.files import write_json, write_text
from jmp_ds.finetune import run_finetune
from jmp_ds.report import Sample, comparison_table, markdown_table, plot_samples
from jmp_ds.training.outcome import read_outcome


@dataclass(frozen=True)
class Run:
    """One fine-tuning run of a benchmark.

    Attributes:
        target: which recipe.
        fold: which fold; None where there are none.
        seed: of the run.
        resolved: its configuration.
    """

    target: Target
    fold: int | None
    seed: int
    resolved: Resolved[FinetuneConfig]

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.resolved.config.run.dir)

    @property
    def words(self) -> str:
        """Its name for people."""
        return self.target.name + (f" fold {self.fold}" if self.fold is not None else "") + f" seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether it came to its end and its report is there."""
        outcome = read_outcome(self.folder)
        return outcome is not None and outcome.status == "finished" and self._metrics.is_file()

    @property
    def _metrics(self) -> Path:
        return self.folder / "report" / "metrics.json"

    def result(self, metric: str) -> dict[str, float]:
        """The metric by split (`val`, `test`); empty if the run is not finished."""
        if not self.finished:
            return {}
        found = json.loads(self._metrics.read_text(encoding="utf-8"))["metrics"]
        return {split: float(values[metric]) for split, values in found.items() if metric in values}


@dataclass(frozen=True)
class Series:
    """How a series of runs ended.

    Attributes:
        stopped: folder of the run in which a stop was asked for; None: it went to its end.
        failed: names of runs that failed.
    """

    stopped: Path | None = None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """What was asked for.

    Attributes:
        names: families, targets, or targets with a fold (`FAMILY/TARGET:FOLD`).
        overrides: `key.sub=value` for every run.
        data: folder of stores and splits.
        out: folder for run folders and tables.
        source: a bundle, or `scratch`.
        folds: which, of recipes that have folds.
        seeds: of the runs.
        published: file of published results; None: what the package knows.
    """

    names: tuple[str, ...]
    overrides: tuple[str, ...]
    data: Path
    out: Path
    source: str
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    published: Path | None = None

    def runs(self) -> list[Run]:
        """All runs in order; recipe by recipe, fold by fold, seed by seed.

        Raises:
            UserError: a name that there is not, or a mistake in the overrides.
        """
        if not self.names:
            raise UserError("benchmark: name at least one recipe or family (jmp-ds recipes)")
        chosen = dict.fromkeys(pair for name in self.names for pair in self._named(name))
        return [self._run(target_name, fold, seed) for target_name, fold in chosen for seed in self.seeds]

    def _named(self, name: str) -> list[tuple[str, int | None]]:
        """Targets with folds that a name stands for."""
        own = [t for t in targets().values() if t.family == name]
        if not own:
            target, fold = find_target(name)
            if ":" in name:
                return [(target.name, fold)]
            own = [target]
        return [(t.name, fold) for t in own for fold in (self.folds if t.folds else (None,))]

    def _run(self, name: str, fold: int | None, seed: int) -> Run:
        target = targets()[name]
        target.check_fold(fold)
        part = "" if fold is None else f"fold{fold}-"
        folder = self.out / target.family / target.task / f"{part}seed{seed}"
        own = {"run": {"dir": str(folder), "seed": seed}, "from": self.source}
        return Run(target, fold, seed, load_target(target, fold, str(self.data), own, self.overrides))

    def carry_out(self, runs: Sequence[Run]) -> Series:
        """Do what is not finished.

        A run that fails is told of and left behind; the same command tries it again.

        Raises:
            UserError: before the first run: data that is not there, a configuration that cannot work, or a finished run of
                another configuration in a folder.
        """
        left = [run for run in runs if not run.finished]
        published_results(self.published)
        self._check(runs, left)
        console = Console(stderr=True)
        console.print(f"benchmark: {len(runs)} runs, {len(runs) - len(left)} of them finished already", markup=False)
        failed: list[str] = []
        for number, run in enumerate(left, 1):
            console.rule(f"{number} of {len(left)}: {run.words}")
            try:
                (outcome,) = run_finetune([(run.resolved, check_finetune(run.resolved))])
            except UserError as error:
                console.print(f"{run.words} failed: {error}", markup=False)
                failed.append(run.words)
                continue
            if outcome.status == "stopped":
                return Series(run.folder, tuple(failed))
        return Series(None, tuple(failed))

    def _check(self, runs: Sequence[Run], left: Sequence[Run]) -> None:
        """What can be seen before the first run, of all of them."""
        for run in runs:
            refused = refused_differences(run.resolved) if run.finished else []
            if refused:
                names = ", ".join(refused)
                raise UserError(
                    f"{run.folder} holds a finished run of another configuration ({names}); name another --out"
                )
        for run in left:
            config = run.resolved.config.tasks[run.target.task]
            if not Path(config.store).exists():
                raise UserError(f"{run.words}: no store {config.store}; make it with `jmp-ds data convert`")
            files = config.split.files
            missing = [f for f in (files.train, files.val, files.test) if f and not Path(f).exists()] if files else []
            if missing:
                command = run.target.split_command(str(self.data), run.fold)
                raise UserError(f"{run.words}: no file {missing[0]}; make it with `{command}`")
        for run in {run.target.name: run for run in left}.values():
            check_finetune(run.resolved)  # folds and seeds of a target differ in nothing that is checked

    def report(self, runs: Sequence[Run]) -> str:
        """Write benchmark.md, .csv, .json and .png into the folder; the table as text."""
        known = published_results(self.published)
        names = dict.fromkeys(run.target.name for run in runs)
        samples = [_sample(name, [r for r in runs if r.target.name == name], known) for name in names]
        header, rows = comparison_table(samples)
        text = markdown(header, rows)
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / "benchmark.md", text)
        write_text(self.out / "benchmark.csv", csv_text(header, rows))
        values = [{**vars(sample), "mean": sample.mean, "deviation": sample.deviation} for sample in samples]
        singles = [{"run": str(run.folder), "seed": run.seed, "fold": run.fold, **_single(run)} for run in runs]
        write_json(self.out / "benchmark.json", {"targets": values, "runs": singles}, finite=False)
        plot_samples(self.out / "benchmark.png", samples)
        return text


def _metric(run: Run) -> tuple[str, str]:
    task = run.target.task
    return metric_of(run.resolved.config.tasks[task], task)


def _single(run: Run) -> dict[str, object]:
    metric, unit = _metric(run)
    outcome = read_outcome(run.folder)
    status = outcome.status if outcome is not None else "not begun"
    return {"recipe": run.target.name, "status": status, "metric": metric, "unit": unit, **run.result(metric)}


def _sample(name: str, runs: Sequence[Run], published: Mapping[str, Mapping[str, float]]) -> Sample:
    """Results of one recipe; beside those of a single fold what was published for it, where that is known."""
    metric, unit = _metric(runs[0])
    folds = {run.fold for run in runs}
    alone = f"{name}:{runs[0].fold}" if len(folds) == 1 else name
    found = [run.result(metric) for run in runs]
    return Sample(
        name=name,
        metric=metric.partition("/")[2],
        unit=unit,
        asked=len(runs),
        test=[values["test"] for values in found if "test" in values],
        val=[values["val"] for values in found if "val" in values],
        published=published.get(alone, published.get(name, {})),
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table, and how to read it."""
    note = (
        "Mean ± standard deviation (of a single run, denominator n - 1) over finished folds and seeds, on their test "
        "structures. Published: numbers of the paper's pre-trained networks, of the fold where only one is asked for and "
        "known, else the mean over folds; published_results.yaml says where each was read. Empty where none was."
    )
    return f"{markdown_table(header, list(rows))}\n\n{note}\n"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Comma-separated, with quotes where they are needed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """`0-2,5` as 0, 1, 2, 5.

    Raises:
        UserError: anything else.
    """
    numbers: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"{option} {text}: must look like 0-4 or 0,2")
        numbers |= dict.fromkeys(range(int(first), int(last if dash else first) + 1))
    if not numbers:
        raise UserError(f"{option} {text}: names no number")
    return tuple(numbers)
