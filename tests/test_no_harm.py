"""What fine-tuning changes and what not: freezing, low-rank changes, replay, memory, and what is told about it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ase import Atoms
from small_models import set_scales
from small_stores import write_finetune, write_store

from jmp_ds.bundle import Bundle, load_bundle, save_bundle
from jmp_ds.config import load_finetune
from jmp_ds.config.checks import check_finetune
from jmp_ds.errors import UserError
from jmp_ds.experiment.adapting import adapt
from jmp_ds.experiment.transfer import rescale_heads, transfer_weights
from jmp_ds.finetune import run_finetune
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.predictor import Predictor
from jmp_ds.models.low_rank import merged
from jmp_ds.models.presets import preset
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, Task
from jmp_ds.training.engine import Engine

GRAPH = GraphSettings(cutoff=5.0, max_neighbors=6)
REFERENCES = tuple(0.0 if z != 6 else -40.0 for z in range(119))
ORIGIN = Task(
    name="origin",
    graph=GRAPH,
    energy=EnergyTarget(),
    forces=ForcesTarget(),
    normalization={"energy": Normalization(std=0.5, references=REFERENCES), "forces": Normalization(std=0.2)},
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Random weights with two tasks."""
    torch.manual_seed(0)
    other = Task(name="other", graph=GRAPH, energy=EnergyTarget())
    model = MultiTaskModel(preset("tiny"), [ORIGIN, other])
    set_scales(model, 1.5)
    save_bundle(Bundle.of(model, {}), tmp_path / "bundle")
    return tmp_path / "bundle"


def file_for(tmp_path: Path, bundle: Path, **changes: Any) -> Path:
    """Direct forces on a small store, two steps."""
    tasks = {
        "target": {
            "store": str(write_store(tmp_path / "target", seed=3)),
            "graph": {"cutoff": 5.0, "max_neighbors": 6},
            "energy": {},
            "forces": {},
            "split": {"train": 12, "val": 6, "test": 6},
        }
    }
    values: dict[str, Any] = {"tasks": tasks, "train": {"steps": 2}, **changes}
    return write_finetune(tmp_path, {"bundle": str(bundle)}, **values)


def tuned(file: Path, *overrides: str) -> dict[str, torch.Tensor]:
    resolved = load_finetune(file, ["train.epochs=null", "train.steps=2", "train.ema=null", *overrides])
    (outcome,) = run_finetune([(resolved, check_finetune(resolved))])
    assert outcome.status == "finished"
    return load_bundle(Path(resolved.config.run.dir) / "final").state


@pytest.mark.parametrize("engine", ["zero0_fp32", "zero1_fp32", "zero2_bf16"])
def test_frozen_is_frozen(tmp_path: Path, bundle: Path, engine: str) -> None:
    file = file_for(tmp_path, bundle, freeze=["backbone.embedding.*", "backbone.int_blocks.0.*"])
    before, after = load_bundle(bundle).state, tuned(file, f"engine.deepspeed={engine}")
    for name, x in after.items():
        if name.startswith(("backbone.embedding.", "backbone.int_blocks.0.")) or name.endswith("scale_factor"):
            assert torch.equal(x, before[name]), name
        elif not name.startswith("heads."):
            assert not torch.equal(x, before[name]), name


def test_low_rank_changes(tmp_path: Path, bundle: Path) -> None:
    """Only the named layers change, by matrices of the given rank; the bundle has ordinary weights."""
    layers = ["backbone.int_blocks.1.*"]
    lora = {"rank": 2, "alpha": 4.0, "layers": layers}
    file = file_for(tmp_path, bundle, freeze=["backbone.*"], lora=lora)
    before, after = load_bundle(bundle).state, tuned(file, "train.optimizer.lr=0.03")
    assert {name for name in after if not name.startswith("heads.")} == {
        name for name in before if not name.startswith("heads.")
    }
    changed = [n for n, x in after.items() if not n.startswith("heads.") and not torch.equal(x, before[n])]
    assert changed
    assert all(name.startswith("backbone.int_blocks.1.") and name.endswith("linear.weight") for name in changed)
    for name in changed:
        change = (after[name] - before[name]).double()
        values = torch.linalg.svdvals(change)
        assert int((values > 1e-3 * values[0]).sum()) <= 2, name


def test_low_rank_runs_resume(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a checkpoint and started again: the same weights as without."""
    changes = {"lora": {"rank": 2}, "freeze": ["backbone.embedding.*"], "checkpoint": {"every": 0.5}}
    file = file_for(tmp_path, bundle, **changes)
    undisturbed = tuned(file, "train.steps=4", f"run.dir={tmp_path / 'whole'}")
    with monkeypatch.context() as patch:
        step, calls = Engine.step, iter(range(100))

        def dying(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        patch.setattr(Engine, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            tuned(file, "train.steps=4")
    assert (tmp_path / "tuned" / "latest").exists()
    resumed = tuned(file, "train.steps=4")
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_low_rank_starts_as_nothing_and_merges(tmp_path: Path, bundle: Path) -> None:
    config = load_finetune(file_for(tmp_path, bundle, lora={"rank": 3, "alpha": 6.0})).config
    model = load_bundle(bundle).build()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    adapt(config, model)
    same = merged(model.state_dict(), 2.0)
    assert same.keys() == before.keys()
    assert all(torch.equal(same[name], before[name]) for name in before)
    (layer,) = [m for n, m in model.named_modules() if n == "backbone.int_blocks.0.dense_ca.linear"]
    with torch.no_grad():
        layer.parametrizations["weight"][0].b.normal_()
    assert torch.equal(merged(model.state_dict(), 2.0)["backbone.int_blocks.0.dense_ca.linear.weight"], layer.weight)


def test_replay_keeps_heads_and_weighs(tmp_path: Path, bundle: Path) -> None:
    """A task of the bundle is trained along, with its own head, references and scales."""
    file = file_for(tmp_path, bundle)
    values = yaml.safe_load(file.read_text())
    replayed = {**values["tasks"]["target"], "heads": "keep", "references": "keep", "weight": 0.25}
    values["tasks"]["origin"] = {**replayed, "store": str(write_store(tmp_path / "old", seed=1))}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    resolved = load_finetune(file)
    target, origin = check_finetune(resolved).tasks
    assert (target.energy, target.forces) == (EnergyTarget(bias=False), ForcesTarget())
    assert (origin.energy, origin.forces) == (EnergyTarget(weight=0.25), ForcesTarget(weight=0.25))
    tuned(file)
    after = load_bundle(tmp_path / "tuned" / "final")
    assert after.task("origin").normalization == ORIGIN.normalization
    drift = after.state["heads.origin.energy.8.weight"] - load_bundle(bundle).state["heads.origin.energy.8.weight"]
    assert 0.0 < float(drift.abs().max()) < 1e-2  # two steps from where it was


def test_heads_taken_over_predict_what_they_did(bundle: Path) -> None:
    """In physical units, whatever the scales of the new data; forces to the last digits."""
    old = load_bundle(bundle)
    norms = {"energy": Normalization(std=3.0, references=REFERENCES), "forces": Normalization(std=7.0)}
    model = MultiTaskModel(old.config, [Task(**{**vars(ORIGIN), "name": "target", "normalization": norms})])
    transfer_weights(model, old.state, {"target": "origin"})
    rescale_heads(model, {"target": old.task("origin")})
    atoms = Atoms("COH2", [[0, 0, 0], [1.25, 0, 0], [-0.6, 0.9, 0], [-0.6, -0.9, 0.2]])
    (was,) = Predictor(old, task="origin").predict([atoms])
    (now,) = Predictor(Bundle.of(model, {}), task="target").predict([atoms])
    assert now.energy == pytest.approx(was.energy, rel=1e-5)
    assert now.forces == pytest.approx(was.forces, rel=1e-4, abs=1e-7)


def test_before_and_after_are_told(tmp_path: Path, bundle: Path) -> None:
    """Constant, new heads and the bundle's heads before the first step; old heads before and after; one page."""
    remember = {"origin": {"store": str(write_store(tmp_path / "old", seed=1)), "structures": 8}}
    file = file_for(tmp_path, bundle, remember=remember)
    tuned(file, "train.optimizer.lr=0.003")
    start = json.loads((tmp_path / "tuned" / "start.json").read_text())
    assert set(start["errors"]) == {"constant", "before step 1", "head of origin"}
    assert start["references"] == {}  # new heads have nothing to move from
    found = json.loads((tmp_path / "tuned" / "report" / "tuning.json").read_text())
    gained = found["gained"]["target/forces_mae"]
    assert set(gained) == {"constant", "before step 1", "head of origin", "tuned"}
    before, after = found["forgotten"]["origin/forces_mae"]
    assert before != after  # the backbone has moved
    page = (tmp_path / "tuned" / "report" / "report.html").read_text()
    for heading in ("Errors", "Gained", "Forgotten", "Learning", "Predictions", "Where it errs"):
        assert f"<h2>{heading}</h2>" in page
    assert "forces_mae by element" in page
    assert page.count("data:image/png;base64,") == 2
    line = re.search(r"<tr><td>origin/forces_cosine_free</td>.*?</tr>", page)
    assert line is not None
    assert line[0].endswith("<td>-</td></tr>")  # a ratio would look like that of errors
    assert found["gained"]["target/forces_cosine_free"]["constant"] == 0.0
    assert "The larger, the better: energy_forces_within_threshold, forces_cosine_free." in page
    breakdown = json.loads((tmp_path / "tuned" / "report" / "metrics.json").read_text())["breakdown"]["test"]
    by_element = breakdown["target/forces_mae"]["element"]
    assert set(by_element) == {"1", "6", "8"}
    overall = json.loads((tmp_path / "tuned" / "report" / "metrics.json").read_text())["metrics"]["test"]
    weights = {"1": 2, "6": 1, "8": 1}
    mean = sum(weights[z] * by_element[z] for z in weights) / 4
    assert mean == pytest.approx(overall["target/forces_mae"], rel=1e-9)


def test_a_frozen_backbone_forgets_nothing(tmp_path: Path, bundle: Path) -> None:
    remember = {"origin": {"store": str(write_store(tmp_path / "old", seed=1)), "structures": 8}}
    tuned(file_for(tmp_path, bundle, remember=remember, freeze=["backbone.*"]))
    found = json.loads((tmp_path / "tuned" / "report" / "tuning.json").read_text())["forgotten"]
    assert found["origin/forces_mae"][0] == found["origin/forces_mae"][1]


def test_a_task_whose_energy_is_no_longer_trained_is_remembered(tmp_path: Path, bundle: Path) -> None:
    remember = {"origin": {"store": str(write_store(tmp_path / "old", seed=1)), "structures": 8}}
    file = file_for(tmp_path, bundle, remember=remember)
    values = yaml.safe_load(file.read_text())
    old = {"heads": "keep", "references": "keep", "energy": {"weight": 0}}
    values["tasks"] = {"origin": {**values["tasks"]["target"], **old}}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    tuned(file)
    found = json.loads((tmp_path / "tuned" / "report" / "tuning.json").read_text())["forgotten"]
    assert "origin/forces_cosine_free" in found
    assert "origin/energy_forces_within_threshold" not in found


def test_references_that_moved_are_told(tmp_path: Path, bundle: Path) -> None:
    file = file_for(tmp_path, bundle)
    tuned(file, "from.heads=copy:origin")
    start = json.loads((tmp_path / "tuned" / "start.json").read_text())
    assert set(start["errors"]) == {"constant", "before step 1"}
    before, now = start["references"]["target"]["6"]
    assert before == -40.0
    assert now != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["backbone.embeding.*"]}, "freeze.*matches nothing.*backbone.embedding"),
        ({"freeze": ["*"]}, "nothing is left to train"),
        ({"lora": {"layers": ["backbone.blocks.*"]}}, r"lora\.layers.*matches nothing"),
        ({"freeze": ["backbone.*"], "engine": {"deepspeed": "zero3_fp32"}}, "stage 3"),
        ({"remember": {"origins": {"store": "nowhere"}}}, r"remember\.origins.*no such task.*origin"),
        ({"remember": {"origin": {"store": "nowhere"}}}, r"remember\.origin\.store.*nowhere"),
    ],
)
def test_mistakes(tmp_path: Path, bundle: Path, changes: dict[str, Any], message: str) -> None:
    file = file_for(tmp_path, bundle, **changes)
    with pytest.raises(UserError, match=message):
        check_finetune(load_finetune(file))
