"""Recipes over folds and seeds: what runs, what is not repeated, and the tables."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_up_targets import SMALL, write_data
from typer.testing import CliRunner

from jmp_ds import benchmark
from jmp_ds.benchmark import Benchmark, Series, parse_numbers
from jmp_ds.cli.app import app
from jmp_ds.cli.train_verbs import STOPPED
from jmp_ds.config.described import values_of
from jmp_ds.config.targets import find_target, published_results, targets
from jmp_ds.errors import UserError
from jmp_ds.report import Sample, comparison_table
from jmp_ds.training.outcome import Outcome, read_outcome
from jmp_ds.training.stopping import Deadline


def asked(folder: Path, *names: str, **changes: object) -> Benchmark:
    base = Benchmark(
        names=names,
        overrides=SMALL,
        data=folder / "data",
        out=folder / "out",
        source="scratch",
        folds=(0, 1),
        seeds=(0, 1),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One target over two folds and two seeds, interrupted in the second run and continued."""
    folder = tmp_path_factory.mktemp("benchmark")
    write_data(targets()["matbench/jdft2d"], folder / "data", folds=(0, 1))
    mine = asked(folder, "matbench/jdft2d")
    runs = mine.runs()
    seen: list[Deadline] = []

    def reached(deadline: Deadline) -> bool:
        seen.append(deadline)
        return deadline is not seen[0] and seen.count(deadline) == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Deadline, "reached", property(reached))
        assert mine.carry_out(runs) == Series(runs[1].folder)
    assert [run.finished for run in runs] == [True, False, False, False]
    kept = (runs[0].folder / "report" / "metrics.json").stat().st_mtime_ns
    begun = read_outcome(runs[1].folder)
    assert begun is not None
    assert begun.step > 0
    assert mine.carry_out(runs) == Series()
    assert all(run.finished for run in runs)
    assert (runs[0].folder / "report" / "metrics.json").stat().st_mtime_ns == kept
    return folder


def test_it_is_the_same_as_without_an_interruption(done: Path, tmp_path: Path) -> None:
    mine = replace(asked(done, "matbench/jdft2d:0"), seeds=(1,), out=tmp_path)
    (run,) = mine.runs()
    assert mine.carry_out([run]) == Series()
    before = asked(done, "matbench/jdft2d").runs()[1]
    assert (before.fold, before.seed) == (0, 1)
    assert run.result("jdft2d/y_mae") == before.result("jdft2d/y_mae")


def test_tables_and_picture(done: Path) -> None:
    mine = asked(done, "matbench/jdft2d")
    runs = mine.runs()
    text = mine.report(runs)
    test = [run.result("jdft2d/y_mae")["test"] for run in runs]
    assert len(set(test)) == 4
    values = json.loads((done / "out" / "benchmark.json").read_text())
    assert values["targets"][0]["mean"] == pytest.approx(np.mean(test))
    assert values["targets"][0]["deviation"] == pytest.approx(np.std(test, ddof=1))
    assert [(r["fold"], r["seed"], r["status"]) for r in values["runs"]] == [
        (fold, seed, "finished") for fold in (0, 1) for seed in (0, 1)
    ]
    (row,) = list(csv.DictReader((done / "out" / "benchmark.csv").open()))
    assert (row["recipe"], row["runs"], row["unit"]) == ("matbench/jdft2d", "4 of 4", "eV")
    assert row["test"] == f"{np.mean(test):.4g} ± {np.std(test, ddof=1):.2g}"
    assert (row["published jmp-s"], row["published jmp-l"]) == ("0.03016", "")
    assert row["test"] in text
    assert (done / "out" / "benchmark.md").read_text() == text
    assert (done / "out" / "benchmark.png").stat().st_size > 5000


def test_a_single_fold_stands_beside_its_own_published_number(done: Path, tmp_path: Path) -> None:
    file = tmp_path / "published.yaml"
    file.write_text("matbench/jdft2d: {jmp-l: 0.125}\nmatbench/jdft2d:1: {jmp-l: 0.25}\n")
    for names, expected in (
        (("matbench/jdft2d",), "0.125"),
        (("matbench/jdft2d:1",), "0.25"),
        (("matbench/jdft2d:0",), "0.125"),
    ):
        mine = asked(done, *names, published=file, out=tmp_path / "out")
        assert mine.report(mine.runs()).splitlines()[2].split("|")[-2].strip() == expected


def test_what_is_known_of_published_results() -> None:
    """Every row names its source, and units are the recipes': energies in eV, so none of these is as large as one."""
    layer = yaml.safe_load((resources.files("jmp_ds") / "recipes/published_results.yaml").read_text())
    assert all(set(row) - {"source"} and row["source"] for row in layer.values())
    known = published_results()
    assert set(known) == set(layer)
    assert len({name.partition(":")[0] for name in known}) == 22
    for name, row in known.items():
        target, _ = find_target(name)
        unit = values_of(target)["unit"]
        assert (
            all(value < 0.1 for value in row.values()) or unit != "eV" or name.startswith(("matbench/mp-gap", "qmof"))
        )
        assert row.get("jmp-l", 0.0) <= row.get("jmp-s", math.inf), name


def test_published_results_of_ones_own(done: Path, tmp_path: Path) -> None:
    file = tmp_path / "published.yaml"
    file.write_text("matbench/jdft2d: {jmp-l: 0.125, source: a paper}\n")
    mine = asked(done, "matbench/jdft2d", published=file, out=tmp_path / "out")
    assert "0.125" in mine.report(mine.runs())
    for text in (
        "matbench/jdft2d: {jmp-m: 1.0}",
        "matbench/jdft2d: {jmp-l: low}",
        "matbench/jdft2d: 3",
        "qm9/hom: {jmp-l: 1}",
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=r"give numbers under jmp-s and jmp-l|no such target"):
            mine.carry_out(mine.runs())


def test_finished_runs_of_another_configuration_are_not_taken(done: Path) -> None:
    other = asked(done, "matbench/jdft2d", overrides=(*SMALL, "train.optimizer.lr=1e-3"))
    with pytest.raises(UserError, match=r"another configuration \(train\.optimizer\.lr\)"):
        other.carry_out(other.runs())


def test_the_verb_reports_without_running(done: Path) -> None:
    words = ["matbench/jdft2d", *SMALL, "--data", str(done / "data"), "--out", str(done / "out")]
    result = CliRunner().invoke(app, ["benchmark", *words, "--folds", "0-2", "--seeds", "0,1", "--report-only"])
    assert result.exit_code == 0, result.output
    assert "4 of 6" in result.output


def test_a_stop_has_its_exit_code(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "run_finetune", lambda runs: [Outcome("stopped", "asked")])
    words = ["matbench/jdft2d", *SMALL, "--data", str(done / "data"), "--out", str(done / "elsewhere")]
    assert CliRunner().invoke(app, ["benchmark", *words]).exit_code == STOPPED


def test_a_run_that_fails_does_not_end_the_series(done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = []

    def fails(runs: object) -> list[Outcome]:
        tried.append(runs)
        if len(tried) == 1:
            raise UserError("the loss is not finite")
        return [Outcome("finished")]

    monkeypatch.setattr(benchmark, "run_finetune", fails)
    mine = asked(done, "matbench/jdft2d:1", out=tmp_path)
    assert mine.carry_out(mine.runs()) == Series(None, ("matbench/jdft2d fold 1 seed 0",))
    assert len(tried) == 2
    tried.clear()
    words = ["matbench/jdft2d", *SMALL, "--data", str(done / "data"), "--out", str(tmp_path / "verb")]
    result = CliRunner().invoke(app, ["benchmark", *words])
    assert result.exit_code == 1
    assert "1 runs failed: matbench/jdft2d fold 0 seed 0" in result.output


def test_what_is_missing_is_told_before_the_first_run(tmp_path: Path) -> None:
    mine = asked(tmp_path, "matbench/phonons", "qm9/homo")
    with pytest.raises(UserError, match=r"no store .*matbench-phonons; make it with `jmp-ds data convert`"):
        mine.carry_out(mine.runs())
    write_data(targets()["matbench/phonons"], tmp_path / "data", folds=(0,))
    with pytest.raises(UserError, match=r"matbench-phonons\.fold1/train\.npy.*--published matbench --fold 1`"):
        mine.carry_out(mine.runs())
    write_data(targets()["matbench/phonons"], tmp_path / "data", folds=(1,))
    write_data(targets()["qm9/homo"], tmp_path / "data")
    mine = replace(mine, overrides=("model.preset=tiny",))
    with pytest.raises(UserError, match=r"layerwise_lr\.blocks"):
        mine.carry_out(mine.runs())
    assert not (tmp_path / "out").exists()


def test_families_stand_for_their_targets(tmp_path: Path) -> None:
    runs = asked(tmp_path, "qm9", "qm9/homo", "matbench/phonons", "matbench/jdft2d:3").runs()
    names = [(run.target.name, run.fold, run.seed) for run in runs]
    assert len(names) == len(set(names)) == (12 + 2 + 1) * 2
    assert ("matbench/jdft2d", 3, 1) in names
    assert len({run.folder for run in runs}) == len(runs)
    with pytest.raises(UserError, match="did you mean"):
        asked(tmp_path, "qm9/homos").runs()
    with pytest.raises(UserError, match="at least one"):
        asked(tmp_path).runs()


@pytest.mark.parametrize(("text", "numbers"), [("0-2", (0, 1, 2)), ("3", (3,)), ("0, 2,4-5", (0, 2, 4, 5))])
def test_lists_of_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_numbers(text, "--seeds") == numbers


@pytest.mark.parametrize("text", ["", "a", "2-1", "1-", "-1"])
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        parse_numbers(text, "--seeds")


def test_published_numbers_stand_beside() -> None:
    sample = Sample("a/b", "x_mae", "eV", 3, [1.0, 2.0], [], {"jmp-l": 0.5})
    header, ((*_, jmp_s, jmp_l),) = comparison_table([sample])
    assert header[-1] == "published jmp-l"
    assert (jmp_s, jmp_l) == ("", "0.5")
    single = Sample("a/b", "x_mae", "eV", 3, [1.0], [], {})
    none = Sample("a/b", "x_mae", "eV", 3, [], [], {})
    assert [row[5] for row in comparison_table([single, none])[1]] == ["1", ""]
