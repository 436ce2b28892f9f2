"""The GPU suite: it goes on after failures, keeps its limits, compares curves, and runs with torch and numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from jmp_ds.bench.batches import load_batch
from jmp_ds.bench.suite.__main__ import main, run
from jmp_ds.bench.suite.curves import potential, setting, standardised
from jmp_ds.bench.suite.plan import DEADLINE, Part, gpu_parts, trial_parts
from jmp_ds.bench.suite.spread import compare, read_curves, smoothed
from jmp_ds.bench.suite.spread import main as spread_main
from jmp_ds.bench.suite.steps import attempt, requests, row
from jmp_ds.bench.suite.summary import write_summary
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure

ROOT = Path(__file__).resolve().parents[2]

#: Hides every package but torch, triton, numpy and the standard library from processes that find it on their path.
HIDDEN = """
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
KEPT = {"torch", "torchgen", "functorch", "numpy", "triton", "sympy", "mpmath", "typing_extensions", "jinja2", "filelock",
        "fsspec", "networkx", "markupsafe", "jmp_ds", "jmp_kernels", "setuptools", "_distutils_hack"}
BANNED = set(packages_distributions()) - KEPT
assert {"ase", "pydantic", "vesin", "rich", "typer", "matplotlib", "torch_geometric", "pytest"} <= BANNED
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name.partition(".")[0] in BANNED else find(name, path, target)
)
"""


def part(name: str, code: str, limit: float = 20.0, group: str = "", needs: str = "") -> Part:
    return Part(name, (sys.executable, "-S", "-c", code), limit, group or name, needs=needs)


# --- the driver -------------------------------------------------------------------------------------------------------


def test_the_suite_goes_on_after_a_failure(tmp_path: Path) -> None:
    parts = [
        part("bad", "print('oh'); raise SystemExit(3)"),
        part("good", "pass"),
        part("away", "pass", needs="no_such"),
    ]
    outcomes = run(parts, tmp_path, 60.0)
    assert [(o.name, o.state) for o in outcomes] == [("bad", "failed"), ("good", "ok"), ("away", "not run")]
    assert outcomes[0].note == "exit code 3"
    assert (tmp_path / "logs" / "bad.log").read_text() == "oh\n"


def test_a_part_is_ended_at_its_limit_and_nothing_starts_after_the_deadline(tmp_path: Path) -> None:
    begin = time.monotonic()
    parts = [part("long", "import time; time.sleep(60)", limit=0.5), part("late", "pass")]
    outcomes = run(parts, tmp_path, 1.2)
    assert [o.state for o in outcomes] == ["out of time", "out of time"]
    assert time.monotonic() - begin < 30


def test_parts_of_a_group_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for a file that the other makes."""
    code = """
import pathlib, time
pathlib.Path({mine!r}).touch()
end = time.monotonic() + 20
while not pathlib.Path({other!r}).exists():
    assert time.monotonic() < end
    time.sleep(0.01)
"""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    parts = [part("one", code.format(mine=a, other=b), 30, "g"), part("two", code.format(mine=b, other=a), 30, "g")]
    assert [o.state for o in run(parts, tmp_path, 60.0)] == ["ok", "ok"]


def test_the_plan_ends_within_nine_minutes(tmp_path: Path) -> None:
    assert DEADLINE < 540
    for parts in (gpu_parts(tmp_path, ROOT / "tests" / "kernels"), trial_parts(tmp_path)):
        names = [p.name for p in parts]
        assert len(set(names)) == len(names)
        groups = list(dict.fromkeys(p.group for p in parts))
        limits = [max(p.limit for p in parts if p.group == group) for group in groups]
        assert sum(limits[:-1]) <= DEADLINE, "the last part at least begins"


def test_without_a_gpu_the_suite_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([str(tmp_path)]) == 2
    assert "--cpu-smoke" in capsys.readouterr().err


def test_the_summary_of_a_suite_in_which_all_failed(tmp_path: Path) -> None:
    outcomes = run([part("bad", "raise SystemExit(1)")], tmp_path, 20.0)
    write_summary(tmp_path, outcomes, gpu=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["parts"][0]["state"] == "failed"
    assert summary["steps"] == []
    assert summary["curves"] is None
    assert summary["machine"]["torch"] == torch.__version__


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(between_seeds: float, between_forms: float) -> dict[str, np.ndarray]:
    """Losses whose logarithms differ by these amounts."""
    fall = np.exp(-np.arange(80) / 40)
    return {
        f"{form}/{seed}": fall * np.exp(between_forms * k + between_seeds * seed)
        for k, form in enumerate(("torch/float32", "triton/bf16"))
        for seed in range(3)
    }


def test_spreads_are_those_of_the_logarithms() -> None:
    found = compare(curves(between_seeds=0.1, between_forms=0.05))
    assert found.seeds == pytest.approx(0.2)
    assert found.backends == pytest.approx(0.05)
    assert found.closer
    assert found.runs == 6
    assert not compare(curves(between_seeds=0.01, between_forms=0.05)).closer


def test_nothing_to_compare_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="1 backends and precisions, 1 seeds"):
        compare({"torch/float32/0": np.ones(40)})
    made = curves(0.1, 0.05)
    del made["triton/bf16/2"]
    with pytest.raises(ValueError, match="no curve of triton/bf16/2"):
        compare(made)
    assert spread_main([str(tmp_path)]) == 1
    assert "cannot be compared" in capsys.readouterr().err


def test_curves_that_differ_end_in_an_error(tmp_path: Path) -> None:
    for file, scale in (("torch", 0.05), ("triton", 0.5)):
        made = {name: x for name, x in curves(0.1, scale).items() if name.startswith(file)}
        lines = [",".join(["step", *made])]
        lines += [",".join(f"{v:.8g}" for v in [k, *(x[k] for x in made.values())]) for k in range(80)]
        (tmp_path / f"curves-{file}.csv").write_text("\n".join(lines) + "\n")
    assert len(read_curves(tmp_path)) == 6
    assert spread_main([str(tmp_path)]) == 1
    assert not json.loads((tmp_path / "curves.json").read_text())["closer"]


def test_smoothing_shortens_by_the_window() -> None:
    assert len(smoothed(np.ones(200))) == 181
    assert len(smoothed(np.ones(16))) == 13
    assert np.allclose(smoothed(np.full(40, np.e)), 1.0)


def test_forces_are_the_derivative_of_the_energy() -> None:
    rng = np.random.default_rng(0)
    atoms = Structure(pos=2 * rng.standard_normal((4, 3)), atomic_numbers=np.array([1, 6, 8, 7]))
    step = 1e-5
    for atom, axis in ((0, 0), (2, 1), (3, 2)):
        energies = []
        for sign in (1, -1):
            pos = atoms.pos.copy()
            pos[atom, axis] += sign * step
            energies.append(potential(Structure(pos=pos, atomic_numbers=atoms.atomic_numbers))["energy"])
        slope = (energies[0] - energies[1]) / (2 * step)
        assert potential(atoms)["forces"][atom, axis] == pytest.approx(-slope, rel=1e-6)


def test_labels_are_standardised() -> None:
    labels = standardised([potential(s) for s in load_batch("ani64").structures[:8]])
    energies = np.array([own["energy"] for own in labels])
    forces = np.concatenate([np.ravel(own["forces"]) for own in labels])
    assert energies.mean() == pytest.approx(0, abs=1e-12)
    assert (energies.std(), forces.std()) == pytest.approx((1, 1))


def test_every_batch_of_the_curves_has_labels() -> None:
    where = setting(load_batch("ani64"), torch.device("cpu"), 1)
    assert len(where.batches) == 4
    assert all(counts == {"energy": 16, "forces": 16} for counts in where.counts)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_the_targets_come_first() -> None:
    first = [(r.batch, r.model, r.precision) for r in requests("cuda")][:6]
    assert {batch for batch, _, _ in first} == {"oc20x8", "slab225x4", "ani64"}
    assert {model for _, model, _ in first} == {"jmp-s", "jmp-l"}
    assert {precision for _, _, precision in first} == {"bf16"}


def test_what_memory_does_not_hold_is_measured_without_its_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(request: object) -> dict[str, object]:
        if request.compare:  # type: ignore[attr-defined]
            raise UserError("this step needs about 900 GiB")
        return {"step_over_floor": 1.5}

    monkeypatch.setattr("jmp_ds.bench.suite.steps.measure", measured)
    asked = next(requests("cpu"))
    assert attempt(asked) == {"step_over_floor": 1.5, "enumerated_left_out": "this step needs about 900 GiB"}

    def refused(request: object) -> dict[str, object]:
        raise UserError("no")

    monkeypatch.setattr("jmp_ds.bench.suite.steps.measure", refused)
    found = attempt(asked)
    assert found["error"] == "no"
    assert row(found | {"tf32": False})["note"] == "no"


# --- all of it --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_trial_runs_with_torch_triton_and_numpy_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    run_ = subprocess.run(
        ["bash", str(ROOT / "launch" / "gpu_suite.sh"), str(tmp_path / "out"), "--cpu-smoke"],
        env={"PYTHONPATH": str(tmp_path), "PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    out = tmp_path / "out"
    logs = "\n".join(file.read_text()[-2000:] for file in (out / "logs").glob("*.log"))
    assert run_.returncode == 0, run_.stdout + run_.stderr + logs
    summary = json.loads((out / "summary.json").read_text())
    assert all(p["state"] in ("ok", "not run") for p in summary["parts"])
    assert summary["steps"][0]["speedup_over_enumerated"] > 0
    assert summary["curves"]["closer"]
    assert "matplotlib is not installed" in (out / "logs" / "curves.log").read_text()
