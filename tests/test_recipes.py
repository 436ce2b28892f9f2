"""Recipes of published targets: what they say, that neighbours differ by data alone, and that all of them run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_targets import overrides_of, write_data
from typer.testing import CliRunner

from jmp_ds.bundle import load_bundle
from jmp_ds.cli.app import app
from jmp_ds.config import load_finetune
from jmp_ds.config.checks import check_finetune
from jmp_ds.config.described import alone, annotated, metric_of, values_of
from jmp_ds.config.loading import load_target
from jmp_ds.config.targets import find_target, published_numbers, remark, targets
from jmp_ds.config.tasks import ClassificationConfig
from jmp_ds.data.published import published
from jmp_ds.data.readers.qm9_pyg import PROPERTIES
from jmp_ds.errors import UserError
from jmp_ds.finetune import run_finetune
from jmp_ds.training.ds_config import load_ds_config
from jmp_ds.training.outcome import Outcome
from jmp_ds.training.stopping import Deadline

#: The published table (specification, 9.3), written down again: cutoff, M, force weight, batch, precision, reduction.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    **{
        f"rmd17/{name}": (7.0, 100, 10.0, 1, "fp32", "gradient")
        for name in (
            *("aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene", "paracetamol"),
            *("salicylic", "toluene", "uracil"),
        )
    },
    "md22/ac-ala3-nhme": (12.0, 30, 100.0, 2, "fp16", "direct"),
    "md22/dha": (12.0, 30, 100.0, 1, "fp32", "gradient"),
    "md22/stachyose": (12.0, 30, 100.0, 1, "fp16", "gradient"),
    "md22/at-at": (12.0, 30, 100.0, 1, "fp16", "gradient"),
    "md22/at-at-cg-cg": (12.0, 30, 100.0, 1, "fp16", "gradient"),
    "md22/buckyball-catcher": (12.0, 30, 100.0, 1, "fp16", "gradient"),
    "md22/double-walled-nanotube": (12.0, 30, 100.0, 1, "fp16", "direct"),
    "spice/dipeptides": (12.0, 30, 100.0, 2, "fp16", "gradient"),
    "spice/solvated-amino-acids": (12.0, 30, 100.0, 2, "fp16", "gradient"),
    **{
        f"qm9/{name}": (8.0, 30, 1.0, 48, "fp16", "sum")
        for name in ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u", "h", "g", "cv")
    },
    "matbench/jdft2d": (12.0, 30, 1.0, 3, "fp32", "mean"),
    "matbench/phonons": (12.0, 30, 1.0, 8, "fp16", "max"),
    "matbench/dielectric": (12.0, 30, 1.0, 8, "fp16", "mean"),
    "matbench/log-gvrh": (12.0, 30, 1.0, 8, "fp16", "mean"),
    "matbench/log-kvrh": (12.0, 30, 1.0, 8, "fp16", "mean"),
    "matbench/perovskites": (12.0, 30, 1.0, 8, "fp16", "mean"),
    "matbench/mp-gap": (12.0, 30, 1.0, 2, "fp32", "mean"),
    "matbench/mp-e-form": (12.0, 30, 1.0, 6, "fp16", "mean"),
    "matbench/is-metal": (12.0, 30, 1.0, 3, "fp32", "sum"),
    "qmof/gap": (19.0, 30, 1.0, 4, "fp16", "mean"),
}
#: Keys in which the targets of a family may differ, beside names of stores, splits and tasks.
BY_DATA = {
    "rmd17": set(),
    "md22": {"sampling.batch.structures", "engine.deepspeed", "task.forces.kind"},
    "spice": set(),
    "qm9": {"task.scalar", "task.spatial_extent", "task.normalize"},
    "matbench": {"sampling.batch.structures", "engine.deepspeed", "task.scalar", "task.classification"},
    "qmof": set(),
}


def flat(values: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys; lists are values."""
    if not isinstance(values, dict) or not values:
        return {path: values}
    return {k: v for key, inner in values.items() for k, v in flat(inner, f"{path}.{key}" if path else key).items()}


def config_of(name: str) -> dict[str, Any]:
    """Everything a recipe says, with the task under one name and without where data are."""
    target = targets()[name]
    values = alone(target, None).config.model_dump(mode="json", by_alias=True)
    task = values.pop("tasks")[target.task]
    del task["store"], task["split"]
    return flat({**values, "task": task})


def test_every_published_number_stands_in_its_recipe() -> None:
    assert set(targets()) == set(PUBLISHED)
    assert len(PUBLISHED) == 41
    for name, (cutoff, cap, weight, batch, precision, kind) in PUBLISHED.items():
        values = values_of(targets()[name])
        assert (values["cutoff"], values["max_neighbors"]) == (cutoff, cap), name
        crystals = name.startswith(("matbench/", "qmof/"))
        steps = [{"above": 200, "max_neighbors": 10}, {"above": 300, "max_neighbors": 5}]
        assert values["fewer_neighbors"] == (steps if crystals else []), name
        assert (values["weight"], values["batch"], values["published_precision"]) == (weight, batch, precision), name
        assert (values["reduction"] or values["head"].partition(" ")[0]) == kind, name


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_what_all_targets_share(name: str) -> None:
    """Specification, 9.1: optimizer, schedule, clipping, factors by depth; rMD17 has more patience."""
    config = alone(targets()[name], None).config
    train, schedule = config.train, config.train.schedule
    md17 = name.startswith("rmd17/")
    assert (train.optimizer.lr, train.optimizer.betas, train.optimizer.weight_decay) == (8e-5, [0.9, 0.95], 0.1)
    assert (train.epochs, train.clip_value, train.clip_norm, train.ema) == (500, 1.0, None, None)
    assert (schedule.kind, schedule.warmup_epochs, schedule.cosine_epochs) == ("warmup_cosine_plateau", 5.0, 32.0)
    assert (schedule.plateau_factor, schedule.plateau_patience) == (0.8, 10 if md17 else 3)
    assert train.early_stopping is not None
    assert (train.early_stopping.patience, train.early_stopping.min_lr) == ((1000, 1e-10) if md17 else (50, 1e-8))
    assert config.layerwise_lr is not None
    assert (config.layerwise_lr.embedding, config.layerwise_lr.rest) == (0.3, 1.0)
    assert config.layerwise_lr.factors(6) == [0.55, 0.40, 0.30, 0.40, 0.55, 0.625]
    assert config.layerwise_lr.factors(4) == [0.30, 0.40, 0.55, 0.625]
    assert config.layerwise_lr.factors(5) is None


def test_particular_published_choices() -> None:
    metal = alone(targets()["matbench/is-metal"], None).config.tasks["is-metal"].classification
    assert metal is not None
    assert (metal.class_weights, metal.dropout, metal.kind) == ([1.0, 1.34219693], 0.5, "multi")
    referenced = {n for n in PUBLISHED if values_of(targets()[n])["references"]}
    assert referenced == {f"qm9/{n}" for n in ("zpve", "u0", "u", "h", "g", "cv")}
    assert values_of(targets()["qm9/r2"])["head"] == "spatial extent"
    assert [n for n in PUBLISHED if not values_of(targets()[n])["normalize"]] == ["qm9/r2"]
    assert {n: t.folds for n, t in targets().items() if t.folds} == {
        n: 5 for n in PUBLISHED if n.startswith("matbench/")
    }


@pytest.mark.parametrize("family", sorted(BY_DATA))
def test_neighbours_differ_only_by_data(family: str) -> None:
    """Two targets of a family differ in keys of the table alone, and in no others."""
    names = [n for n in targets() if n.startswith(f"{family}/")]
    first = config_of(names[0])
    for name in names[1:]:
        other = config_of(name)
        different = {k for k in {*first, *other} if first.get(k) != other.get(k)}
        allowed = {k for k in different if any(k == a or k.startswith(f"{a}.") for a in BY_DATA[family])}
        assert different == allowed, name
        columns = {key for n in (names[0], name) for key in targets()[n].settings}
        assert all(any(c.startswith(k) or k.startswith(c.rpartition(".")[0]) for c in columns) for k in different), name


def test_precision_is_explicit() -> None:
    """Every recipe names its DeepSpeed file; fp32 as published, fp16 as bf16, and gradients of energies in float32."""
    for name, target in targets().items():
        resolved = alone(target, None)
        place = resolved.origins[("engine", "deepspeed")]
        assert place.startswith("recipe "), name
        assert "default" not in place
        found = load_ds_config(resolved.config.engine.deepspeed).values
        gradient = resolved.config.tasks[target.task].force_kind == "gradient"
        narrow = target.precision == "fp16" and not gradient
        assert bool(found.get("torch_autocast", {}).get("enabled")) == narrow, name
        assert not any(found.get(kind, {}).get("enabled") for kind in ("fp16", "bf16")), name
        if target.precision == "fp16":
            assert "published: fp16" in remark(place), name


def test_published_normalisation_is_known_where_it_was_published() -> None:
    assert published_numbers(targets()["rmd17/aspirin"])["forces"]["std"] == 1.2733363
    assert published_numbers(targets()["qm9/homo"]) == {"eps_HOMO": {"mean": -6.5347567, "std": 0.59702325}}
    assert published_numbers(targets()["matbench/phonons"], 3)["y"]["mean"] == 609.7402387661577
    missing = [n for n, t in targets().items() if not published_numbers(t, 0 if t.folds else None)]
    assert missing == ["matbench/is-metal"]


def test_annotations_read_back_and_name_their_places() -> None:
    target, fold = find_target("matbench/phonons:3")
    text = annotated(alone(target, fold))
    values = yaml.safe_load(text)
    assert values["tasks"]["phonons"]["scalar"]["reduction"] == "max"
    assert values["tasks"]["phonons"]["split"]["files"]["test"] == "data/matbench-phonons.fold3/test.npy"
    line = next(line for line in text.splitlines() if line.strip().startswith("reduction:"))
    assert "recipe targets.yaml:" in line
    assert line.endswith("published: the others are means")
    assert "to be given" in next(line for line in text.splitlines() if line.strip().startswith("dir:"))
    assert "default of the program" in text


def test_the_verb_lists_and_shows() -> None:
    listed = CliRunner().invoke(app, ["recipes", "--json"])
    assert [row["recipe"] for row in json.loads(listed.output)] == list(PUBLISHED)
    table = CliRunner().invoke(app, ["recipes"]).output
    assert all(f" {name} " in table for name in PUBLISHED)
    one = CliRunner().invoke(app, ["recipes", "rmd17/aspirin"]).output
    assert yaml.safe_load(one)["tasks"]["aspirin"]["forces"] == {
        "weight": 10.0,
        "kind": "gradient",
        "loss": "structure",
    }
    wrong = CliRunner().invoke(app, ["recipes", "qm9/hommo"])
    assert wrong.exit_code == 2
    assert "did you mean 'qm9/homo'?" in wrong.output


def test_finetune_needs_no_file_with_a_recipe() -> None:
    words = ["finetune", "--recipe", "qm9/homo", "run.dir=somewhere", "from=scratch", "layerwise_lr=null"]
    missing = CliRunner().invoke(app, [*words, "--check"])
    assert missing.exit_code == 2
    assert "tasks.homo.store: store data/qm9: there is no store here" in missing.output
    neither = CliRunner().invoke(app, ["finetune", "run.dir=somewhere"])
    assert neither.exit_code == 2
    assert "or a recipe (jmp-ds recipes)" in neither.output


def test_check_prints_what_would_run(tmp_path: Path) -> None:
    write_data(targets()["qm9/homo"], tmp_path / "data")
    given = [f"run.dir={tmp_path / 'run'}", "from=scratch", "layerwise_lr=null", "tasks.homo.split={train: 4, val: 2}"]
    words = ["finetune", "--recipe", "qm9/homo", f"tasks.homo.store={tmp_path / 'data' / 'qm9'}", *given, "--check"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    values = yaml.safe_load(result.output)
    assert values["sampling"]["batch"]["structures"] == 48
    assert values["tasks"]["homo"]["scalar"]["label"] == "eps_HOMO"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qm9/homo:1", "has no folds"),
        ("matbench/phonons:5", "has folds 0 to 4"),
        ("matbench/phonons:x", "must be the number of a fold"),
    ],
)
def test_folds_that_there_are_not(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_target(name)


def test_layers_over_a_recipe(tmp_path: Path) -> None:
    """defaults < recipe < file < overrides; counts of a split take the recipe's files back."""
    file = tmp_path / "own.yaml"
    file.write_text("run: {dir: x}\nfrom: scratch\ntrain: {optimizer: {lr: 1.0e-5}}\n")
    config = load_finetune(file, ["tasks.homo.split={train: 4, val: 2}"], "qm9/homo").config
    assert config.train.optimizer.lr == 1e-5
    assert config.train.optimizer.betas == [0.9, 0.95]
    assert config.tasks["homo"].split.files is None
    assert config.tasks["homo"].split.train == 4
    assert load_finetune(None, ["run.dir=x", "from=scratch"], "qm9/homo").config.train.optimizer.lr == 8e-5
    folded = load_finetune(None, ["run.dir=x", "from=scratch"], "matbench/phonons:3").config.tasks["phonons"].split
    assert folded.files is not None
    assert folded.files.val == "data/matbench-phonons.fold3/val.npy"


def test_a_network_without_factors_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"factors for 6, 4, but the network has 2 interaction blocks.*layerwise_lr=null"
    ):
        check_finetune(load_finetune(None, ["run.dir=x", "from=scratch"], "qm9/homo"))


#: A sample of all kinds of heads, splits and precisions for the fast suite.
SAMPLE = ("rmd17/aspirin", "md22/ac-ala3-nhme", "qm9/r2", "qm9/u0", "matbench/phonons", "matbench/is-metal", "qmof/gap")


def go(name: str, folder: Path, *more: str) -> Outcome:
    target = targets()[name]
    own = {"run": {"dir": str(folder / "run")}, "from": "scratch"}
    resolved = load_target(target, target.check_fold(None), str(folder / "data"), own, [*overrides_of(target), *more])
    return run_finetune([(resolved, check_finetune(resolved))])[0]


@pytest.mark.parametrize(
    "name", [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED], ids=str
)
def test_a_recipe_starts_steps_stops_resumes_and_evaluates(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the recipe's own batches, precision, graphs and head; only the network is tiny and the run an epoch long."""
    write_data(targets()[name], tmp_path / "data")
    batch = values_of(targets()[name])["batch"]
    more = () if batch < 5 else ("sampling.batch.structures=2",)  # more than one step, so that there is a middle
    with monkeypatch.context() as patch:
        looks = iter((False, True))
        patch.setattr(Deadline, "reached", property(lambda self: next(looks, True)))
        stopped = go(name, tmp_path, *more)
    assert stopped.status == "stopped"
    assert stopped.step >= 1
    ended = go(name, tmp_path, *more)
    assert ended.status == "finished"
    assert ended.step > stopped.step
    found = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["metrics"]
    config = alone(targets()[name], None).config
    metric, _ = metric_of(config.tasks[targets()[name].task], targets()[name].task)
    assert set(found) == {"val", "test"}
    (task,) = load_bundle(tmp_path / "run" / "final").tasks
    steps = [{"above": s.above, "max_neighbors": s.max_neighbors} for s in task.graph.fewer_neighbors]
    assert steps == values_of(targets()[name])["fewer_neighbors"]
    assert all(isinstance(values[metric], float) and values[metric] >= 0.0 for values in found.values())


def test_splits_and_labels_are_those_of_the_data() -> None:
    """Names of splits are published ones with as many folds; labels and units of QM9 are its reader's."""
    for target in targets().values():
        assert published(target.split).folds == target.folds, target.name
        if target.family == "qm9":
            target_of = alone(target, None).config.tasks[target.task].of_structures[0]
            assert not isinstance(target_of, ClassificationConfig)
            assert PROPERTIES[target_of.label] == target_of.unit
