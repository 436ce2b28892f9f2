"""Fine-tuning: which weights come along, references, layer-wise rates, several runs in one start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import set_scales
from small_stores import write_finetune, write_store

from jmp_ds.bundle import Bundle, load_bundle, save_bundle
from jmp_ds.config import load_finetune
from jmp_ds.config.checks import check_finetune
from jmp_ds.errors import UserError
from jmp_ds.experiment.transfer import part_of, transfer_weights
from jmp_ds.finetune import run_finetune
from jmp_ds.graphs import unbuilt
from jmp_ds.graphs.settings import GraphSettings, published
from jmp_ds.inference.card import export
from jmp_ds.models.presets import preset
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, ScalarTarget, Task
from jmp_ds.training.outcome import Outcome

GRAPH = GraphSettings(cutoff=5.0, max_neighbors=6)


def bundle_of(*tasks: Task, seed: int = 0) -> Bundle:
    """A bundle with random weights and scale factors of 1.5."""
    torch.manual_seed(seed)
    model = MultiTaskModel(preset("tiny"), tasks)
    set_scales(model, 1.5)
    return Bundle.of(model, {})


def source_task(name: str = "origin", **changes: Any) -> Task:
    values: dict[str, Any] = {"graph": GRAPH, "energy": EnergyTarget(), "forces": ForcesTarget()}
    return Task(name=name, **{**values, **changes})


def finetune(file: Path, *overrides: str) -> Outcome:
    """One run in this process."""
    resolved = load_finetune(file, overrides)
    return run_finetune([(resolved, check_finetune(resolved))])[0]


def test_a_direct_bundle_becomes_a_gradient_model(tmp_path: Path) -> None:
    """The case of most users: new heads, forces as a gradient, step-0 table, best and final bundles, test metrics."""
    licensed = replace(bundle_of(source_task()), provenance={"weights_licence": "not for sale"})
    save_bundle(licensed, tmp_path / "bundle")
    file = write_finetune(tmp_path, {"bundle": str(tmp_path / "bundle"), "heads": "new"})
    outcome = finetune(file, "train.epochs=2")
    assert outcome.status == "finished"
    tuned = load_bundle(tmp_path / "tuned" / "best")
    (task,) = tuned.tasks
    assert task.gradient_forces
    assert task.scale("energy") == task.scale("forces") > 0.0
    assert task.energy == EnergyTarget(weight=0.0, bias=False)
    assert not any(name.startswith("backbone.out_mlp_F") for name in tuned.state)
    metrics = json.loads((tmp_path / "tuned" / "report" / "metrics.json").read_text())
    assert metrics["model"] == "best"
    assert set(metrics["metrics"]) == {"val", "test"}
    assert tuned.provenance["from"] == str(tmp_path / "bundle")
    assert tuned.provenance["weights_licence"] == "not for sale"
    export(tmp_path / "tuned", tmp_path / "out")
    assert "- weights_licence: not for sale" in (tmp_path / "out" / "README.md").read_text()


def test_from_scratch_fits_scale_factors(tmp_path: Path) -> None:
    file = write_finetune(tmp_path, "scratch")
    assert finetune(file, "model.preset=tiny").status == "finished"
    bundle = load_bundle(tmp_path / "tuned" / "final")
    assert bundle.provenance["from"] == "scratch"
    assert "weights_licence" not in bundle.provenance
    assert all(float(x) > 0.0 for name, x in bundle.state.items() if name.endswith("scale_factor"))


@pytest.mark.parametrize(
    ("heads", "donors"), [("new", {}), ("copy", {"target": "origin"}), ("keep", {"origin": "origin"})]
)
def test_weights_come_along(heads: str, donors: dict[str, str]) -> None:
    bundle = bundle_of(source_task(), source_task("other"))
    torch.manual_seed(7)
    model = MultiTaskModel(bundle.config, [source_task("origin" if heads == "keep" else "target")])
    fresh = {name: x.clone() for name, x in model.state_dict().items()}
    transfer = transfer_weights(model, bundle.state, donors)
    state = model.state_dict()
    name = next(iter(donors), "target")
    for key, value in state.items():
        if not key.startswith("heads."):
            assert torch.equal(value, bundle.state[key]), key
        elif heads == "new":
            assert torch.equal(value, fresh[key]), key
        else:
            assert torch.equal(value, bundle.state[key.replace(f"heads.{name}.", "heads.origin.")]), key
    assert set(transfer.loaded) | set(transfer.new) == set(state)
    assert bool(transfer.new) == (heads == "new")
    assert any(dropped.startswith("heads.other.") for dropped in transfer.dropped)
    rows = transfer.table()
    assert sum(r[1] for r in rows) == len(transfer.loaded)
    assert sum(r[3] for r in rows) == len(transfer.dropped)


def test_other_sizes_are_refused() -> None:
    model = MultiTaskModel(preset("tiny"), [source_task("target")])
    weights = {name: x[:1] if name == "backbone.embedding.weight" else x for name, x in model.state_dict().items()}
    with pytest.raises(UserError, match=r"backbone\.embedding\.weight"):
        transfer_weights(model, weights, {})


def test_parts_are_blocks_and_heads() -> None:
    assert part_of("backbone.int_blocks.0.dense.weight") == "backbone.int_blocks.0"
    assert part_of("backbone.embedding.weight") == "backbone.embedding"
    assert part_of("heads.a.energy.layers.0.weight") == "heads.a.energy"


def test_graphs_built_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient forces, validation and test metrics are those of graphs from the host."""
    save_bundle(bundle_of(source_task()), tmp_path / "bundle")
    file = write_finetune(tmp_path, {"bundle": str(tmp_path / "bundle"), "heads": "new"})
    found = []
    for place in ("host", "device"):
        finetune(
            file, "train.epochs=1", "model.recompute=off", f"sampling.graphs={place}", f"run.dir={tmp_path / place}"
        )
        report = json.loads((tmp_path / place / "report" / "metrics.json").read_text())["metrics"]
        found.append((report, load_bundle(tmp_path / place / "final").state))
        monkeypatch.setattr(unbuilt, "build_edges", None)  # the second run must do without
    assert set(found[0][0]) == {"val", "test"}
    assert found[0][0] == found[1][0]  # molecules: no shifts, no rounding
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_a_bundle_without_force_branch_gets_a_fitted_one(tmp_path: Path) -> None:
    """The backbone keeps its factors; those of the new branch are fitted."""
    energy = Task(name="origin", graph=GRAPH, energy=EnergyTarget())
    save_bundle(bundle_of(energy), tmp_path / "bundle")
    tasks = {
        "target": {
            "store": str(write_store(tmp_path / "direct", seed=3)),
            "graph": {"cutoff": 5.0, "max_neighbors": 6},
            "energy": {},
            "forces": {"kind": "direct"},
        }
    }
    file = write_finetune(tmp_path, {"bundle": str(tmp_path / "bundle")}, tasks=tasks)
    assert finetune(file, "train.epochs=null", "train.steps=1").status == "finished"
    state = load_bundle(tmp_path / "tuned" / "final").state
    factors = {name: float(x) for name, x in state.items() if name.endswith("scale_factor")}
    old = {name for name in load_bundle(tmp_path / "bundle").state if name.endswith("scale_factor")}
    assert all(factors[name] == 1.5 for name in old)
    assert set(factors) - old
    assert all(value not in (0.0, 1.5) for name, value in factors.items() if name not in old)


def test_references_change_as_little_as_they_can(tmp_path: Path) -> None:
    """One composition, C O H H: the data fix one combination of references, the rest stays with the pre-trained ones."""
    before = np.zeros(119)
    before[[1, 6, 8, 14]] = [-13.0, -37.0, -75.0, -289.0]
    norm = {"energy": Normalization(std=2.0, references=tuple(before)), "forces": Normalization(std=0.7)}
    save_bundle(bundle_of(source_task(normalization=norm)), tmp_path / "bundle")
    tasks = {"target": {"store": str(write_store(tmp_path / "direct", seed=3)), "energy": {}, "forces": {}}}
    file = write_finetune(tmp_path, {"bundle": str(tmp_path / "bundle"), "heads": "copy:origin"}, tasks=tasks)
    assert finetune(file, "train.epochs=null", "train.steps=1").status == "finished"
    after = np.array(load_bundle(tmp_path / "tuned" / "final").tasks[0].normalize_by("energy").references)
    change = after - before
    composition = np.zeros(119)
    composition[[1, 6, 8]] = [2.0, 1.0, 1.0]
    assert np.abs(change).max() > 1.0
    # The smallest change lies along the composition.
    assert change == pytest.approx(composition * (change @ composition) / (composition @ composition), abs=1e-8)
    assert after[14] == before[14]


def test_graph_rules_come_from_the_bundle(tmp_path: Path) -> None:
    save_bundle(bundle_of(source_task(graph=published(6.0, 12))), tmp_path / "bundle")
    file = write_finetune(tmp_path, {"bundle": str(tmp_path / "bundle"), "heads": "new"})
    (task,) = check_finetune(load_finetune(file)).tasks
    assert (task.graph.symmetrize, task.graph.envelope, task.graph.dihedral) == ("jmp", "jmp", "jmp")
    assert (task.graph.cutoff, task.graph.max_neighbors) == (5.0, 6)  # the task's own
    tasks = {"target": {"store": str(tmp_path / "target"), "energy": {}}}
    file = write_finetune(tmp_path, {"bundle": str(tmp_path / "bundle"), "heads": "copy:origin"}, tasks=tasks)
    (task,) = check_finetune(load_finetune(file)).tasks
    assert task.graph == published(6.0, 12)
    assert task.energy is not None
    assert task.energy.bias  # the copied head's shape
    new = {"symmetrize": "invariant", "envelope": "cutoff", "dihedral": "smooth"}
    for heads in ("new", "copy:origin"):
        resolved = load_finetune(file, [f"from.heads={heads}", f"model={{kernels: torch, graph: {json.dumps(new)}}}"])
        (task,) = check_finetune(resolved).tasks
        assert {key: getattr(task.graph, key) for key in new} == new


def test_several_runs_in_one_start(tmp_path: Path) -> None:
    """A scalar, with layer-wise rates and the published schedule, at two learning rates."""
    tasks = {
        "target": {
            "store": str(write_store(tmp_path / "scalars", seed=4)),
            "graph": {"cutoff": 5.0, "max_neighbors": 6},
            "scalar": {"label": "gap", "unit": "eV", "reduction": "mean"},
            "split": {"train": 0.5, "val": 0.25, "test": 0.25},
        }
    }
    save_bundle(bundle_of(source_task()), tmp_path / "bundle")
    file = write_finetune(
        tmp_path,
        {"bundle": str(tmp_path / "bundle")},
        tasks=tasks,
        layerwise_lr={"embedding": 0.3, "blocks": [0.5, 0.4]},
        train={"epochs": 2, "schedule": {"kind": "warmup_cosine_plateau", "warmup_epochs": 1, "cosine_epochs": 2}},
    )
    runs = []
    for lr in (1e-3, 1e-4):
        resolved = load_finetune(file, [f"train.optimizer.lr={lr}", f"run.dir={tmp_path / str(lr)}"])
        runs.append((resolved, check_finetune(resolved)))
    assert [o.status for o in run_finetune(runs)] == ["finished", "finished"]
    for lr in (1e-3, 1e-4):
        bundle = load_bundle(tmp_path / str(lr) / "final")
        assert bundle.tasks[0].scalars == (ScalarTarget(label="gap", unit="eV", reduction="mean"),)
        assert (
            "target/gap_mae"
            in json.loads((tmp_path / str(lr) / "report" / "metrics.json").read_text())["metrics"]["test"]
        )
