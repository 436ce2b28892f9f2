"""The command line: help, mistakes and their exit codes, verbs on stores and bundles."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ase.io
import pytest
import torch
import yaml
from ase import Atoms
from ase.io import write
from small_models import set_scales
from small_stores import write_finetune, write_pretrain
from typer.testing import CliRunner, Result

from jmp_ds.bundle import Bundle, load_bundle, save_bundle
from jmp_ds.cli.app import app
from jmp_ds.cli.train_verbs import divide
from jmp_ds.graphs import unbuilt
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.presets import preset
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Task

VERBS = [
    *("data", "pretrain", "finetune", "launch", "evaluate", "predict", "fit-scales", "import-jmp", "show", "plan"),
    *("doctor", "relax", "md", "export"),
]


def run(*arguments: str | Path) -> Result:
    """A verb in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def tiny_bundle(path: Path, *, fitted: bool = True) -> Path:
    """A bundle with one task `molecules`, of random weights."""
    torch.manual_seed(0)
    task = Task(
        name="molecules",
        graph=GraphSettings(cutoff=5.0, max_neighbors=6),
        energy=EnergyTarget(),
        forces=ForcesTarget(),
    )
    model = MultiTaskModel(preset("tiny"), [task])
    set_scales(model, 1.0 if fitted else 0.0)
    save_bundle(Bundle.of(model, {"weights": "random"}), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores, a bundle and configuration files that are all right."""
    folder = tmp_path_factory.mktemp("cli")
    write_pretrain(folder)
    write_finetune(folder, {"bundle": str(tiny_bundle(folder / "bundle"))})
    (folder / "file").write_text("not a folder")
    return folder


@pytest.mark.parametrize("verb", [*VERBS, "data demo", "data convert", "data stats", "data show", "data check"])
def test_every_verb_has_help(verb: str) -> None:
    result = run(*verb.split(), "--help")
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output
    assert len(result.output) > 300


def test_both_programs_start_quickly_and_without_torch() -> None:
    """Help must not wait for torch or deepspeed."""
    code = "import sys, jmp_ds.cli.app; print([m for m in ('torch', 'deepspeed', 'ase') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    module = subprocess.run([sys.executable, "-m", "jmp_ds.cli", "--help"], capture_output=True, text=True, check=False)
    assert module.returncode == 0
    assert all(verb in module.stdout for verb in VERBS)


def test_good_configurations_check(folder: Path) -> None:
    result = run("pretrain", folder / "pretrain.yaml", "--check")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout)["train"]["clip_norm"] == 1.0
    result = run("finetune", folder / "finetune.yaml", "--check")
    assert result.exit_code == 0, result.output
    assert not (folder / "run").exists()


def _spoil_deepspeed(folder: Path) -> str:
    (folder / "ds.json").write_text('{"zero_optimization": {"stage": 1}, "gradient_cliping": 1.0}')
    return f"engine.deepspeed={folder / 'ds.json'}"


def _stage_three(folder: Path) -> str:
    (folder / "ds3.json").write_text('{"zero_optimization": {"stage": 3}}')
    return f"engine.deepspeed={folder / 'ds3.json'}"


def _cut_off(folder: Path) -> str:
    shutil.copytree(folder / "molecules", folder / "cut", dirs_exist_ok=True)
    (folder / "cut" / "complete.json").unlink(missing_ok=True)
    return f"tasks.molecules.store={folder / 'cut'}"


def _unfitted(folder: Path) -> str:
    return f"from={tiny_bundle(folder / 'unfitted', fitted=False)}"


_FEWER = "tasks.molecules.graph.fewer_neighbors"
MISTAKES: list[tuple[str, str, str | Callable[[Path], str], str]] = [
    ("unknown key", "pretrain", "train.optimizer.learning_rate=1e-3", "train.optimizer.learning_rate: unknown key"),
    ("nearest name", "pretrain", "tasks.molecules.graph.cutof=5.0", "unknown key; did you mean 'cutoff'?"),
    ("wrong type", "pretrain", "train.epochs=many", "train.epochs: must be a valid integer"),
    ("text for a number", "pretrain", "run.seed='0'", "run.seed: must be a valid integer"),
    ("out of range", "pretrain", "train.ema=1.5", "train.ema: must be less than 1"),
    ("not a choice", "pretrain", "model.preset=jmp-m", "must be 'tiny', 'jmp-s', 'jmp-l', 'jmp-xl' or 'jmp-xxl'"),
    ("both clippings", "pretrain", "train={epochs: 1, clip_norm: 1.0, clip_value: 1.0}", "and `clip_value` both set"),
    ("both lengths", "pretrain", "train={epochs: 1, steps: 5}", "`epochs` and `steps` both set"),
    ("both batch rules", "pretrain", "sampling.batch={edges: 5, structures: 5}", "give either `edges` or `structures`"),
    ("no target", "pretrain", "tasks.slim={store: x}", "nothing to learn"),
    ("no store", "pretrain", "tasks.molecules.store=nowhere", "there is no store here"),
    ("store cut off", "pretrain", _cut_off, "was cut off while it was written"),
    ("no such label", "pretrain", "tasks.molecules.scalar={label: bandgap}", "'bandgap'; did you mean 'gap'?"),
    ("cutoff beyond the grid", "pretrain", "tasks.molecules.graph.cutoff=15.0", "exceeds the radial grid"),
    ("caps that grow", "pretrain", f"{_FEWER}=[{{above: 9, max_neighbors: 90}}]", "90 neighbours above 9 atoms must"),
    ("half a cap", "pretrain", f"{_FEWER}=[{{above: 9}}]", "fewer_neighbors.0.max_neighbors: is required, but missing"),
    ("unknown size", "pretrain", "model.overrides={num_block: 3}", "unknown size; did you mean 'num_blocks'?"),
    ("bad size", "pretrain", "model.overrides={num_blocks: 0}", "num_blocks must be at least 1"),
    ("no DeepSpeed file", "pretrain", "engine.deepspeed=nowhere.json", "engine.deepspeed: no file nowhere.json"),
    ("misspelt DeepSpeed key", "pretrain", _spoil_deepspeed, "did you mean gradient_clipping?"),
    ("run folder is a file", "pretrain", lambda f: f"run.dir={f / 'file'}", "is a file; name a folder"),
    ("no such metric", "pretrain", "validate.metric=molecules/force", "did you mean 'molecules/forces'?"),
    ("nothing validates", "pretrain", "train.early_stopping={patience: 3}", "needs validation structures"),
    ("bad task name", "pretrain", "tasks={a/b: {store: STORE, energy: {}}}", "must not be empty or contain a dot, a slash"),
    ("not an override", "pretrain", "train.epochs", "takes one configuration file"),
    ("gradient forces at ZeRO-3", "finetune", _stage_three, "ZeRO stage 3 cannot train forces that are gradients"),
    ("wrong number of blocks", "finetune", "layerwise_lr={blocks: [1.0]}", "the network has 2 interaction blocks"),
    ("copied task missing", "finetune", "from.heads=copy:oc20", "the bundle has no task 'oc20'"),
    ("kept task missing", "finetune", "from.heads=keep", "the bundle has no task 'target'"),
    ("no bundle", "finetune", "from=nowhere", "nowhere: no such bundle"),
    ("unfitted bundle", "finetune", _unfitted, "scale factors that are not fitted"),
    ("network told twice", "finetune", "model={preset: jmp-s}", "the bundle decides the network"),
    ("references of nothing", "pretrain", "tasks.molecules.references=keep", "nothing to keep: no head comes from a"),
    ("references of new heads", "finetune", "tasks.target.references=keep", "tasks.target.references: nothing to keep"),
    ("heads of nothing", "finetune", "from={scratch: true, heads: keep}", "`heads: keep` needs a bundle"),
    ("plateau in steps", "finetune", "train={steps: 5, schedule: {kind: warmup_cosine_plateau}}", "counts in epochs"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "change", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(
    folder: Path, verb: str, change: str | Callable[[Path], str], message: str
) -> None:
    """Before any work: the run folder is not even made."""
    text = change if isinstance(change, str) else change(folder)
    text = text.replace("STORE", str(folder / "molecules"))
    extra = [f"tasks.{name}.split={{train: 0.9}}" for name in ("molecules", "crystals") if "early_stopping" in text]
    result = run(verb, folder / f"{verb}.yaml", text, *extra)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("jmp-ds: ")
    assert result.stderr.count("\n") == 1
    assert not (folder / "run").exists()
    assert not (folder / "tuned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("run: {dir: x}\nrun: {dir: y}", "the same key twice"),
        ("", "run: is required, but missing"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    result = run("pretrain", file)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output
    assert str(file) in result.stderr


def test_missing_files_and_unknown_recipes(folder: Path) -> None:
    for arguments, message in [
        (["pretrain", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["pretrain", str(folder / "pretrain.yaml"), "--recipe", "publishd"], "did you mean 'published'?"),
        (["show", "nowhere"], "neither a bundle nor a run folder"),
        (["data", "show", "nowhere"], "there is no store here"),
        (["predict", "nowhere", "a.xyz", "b.xyz"], "no such bundle"),
    ]:
        result = run(*arguments)
        assert (result.exit_code, message in result.stderr) == (2, True), result.output


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def broken(path: Path) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("jmp_ds.cli.show.show_path", lambda path, console: broken(path))
    result = run("show", folder / "bundle")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_stores_are_shown_checked_and_counted(folder: Path) -> None:
    assert "24" in run("data", "show", folder / "molecules").output
    result = run("data", "check", folder / "molecules")
    assert (result.exit_code, "no problem found" in result.output) == (0, True)
    result = run("data", "stats", folder / "molecules")
    assert result.exit_code == 0
    assert (folder / "molecules" / "statistics.json").is_file()


def test_a_bundle_is_shown_and_evaluated(folder: Path, tmp_path: Path) -> None:
    shown = run("show", folder / "bundle")
    assert shown.exit_code == 0, shown.output
    assert "molecules" in shown.output
    result = run(
        "evaluate", folder / "bundle", folder / "molecules", "--report", tmp_path / "report", "--dtype", "float64"
    )
    assert result.exit_code == 0, result.output
    assert "molecules/energy_mae" in result.output
    assert (tmp_path / "report" / "parity.png").is_file()


def test_graphs_on_the_device_change_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions, errors and fitted scale factors are the same but for rounding; a third place is refused."""
    bundle, bare, store = folder / "bundle", tiny_bundle(tmp_path / "bare", fitted=False), folder / "molecules"
    write(tmp_path / "in.xyz", [Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])], format="extxyz")
    energies, metrics, states = [], [], []
    for place in ("host", "device"):
        files, options = (tmp_path / "in.xyz", tmp_path / f"{place}.xyz"), ("--graphs", place, "--dtype", "float64")
        for result in (
            run("predict", bundle, *files, "--task", "molecules", *options),
            run("evaluate", bundle, store, "--report", tmp_path / place, *options),
            run("fit-scales", bare, f"molecules={store}", "--output", tmp_path / f"fit-{place}", "--graphs", place),
        ):
            assert result.exit_code == 0, result.output
        energies.append(ase.io.read(files[1]).get_potential_energy())
        states.append(load_bundle(tmp_path / f"fit-{place}").state)
        metrics.append(json.loads((tmp_path / place / "metrics.json").read_text()))
        monkeypatch.setattr(unbuilt, "build_edges", None)  # the second round must do without
    assert energies[0] == pytest.approx(energies[1], rel=1e-12)
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-9)
    assert all(torch.allclose(states[0][name], states[1][name], rtol=1e-6) for name in states[0])
    assert run("predict", bundle, *files, "--graphs", "gpu").exit_code == 2


def test_predict_writes_every_structure_in_order(folder: Path, tmp_path: Path) -> None:
    from ase import Atoms
    from ase.io import read, write

    frames = [Atoms("CO", [[0, 0, 0], [0, 0, 1.1 + 0.1 * i]]) for i in range(5)]
    write(tmp_path / "in.xyz", frames, format="extxyz")
    result = run(
        "predict",
        folder / "bundle",
        tmp_path / "in.xyz",
        tmp_path / "out.xyz",
        "--task",
        "molecules",
        "--dtype",
        "float64",
    )
    assert result.exit_code == 0, result.output
    out = read(tmp_path / "out.xyz", index=":")
    assert len({a.get_potential_energy() for a in out}) == 5
    assert [a.get_distance(0, 1) for a in out] == pytest.approx([a.get_distance(0, 1) for a in frames])
    assert run("predict", folder / "bundle", tmp_path / "in.xyz", tmp_path / "o2.xyz", "--task", "slabs").exit_code == 2


def test_fit_scales_gives_every_factor_a_value(folder: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "new", fitted=False)
    assert load_bundle(bundle, require_fitted=False).unfitted
    result = run("fit-scales", bundle, f"molecules={folder / 'molecules'}", "--batches", 2)
    assert result.exit_code == 0, result.output
    assert load_bundle(bundle).unfitted == []
    assert run("fit-scales", bundle, "molecules").exit_code == 2


def test_words_are_files_or_overrides() -> None:
    assert divide(["a.yaml", "b.c=1", "d.yaml"]) == (["a.yaml", "d.yaml"], ["b.c=1"])


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find(name, *rest)
    )


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize("verb", ["pretrain", "finetune", "predict", "evaluate", "fit-scales"])
def test_kernels_that_cannot_run_are_a_mistake_of_the_user(folder: Path, tmp_path: Path, verb: str) -> None:
    """Told before any work; where a configuration asks for them, with the place of its key."""
    write(tmp_path / "in.xyz", Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]))
    bundle = tiny_bundle(tmp_path / "bundle", fitted=verb != "fit-scales")
    store = folder / "molecules"
    words: dict[str, list[str | Path]] = {
        "pretrain": [folder / "pretrain.yaml", "model.kernels=triton"],
        "finetune": [folder / "finetune.yaml", "model.kernels=triton"],
        "predict": [bundle, tmp_path / "in.xyz", tmp_path / "out.xyz", "--kernels", "triton"],
        "evaluate": [bundle, store, "--kernels", "triton"],
        "fit-scales": [bundle, f"molecules={store}", "--kernels", "triton"],
    }
    result = run(verb, *words[verb])
    assert result.exit_code == 2, result.output
    assert "kernels: the Triton kernels need the package triton, which is not installed" in result.stderr
    assert ("model.kernels" in result.stderr) == (verb in ("pretrain", "finetune"))
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.xyz").exists()


def test_kernels_are_no_part_of_a_bundle(tmp_path: Path) -> None:
    spec = json.loads((tiny_bundle(tmp_path / "bundle") / "bundle.json").read_text())
    text = json.dumps({key: value for key, value in spec.items() if key != "provenance"})
    assert "kernels" not in text
    assert "triton" not in text


def test_import_and_predict_as_a_black_box(tmp_path: Path) -> None:
    """The two fixed forms, in processes of their own: a published file in full size, then energies and forces."""
    import numpy as np
    from ase import Atoms
    from ase.io import read, write
    from golden_systems import recorded
    from inference.test_import_jmp import recipe_state
    from published_files import averaged
    from published_files import write as write_published

    state = {**recipe_state("jmp-s"), "foreign.key": torch.zeros(2)}
    file = write_published(tmp_path / "jmp-s.pt", state, averaged(state, 0.0))
    program = [sys.executable, "-m", "jmp_ds.cli"]
    command = [*program, "import-jmp", str(file), str(tmp_path / "bundle"), "--preset", "jmp-s"]
    imported = subprocess.run(command, capture_output=True, text=True, check=False)
    assert imported.returncode == 0, imported.stderr
    assert "unmatched: foreign.key" in imported.stderr
    inputs, reference = recorded("ethanol"), recorded("full_size_recipe_weights")
    write(tmp_path / "in.xyz", Atoms(inputs["Z"], inputs["pos"]), format="extxyz")
    options = ["--task", "ani1x", "--dtype", "float64", "--device", "cpu"]
    command = [
        *program,
        "predict",
        str(tmp_path / "bundle"),
        str(tmp_path / "in.xyz"),
        str(tmp_path / "out.xyz"),
        *options,
    ]
    predicted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert predicted.returncode == 0, predicted.stderr
    atoms = read(tmp_path / "out.xyz")
    task = next(t for t in load_bundle(tmp_path / "bundle").tasks if t.name == "ani1x")
    energy = reference["S_ethanol_f64_energy"][0, 2] * task.scale("energy")
    forces = reference["S_ethanol_f64_forces"][:, :, 2] * task.scale("forces")
    # The input file has eight decimals.
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-5)
    assert np.abs(atoms.get_forces() - forces).max() < 1e-5


def test_a_stopped_run_has_its_own_exit_code_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    from jmp_ds.training.outcome import Outcome

    outcomes = iter([Outcome("stopped", "SIGTERM", 7, 70), Outcome("finished", "end of the run", 9, 90)])
    monkeypatch.setattr("jmp_ds.pretrain.run_pretrain", lambda resolved, checked: next(outcomes))
    result = run("pretrain", folder / "pretrain.yaml")
    assert (result.exit_code, "stopped at step 7 (SIGTERM)" in result.stderr) == (3, True)
    assert run("pretrain", folder / "pretrain.yaml").exit_code == 0
