"""launch/claims.py: configurations that load, order of the runs, and tables of what has finished."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jmp_ds.config.loading import load_finetune, load_pretrain
from jmp_ds.training.outcome import Outcome

LAUNCH = Path(__file__).parents[1] / "launch"
sys.path.insert(0, str(LAUNCH))

import claims  # noqa: E402
from claims_runs import Plan, Series, Validation  # noqa: E402
from claims_tables import first_at_most, steps_needed, write_results  # noqa: E402


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(yaml.safe_load((LAUNCH / "claims.yaml").read_text(encoding="utf-8")), tmp_path)


def make_run(plan: Plan, series: Series, rate: float, errors: list[float]) -> None:
    """A finished run with these validation errors, ten steps apart."""
    folder = plan.run(series, rate)
    Outcome("finished").write(folder)
    lines = [{"kind": "train", "step": 5, "loss": 1.0}]
    lines += [{"kind": "validate", "step": 10 * (i + 1), "primary": e} for i, e in enumerate(errors)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_test(plan: Plan, series: Series, **errors: float) -> None:
    file = plan.test_file(series)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({f"{series.target}/{name}": value for name, value in errors.items()}))


def test_configurations_load(plan: Plan) -> None:
    """All of them, and both sides of a comparison differ only in where they start and lie."""
    for variant in plan.settings["variants"]:
        ((verb, file),) = plan.pretraining(variant)
        assert verb == "pretrain"
        load_pretrain(Path(file), [])
    seen: dict[str, dict[str, Any]] = {}
    for series in plan.series():
        if series.seed == 0:
            ((verb, *files),) = plan.finetuning(series)
            assert verb == "finetune"
            assert len(files) == len(plan.rates(series) or ())
            for file in files:
                load_finetune(Path(file), [])
            seen[f"{series.target} {series.start}"] = yaml.safe_load(Path(files[0]).read_text())
    for target in plan.settings["targets"]:
        scratch, pretrained = seen[f"{target} scratch"], seen[f"{target} pre-trained"]
        differing = {key for key in scratch | pretrained if scratch.get(key) != pretrained.get(key)}
        assert differing == {"run", "from", "model"}
        assert scratch["run"] | {"dir": ""} == pretrained["run"] | {"dir": ""}
        assert "test" not in scratch["tasks"][target]["split"]["files"]


def test_what_differs_between_variants(plan: Plan) -> None:
    configs = {v: load_pretrain(Path(plan.pretraining(v)[0][1]), []).config for v in plan.settings["variants"]}
    assert {task.forces.loss for task in configs["atom-loss"].tasks.values() if task.forces} == {"atom"}
    assert {task.forces.loss for task in configs["joint"].tasks.values() if task.forces} == {"structure"}
    assert configs["temperature-1"].sampling.temperature == 1.0
    assert set(configs["joint"].tasks) - set(configs["no-molecules"].tasks) == {"qm7x"}
    assert configs["joint-smaller"].model != configs["joint"].model


def test_later_seeds_take_the_first_seeds_rate(plan: Plan) -> None:
    first, later = Series("homo", "scratch", 0), Series("homo", "scratch", 1)
    for rate, error in zip(plan.settings["rates"], (0.3, 0.1, 0.2), strict=True):
        assert plan.best_rate(first) is None
        assert plan.rates(later) is None
        make_run(plan, first, rate, [1.0, error])
    assert plan.best_rate(first) == plan.settings["rates"][1]
    assert plan.rates(later) == [plan.settings["rates"][1]]


def test_jobs_wait_for_weights_and_rates(plan: Plan) -> None:
    jobs = {job.name: job for job in claims.jobs(plan)}
    assert len(jobs) == len(list(claims.jobs(plan)))
    assert jobs["homo-scratch-seed0"].ready()
    assert not jobs["homo-scratch-seed0-test"].ready()
    assert not jobs["homo-scratch-seed1"].ready()
    assert not jobs["homo-pre-trained-seed0"].ready()
    Outcome("finished").write(plan.bundle("joint").parent)
    assert jobs["pretrain-joint"].done()
    assert jobs["homo-pre-trained-seed0"].ready()


def test_tables_of_some_finished_runs(plan: Plan) -> None:
    """Chosen by validation, not by test; targets and studies without numbers are left out."""
    rates = plan.settings["rates"]
    for start, errors, test in (("scratch", (0.5, 0.4, 0.6), 2.0), ("pre-trained", (0.3, 0.45, 0.5), 1.5)):
        series = Series("homo", start, 0)
        for rate, error in zip(rates, errors, strict=True):
            make_run(plan, series, rate, [1.0, 0.35 if error == 0.3 else 0.9, error])
        make_test(plan, series, homo_mae=test)
    text = write_results(plan)
    assert "-25.0 %" in text
    assert f"{rates[0]:g}; {rates[1]:g}" in text
    assert "phonons" not in text
    numbers = json.loads((plan.out / "claims.json").read_text())
    assert [run["chosen"] for run in numbers["runs"]] == [rates[1], rates[0]]
    (row,) = numbers["tables"]["(c) Steps to scratch's best validation error"][1]
    assert row == ["homo", 0, 30, 30, 20, "1.5"]
    assert "1 of 1 better" in numbers["summary"][0]
    assert (plan.out / "claims.png").is_file()
    assert (plan.out / "claims_curves.png").is_file()


def test_steps_needed() -> None:
    run = Validation((10, 20, 30), (3.0, 1.0, 2.0))
    assert steps_needed(run) == 20
    assert first_at_most(run, 2.0) == 20
    assert first_at_most(run, 3.5) == 10
    assert first_at_most(run, 0.5) is None
