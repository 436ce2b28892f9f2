"""Runs of launch/claims.py: their configurations, what they wait for, where their numbers are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jmp_ds.training.metrics_log import read_metrics
from jmp_ds.training.outcome import read_outcome

Command = tuple[str, ...]


@dataclass(frozen=True)
class Validation:
    """Validation of one run.

    Attributes:
        steps: where it was done.
        values: primary metric at these steps, the smaller the better.
    """

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def best(self) -> float:
        """The smallest value."""
        return min(self.values)


@dataclass(frozen=True, order=True)
class Series:
    """Fine-tuning of one target from one start with one seed, at one or several learning rates."""

    target: str
    start: str
    seed: int

    @property
    def name(self) -> str:
        """For folders and people."""
        return f"{self.target}-{self.start}-seed{self.seed}"


class Plan:
    """What launch/claims.yaml asks for, in one folder.

    Args:
        settings: content of launch/claims.yaml.
        out: folder of stores, runs and results.
    """

    def __init__(self, settings: Mapping[str, Any], out: Path) -> None:
        self.settings = settings
        self.out = out

    def store(self, name: str) -> Path:
        """Folder of a store."""
        return self.out / "stores" / name

    def bundle(self, variant: str) -> Path:
        """Bundle of a finished pre-training."""
        return self.out / "pretrain" / variant / "final"

    def split(self, target: str, seed: int) -> Path:
        """Folder with the numbers of the structures of a split."""
        return self.out / "splits" / f"{target}-seed{seed}"

    def run(self, series: Series, rate: float) -> Path:
        """Folder of one fine-tuning run."""
        return self.out / "finetune" / f"{series.name}-lr{rate:g}"

    def test_file(self, series: Series) -> Path:
        """Errors of the chosen run on the test structures."""
        return self.out / "test" / series.name / "metrics.json"

    def series(self) -> Iterator[Series]:
        """All series, each once, those of the first study first; of a study the first seed first."""
        seen = set()
        for study in self.settings["studies"].values():
            for seed in range(study["seeds"]):
                for target in study["targets"]:
                    for start in study["starts"]:
                        one = Series(target, start, seed)
                        if one not in seen:
                            seen.add(one)
                            yield one

    def variant_of(self, series: Series) -> str | None:
        """The pre-training that a series starts from; None from scratch."""
        return self.settings["starts"][series.start].get("variant")

    # -------------------------------------------------------------------------------------------- results

    def validation(self, series: Series, rate: float) -> Validation | None:
        """Of a finished run; None if it has not finished."""
        folder = self.run(series, rate)
        if not finished(folder):
            return None
        lines = [line for line in read_metrics(folder) if line["kind"] == "validate"]
        return Validation(tuple(line["step"] for line in lines), tuple(line["primary"] for line in lines))

    def rates(self, series: Series) -> list[float] | None:
        """Learning rates to run: all for the first seed, later its best one; None while that is not known."""
        if series.seed == 0:
            return list(self.settings["starts"][series.start].get("rates", self.settings["rates"]))
        best = self.best_rate(Series(series.target, series.start, 0))
        return None if best is None else [best]

    def best_rate(self, series: Series) -> float | None:
        """The rate with the smallest validation error; None before all of its runs have finished."""
        rates = self.rates(series)
        found = {rate: self.validation(series, rate) for rate in rates or ()}
        known = {rate: v.best for rate, v in found.items() if v is not None}
        return min(known, key=known.__getitem__) if known and len(known) == len(found) else None

    def test_errors(self, series: Series) -> dict[str, float] | None:
        """Errors on the test structures by metric, without the name of the task; None before the evaluation."""
        file = self.test_file(series)
        if not file.is_file():
            return None
        return {name.split("/", 1)[1]: value for name, value in json.loads(file.read_text()).items()}

    # ------------------------------------------------------------------------------------------- commands

    def pretraining(self, variant: str) -> list[Command]:
        """Command of a pre-training; its configuration is written."""
        chosen = self.settings["variants"][variant]
        config = deepcopy(self.settings["pretraining"])
        config["run"]["dir"] = str(self.out / "pretrain" / variant)
        config["model"] = deepcopy(self.settings["models"][chosen["model"]])
        for name in chosen.get("leave_out", ()):
            del config["tasks"][name]
        for name, task in config["tasks"].items():
            task["store"] = name
            for key, value in chosen.get("every_task", {}).items():
                _set(task, key, value)
        for key, value in chosen.get("set", {}).items():
            _set(config, key, value)
        return [("pretrain", str(self._write(f"pretrain-{variant}", config)))]

    def finetuning(self, series: Series) -> list[Command]:
        """Command of the runs of a series that have not finished, one after the other in one process."""
        rates = [rate for rate in self.rates(series) or () if not finished(self.run(series, rate))]
        return [("finetune", *(str(self._trial(series, rate)) for rate in rates))]

    def evaluation(self, series: Series) -> list[Command]:
        """Command that reads the test structures: once per series, with the run that validation chose."""
        best = self.best_rate(series)
        assert best is not None, series
        numbers = self.split(series.target, series.seed) / "test.npy"
        report = self.test_file(series).parent
        where = (str(self.run(series, best) / "best"), str(self.store(series.target)))
        return [("evaluate", *where, "--task", series.target, "--split", str(numbers), "--report", str(report))]

    def _trial(self, series: Series, rate: float) -> Path:
        """Configuration of one run; equal for all starts but for what launch/claims.yaml says of the start."""
        target, start = self.settings["targets"][series.target], self.settings["starts"][series.start]
        numbers = self.split(series.target, series.seed)
        files = {part: str(numbers / f"{part}.npy") for part in ("train", "val")}
        task = {"store": series.target, **deepcopy(target["task"]), "split": {"files": files}}
        config = deepcopy(self.settings["finetuning"])
        config["run"] |= {"dir": str(self.run(series, rate)), "seed": series.seed}
        if "variant" in start:
            config["from"] = {"bundle": str(self.bundle(start["variant"])), "heads": start.get("heads", "new")}
        else:
            config |= {"from": "scratch", "model": deepcopy(self.settings["models"][start["model"]])}
        config["tasks"] = {series.target: task}
        config["sampling"] = {"batch": {"structures": target["batch"]}}
        config["train"] |= {"epochs": target["epochs"], "optimizer": {"lr": rate}}
        config["validate"] = {"every": target["epochs"] / self.settings["validations"]}
        config["checkpoint"] = {"every": float(target["epochs"]), "keep": 1}
        config = merged(config, start.get("config", {}))
        return self._write(f"{series.name}-lr{rate:g}", config)

    def _write(self, name: str, config: Mapping[str, Any]) -> Path:
        file = self.out / "configs" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(self._with_places(config), sort_keys=False))
        return file

    def _with_places(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The same with folders for the names of stores, wherever they are."""
        placed = {}
        for key, value in config.items():
            if isinstance(value, Mapping):
                placed[key] = self._with_places(value)
            else:
                placed[key] = str(self.store(value)) if key == "store" else value
        return placed


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    outcome = read_outcome(folder)
    return outcome is not None and outcome.status == "finished"


def merged(config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Both, sections within sections too; `more` wins."""
    both = dict(config)
    for key, value in more.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else deepcopy(value)
    return both


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """Change a.b.c of nested sections; the sections on the way must be there."""
    *way, last = key.split(".")
    for name in way:
        config = config[name]
    config[last] = value
