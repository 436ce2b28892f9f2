"""Export: a bundle with its card, former versions, and what loading does without."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inference.using import bundle_with, task
from safetensors.torch import save_file
from typer.testing import CliRunner

from jmp_ds.bundle import Bundle, load_bundle, save_bundle
from jmp_ds.bundle_versions import VERSION, migrate
from jmp_ds.cli.app import app
from jmp_ds.errors import UserError
from jmp_ds.graphs.settings import FewerNeighbors, GraphSettings
from jmp_ds.inference.card import export, read_card
from jmp_ds.inference.elements import known_elements


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def bundle() -> Bundle:
    data = {"gradient": {"level_of_theory": "PBE", "licence": "CC BY 4.0", "citation": "Someone 2020", "secret": "x"}}
    story = {"jmp_ds": "0.1.0", "torch": "2.13", "weights": "ema", "date": "2026-01-01", "data": data}
    return replace(bundle_with(task(std=2.0), task("direct", kind="direct")), provenance=story)


@pytest.fixture
def run_folder(bundle: Bundle, tmp_path: Path) -> Path:
    """What training leaves: a final bundle and a report."""
    save_bundle(bundle, tmp_path / "run" / "final")
    (tmp_path / "run" / "report").mkdir()
    metrics = {"test": {"gradient/energy_mae": 0.0123, "gradient/forces_mae": 45.6}}
    (tmp_path / "run" / "report" / "metrics.json").write_text(json.dumps({"model": "final", "metrics": metrics}))
    return tmp_path / "run"


def test_fewer_neighbors_of_larger_structures_are_told(tmp_path: Path) -> None:
    """By `show`, and by the card together with the cap at which energies jump."""
    steps = (FewerNeighbors(above=200, max_neighbors=10), FewerNeighbors(above=300, max_neighbors=5))
    graph = GraphSettings(cutoff=5.0, max_neighbors=30, fewer_neighbors=steps)
    save_bundle(bundle_with(task(graph=graph)), tmp_path / "b")
    assert "M=30 (10 above 200 atoms, 5 above 300)" in " ".join(run("show", tmp_path / "b").stdout.split())
    card = export(tmp_path / "b", tmp_path / "out")["tasks"]["gradient"]
    assert card["conserves_energy"].startswith(
        "up to the cap: where an atom has more than 8 (2 above 200 atoms, 1 above"
    )
    text = (tmp_path / "out" / "README.md").read_text()
    assert "5 Å, 30 (10 above 200 atoms, 5 above 300) neighbours" in text


def test_the_card_says_what_a_user_must_know(run_folder: Path, tmp_path: Path) -> None:
    result = run("export", run_folder, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "2 tasks, errors on test" in result.stdout
    card = read_card(tmp_path / "out")
    assert card is not None
    own = card["tasks"]["gradient"]
    assert own["predicts"] == {"energy": "eV", "forces": "eV/Å", "gap": "eV", "stress": "eV/Å³, ASE's sign"}
    assert own["elements"] == ["H", "C", "N", "O", "Cu"]
    assert own["references_eV"]["O"] == -2041.25
    assert own["data"] == {"level_of_theory": "PBE", "licence": "CC BY 4.0", "citation": "Someone 2020"}
    assert own["graph"]["cutoff"] == 5.0
    assert own["normalization"]["energy"] == {"mean": -3.0, "std": 2.0}
    assert "stress" not in card["tasks"]["direct"]["predicts"]
    assert card["tasks"]["direct"]["conserves_energy"].startswith("no:")
    assert card["errors"]["test"]["gradient/forces_mae"] == {"value": 45.6, "unit": "meV/Å"}
    assert card["versions"]["torch"] == "2.13"
    text = (tmp_path / "out" / "README.md").read_text()
    for expected in ("licence of the data: CC BY 4.0", "| gradient/energy_mae | 0.0123 | eV |", "| O | -2041.250000 |"):
        assert expected in text


def test_errors_are_those_of_the_exported_bundle(run_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    """The report of fine-tuning is about the best weights, not the last."""
    better = replace(bundle, provenance={**bundle.provenance, "date": "that of the best"})
    save_bundle(better, run_folder / "best")
    export(run_folder, tmp_path / "last")
    assert load_bundle(tmp_path / "last").provenance.get("date") == bundle.provenance.get("date")
    report = run_folder / "report" / "metrics.json"
    report.write_text(report.read_text().replace('"final"', '"best"'))
    card = export(run_folder, tmp_path / "out")
    assert load_bundle(tmp_path / "out").provenance["date"] == "that of the best"
    assert card["errors"]["test"]["gradient/forces_mae"]["value"] == 45.6
    report.unlink()
    assert export(run_folder, tmp_path / "out")["errors"] == {}


def test_show_prints_the_card(run_folder: Path, tmp_path: Path) -> None:
    export(run_folder, tmp_path / "out")
    shown = run("show", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    for expected in ("Model card", "licence of the data: CC BY 4.0", "gradient/energy_mae", "cutoff 5 Å"):
        assert expected in shown.stdout
    assert "Model card" not in run("show", run_folder).stdout


def test_an_exported_bundle_is_the_bundle(bundle: Bundle, run_folder: Path, tmp_path: Path) -> None:
    export(run_folder, tmp_path / "out")
    read = load_bundle(tmp_path / "out")
    assert (read.config, read.tasks, read.elements) == (bundle.config, bundle.tasks, bundle.elements)
    assert all(torch.equal(read.state[k], x) for k, x in bundle.state.items())
    export(run_folder / "final", tmp_path / "out")  # replaced as a whole; a bundle alone has no errors to tell
    card = read_card(tmp_path / "out")
    assert card is not None
    assert card["errors"] == {}


def test_errors_from_evaluate(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"gradient/energy_mae": 1.5}))
    card = export(run_folder / "final", tmp_path / "out", tmp_path / "metrics.json")
    assert card["errors"] == {"evaluation": {"gradient/energy_mae": {"value": 1.5, "unit": "eV"}}}
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match="does not hold errors by name"):
        export(run_folder / "final", tmp_path / "out", tmp_path / "other.json")
    with pytest.raises(UserError, match="no such file"):
        export(run_folder / "final", tmp_path / "out", tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="neither a bundle nor a run folder"):
        export(tmp_path, tmp_path / "out")


def test_a_bundle_of_version_1(tmp_path: Path) -> None:
    """Written by hand as version 1 wrote it: no elements, which references tell."""
    bundle = bundle_with(task(), replace(task("plain"), normalization={}))
    path = tmp_path / "old"
    path.mkdir()
    save_file({name: x.contiguous() for name, x in bundle.state.items()}, path / "model.safetensors")
    spec = {
        "format": "jmp-ds bundle",
        "version": 1,
        "model": bundle.config.to_dict(),
        "tasks": [own.to_dict() for own in bundle.tasks],
        "provenance": {"jmp_ds": "0.1.0", "weights": "ema"},
    }
    (path / "bundle.json").write_text(json.dumps(spec))
    read = load_bundle(path)
    assert read.elements == {"gradient": (1, 6, 7, 8, 29)}
    assert known_elements(read, read.task("plain")) is None
    assert (read.tasks, read.provenance["weights"]) == (bundle.tasks, "ema")
    save_bundle(read, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "bundle.json").read_text())["version"] == VERSION == 2
    assert load_bundle(tmp_path / "new").elements == read.elements
    assert migrate(spec) != spec
    assert spec["version"] == 1  # as it was


BLOCKED = """
import sys
for name in ("deepspeed", "triton", "lmdb", "torch_geometric", "tensorboard", "pydantic"):
    sys.modules[name] = None  # as if it were not installed
from ase.build import molecule
from jmp_ds.inference.calculator import JMPCalculator
from jmp_ds.inference.predict_file import predict_file
atoms = molecule("H2O")
atoms.calc = JMPCalculator(sys.argv[1], "gradient")
print(atoms.get_potential_energy(), atoms.get_forces().shape)
atoms.write(sys.argv[2] + "/in.xyz")
print(predict_file(sys.argv[1], sys.argv[2] + "/in.xyz", sys.argv[2] + "/out.xyz", "gradient", show_progress=False))
"""


def test_a_bundle_is_used_without_what_training_needs(bundle: Bundle, tmp_path: Path) -> None:
    """In a fresh interpreter where deepspeed, triton, lmdb and others cannot be imported."""
    save_bundle(bundle, tmp_path / "bundle")
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "bundle"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "(3, 3)" in done.stdout
    assert (tmp_path / "out.xyz").exists()


def test_the_verbs_on_files(bundle: Bundle, tmp_path: Path) -> None:
    """relax, md, predict and evaluate from the command line."""
    from ase.build import molecule
    from ase.io import read, write

    save_bundle(bundle, tmp_path / "bundle")
    write(tmp_path / "in.xyz", [molecule("H2O"), molecule("CH4")])
    common = (tmp_path / "bundle", tmp_path / "in.xyz")
    told = run("relax", *common, tmp_path / "relaxed.xyz", "--task", "gradient", "--steps", 2, "--optimizer", "bfgs")
    assert told.exit_code == 0, told.output
    assert "2 structures" in told.stdout
    told = run("md", *common, tmp_path / "md.xyz", "--steps", 2, "--every", 1, "--task", "direct")
    assert told.exit_code == 0, told.output
    assert len(read(tmp_path / "md.xyz", ":")) == 6
    told = run("predict", *common, tmp_path / "f.npz", "--features", "--task", "direct")
    assert told.exit_code == 0, told.output
    write(tmp_path / "labelled.xyz", read(tmp_path / "relaxed.xyz", ":"))
    told = run(
        "evaluate", tmp_path / "bundle", tmp_path / "labelled.xyz", "--task", "gradient", "--report", tmp_path / "r"
    )
    assert told.exit_code == 0, told.output
    assert "gradient/forces_mae" in told.stdout
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["gradient/energy_mae"] < 1e-2
    write(tmp_path / "silane.xyz", molecule("SiH4"))
    told = run(
        "md", tmp_path / "bundle", tmp_path / "silane.xyz", tmp_path / "x.xyz", "--steps", 2, "--task", "gradient"
    )
    assert told.exit_code == 2
    assert "Si: not among the elements" in told.stderr
    assert "--allow-unseen" in told.stderr
