"""`jmp-ds plan` and `jmp-ds bench prediction` from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_stores import write_store
from typer.testing import CliRunner, Result

from jmp_ds.cli.app import app

FILES = Path(__file__).parents[2] / "docs/benchmarks/plan-cpu"
SLAB = FILES / "jmp-s-slab98-float32-direct-recompute-off.json"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def test_a_plan_is_told_written_and_drawn(tmp_path: Path) -> None:
    options = ["--gpus", "64", "--edges", "20000", "--structures", "120e6", "--epochs", "2"]
    files = ["--json", tmp_path / "plan.json", "--plot", tmp_path / "plan.png"]
    result = run("plan", "--model", "jmp-xl", *options, *files)
    assert result.exit_code == 0, result.output
    for words in ("memory per device in GiB", "time of an optimiser step in ms", "largest structure", "not measured"):
        assert words in result.output
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["parameters"] == pytest.approx(1.05e9, rel=0.01)
    assert len(found["settings"]) == 8
    assert found["ds_config"] in result.output
    assert set(found["devices"]) == {"1", "8", "64", "512", "4096"}
    assert found["best"]["peak_bytes"] <= found["best"]["usable_bytes"]
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_a_store_is_counted_with_fewer_neighbors_of_its_larger_structures(tmp_path: Path) -> None:
    write_store(tmp_path / "store", seed=1)
    words = ["plan", "--model", "tiny", "--store", tmp_path / "store", "--cutoff", "5", "--max-neighbors", "6"]
    counts = {}
    for name, more in {"all alike": [], "fewer": ["--fewer-neighbors", "2:3", "--fewer-neighbors", "3:1"]}.items():
        result = run(*words, *more, "--json", tmp_path / "plan.json")
        assert result.exit_code == 0, result.output
        counts[name] = json.loads((tmp_path / "plan.json").read_text())["counts"]
    assert counts["fewer"]["atoms"] == counts["all alike"]["atoms"]
    assert counts["fewer"]["main"] < counts["all alike"]["main"]


def test_offload_is_planned_where_nothing_fits_without(tmp_path: Path) -> None:
    few = ["--model", "jmp-xl", "--memory", "12", "--gpus", "1", "--edges", "1000", "--json", tmp_path / "p.json"]
    result = run("plan", *few, "--host-memory", "128")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["ds_config"], found["best"]["offload"]) == ("few_gpus_offload", "optimiser")
    assert 0 < found["best"]["host_bytes"] <= found["best"]["host_usable_bytes"]
    assert "Use few_gpus_offload: ZeRO stage 2" in result.output
    assert run("plan", *few, "--offload", "none").exit_code == 0
    assert json.loads((tmp_path / "p.json").read_text())["best"] is None
    run("plan", "--model", "jmp-s", "--gpus", "1", "--json", tmp_path / "p.json")
    settings = json.loads((tmp_path / "p.json").read_text())["settings"]
    assert {each["offload"] for each in settings} == {"none"}


def test_a_plan_on_measured_steps() -> None:
    others = [FILES / f"tiny-slab98-float32-direct-recompute-{on}.json" for on in ("on", "off")]
    measured = [part for path in [SLAB, *others] for part in ("--measured", path)]
    result = run("plan", "--model", "jmp-s", "--batch", "aspirin4", "--gpus", "1", "--precision", "float32",
                 "--memory", "16", *measured)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "(measured: fitted to 3 files" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "h300"], "--device: no device 'h300'; there are h200, h100"),
        (["--batch", "slab99"], "--batch: no batch 'slab99'; there are slab98"),
        (["--network", "pigeon"], "--network: no network 'pigeon'"),
        (["--edges", "0"], "--edges must be at least 1, got 0"),
        (["--epochs", "-1"], "--epochs must be a positive number, got -1.0"),
        (["--structures", "nan"], "--structures must be a positive number, got nan"),
        (["--gpus-per-node", "0"], "--gpus-per-node must be at least 1, got 0"),
        (["--measured", str(SLAB)], "give it in GiB with --memory"),
        (["--measured", str(SLAB), "--memory", "16"], "no file has precision bf16 (there is float32)"),
        (["--store", "absent"], "absent"),
        (
            ["--store", "absent", "--fewer-neighbors", "200"],
            "--fewer-neighbors 200: must be two whole numbers, ATOMS:M",
        ),
        (["--store", "absent", "--fewer-neighbors", "200:30"], "fewer than the 30 of smaller structures"),
    ],
)
def test_mistakes_are_one_line(options: list[str], message: str) -> None:
    result = run("plan", "--model", "tiny", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_predictions_beside_measurements() -> None:
    result = run("bench", "prediction", *sorted(FILES.glob("tiny*.json")), "--fit", SLAB)
    assert result.exit_code == 0, result.output
    assert "time, others: median" in result.output
