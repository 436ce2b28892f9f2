"""Bundles: exact round trip, whole or not at all, and messages that name what is wrong."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import set_scales

import jmp_ds.bundle as bundles
from jmp_ds.bundle import Bundle, load_bundle, provenance, save_bundle
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.settings import FewerNeighbors, GraphSettings, published
from jmp_ds.models.presets import preset
from jmp_ds.models.scaling import scale_factors
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, ScalarTarget, Task

TASKS = (
    Task(
        name="a",
        graph=GraphSettings(cutoff=5.0),
        energy=EnergyTarget(weight=0.5, bias=False),
        forces=ForcesTarget(kind="gradient", loss="atom"),
        scalars=(ScalarTarget(label="gap", unit="eV", reduction="mean"),),
        normalization={
            "energy": Normalization(mean=0.1 + 0.2, std=1 / 3, references=(0.0, -13.605693122994, 1e-17)),
            "forces": Normalization(std=1 / 3),
        },
        level_of_theory="made up, für Tests",
    ),
    Task(name="b", graph=GraphSettings(cutoff=4.0, max_neighbors=5), energy=EnergyTarget(), forces=ForcesTarget()),
)


def a_model(seed: int = 0, **changes) -> MultiTaskModel:
    torch.manual_seed(seed)
    model = MultiTaskModel(replace(preset("tiny"), **changes), TASKS)
    for k, factor in enumerate(scale_factors(model).values()):
        factor.scale_factor.fill_(1.0 + k / 100)
    return model


@pytest.fixture
def bundle() -> Bundle:
    return Bundle.of(a_model(), provenance("ema", data={"a": {"licence": "CC0"}}, command=["jmp-ds", "pretrain"]))


def a_batch():
    pos = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1], [0.9, 0.1, -0.4], [0.2, 1.3, 0.5]])
    one = Structure(pos=pos, atomic_numbers=np.array([8, 1, 6, 1]))
    return assemble([one, one], [0, 1], [(t.name, t.graph) for t in TASKS])


def test_round_trip_is_exact(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "deep" / "final")
    read = load_bundle(tmp_path / "deep" / "final")
    assert read.config == bundle.config
    assert read.tasks == bundle.tasks
    assert read.provenance == bundle.provenance
    assert read.state.keys() == bundle.state.keys()
    assert all(torch.equal(read.state[k], x) for k, x in bundle.state.items())
    assert sorted(os.listdir(tmp_path / "deep")) == ["final"]
    assert sorted(os.listdir(tmp_path / "deep" / "final")) == ["bundle.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_built_model_is_the_saved_one(bundle: Bundle, dtype: torch.dtype) -> None:
    model, built, batch = a_model().to(dtype).eval(), bundle.build(dtype), a_batch()
    assert not built.training
    out, reference = built(batch), model(batch)
    for task, own in reference.items():
        for label, x in own.items():
            assert out[task][label].dtype == dtype
            assert torch.equal(out[task][label], x), (task, label)
    with torch.no_grad():
        built.backbone.embedding.weight.zero_()
    assert float(bundle.state["backbone.embedding.weight"].abs().sum()) > 0  # the model has its own copy


def test_published_gradient_division_survives() -> None:
    gradients = []
    model = a_model(divide_shared_gradients=True)
    for each in (model, Bundle.of(model, {}).build(), Bundle.of(a_model(), {}).build()):
        each.train()
        sum(x.sum() for own in each(a_batch()).values() for x in own.values()).backward()
        gradients.append(each.backbone.bases.mlp_rbf_h.linear.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2] / 2)  # two blocks


def test_provenance_says_where_it_comes_from() -> None:
    got = provenance("raw", command=["jmp-ds", "import-jmp", "x.ckpt"])
    assert got["weights"] == "raw"
    assert got["command"] == "jmp-ds import-jmp x.ckpt"
    assert got.keys() == {"jmp_ds", "torch", "command", "date", "weights", "data"}
    assert provenance("ema")["command"]


def test_weights_are_readable_by_whom_the_rest_is(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "b")
    modes = {file.stat().st_mode for file in (tmp_path / "b").iterdir()}
    (tmp_path / "ordinary").touch()
    assert modes == {(tmp_path / "ordinary").stat().st_mode}


def test_a_bundle_is_replaced_as_a_whole(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "best"
    save_bundle(bundle, path)
    other = Bundle.of(a_model(seed=1), {"weights": "raw"})
    save_bundle(other, path)
    assert load_bundle(path).provenance == {"weights": "raw"}
    assert os.listdir(tmp_path) == ["best"]


def test_a_failed_write_leaves_the_old_bundle(bundle: Bundle, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "best"
    save_bundle(bundle, path)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    for name in ("save_file", "to_disk"):
        with monkeypatch.context() as patch:
            patch.setattr(bundles, name, full)
            with pytest.raises(UserError, match=r"best: cannot be written \(No space left"):
                save_bundle(Bundle.of(a_model(seed=1), {"weights": "raw"}), path)
        assert load_bundle(path).provenance == bundle.provenance
        assert os.listdir(tmp_path) == ["best"]


def test_other_folders_are_not_overwritten(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and is no bundle"):
        save_bundle(bundle, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        save_bundle(bundle, tmp_path / "file" / "bundle")


def test_an_interrupted_replacement_is_told(bundle: Bundle, tmp_path: Path) -> None:
    aside = tmp_path / ".best.old-xyz"
    aside.mkdir()
    save_bundle(bundle, aside / "best")
    with pytest.raises(UserError, match=r"replacement was interrupted, the old one is .*\.best\.old-xyz/best"):
        load_bundle(tmp_path / "best")


def damaged(path: Path, what: str) -> None:
    """Break a saved bundle in one way."""
    spec_file, weights_file = path / "bundle.json", path / "model.safetensors"
    spec = json.loads(spec_file.read_text())
    tensors = load_file(weights_file)
    if what == "no json":
        spec_file.unlink()
    elif what == "no weights":
        weights_file.unlink()
    elif what == "bad json":
        spec_file.write_text("{")
    elif what == "other json":
        spec_file.write_text("[]")
    elif what == "version":
        spec_file.write_text(json.dumps({**spec, "version": 99}))
    elif what == "unknown size":
        spec_file.write_text(json.dumps({**spec, "model": {**spec["model"], "depth": 3}}))
    elif what == "no tasks":
        spec_file.write_text(json.dumps({**spec, "tasks": []}))
    elif what == "other size":
        spec_file.write_text(json.dumps({**spec, "model": {**spec["model"], "emb_size_rbf": 9}}))
    elif what == "cut off":
        weights_file.write_bytes(weights_file.read_bytes()[:-100])
    elif what == "missing":
        del tensors["heads.a.energy.0.weight"], tensors["heads.b.forces.8.weight"]
        save_file(tensors, weights_file)
    elif what == "unknown":
        save_file({**tensors, "heads.c.energy.0.weight": torch.zeros(1)}, weights_file)
    elif what == "not finite":
        tensors["backbone.embedding.weight"][3, 3] = float("nan")
        save_file(tensors, weights_file)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no json", r"final: not a bundle: bundle\.json is missing"),
        ("no weights", r"final: not a bundle: model\.safetensors is missing"),
        ("bad json", r"bundle\.json: cannot be read"),
        ("other json", r"bundle\.json: not the description of a bundle"),
        ("version", r"version 99 of the format, and this program reads versions 1, 2; .*wrote it \(\d"),
        ("unknown size", r"bundle\.json: does not describe a model \(.*depth"),
        ("no tasks", r"bundle\.json: does not describe a model \(.*at least one task"),
        ("other size", r"of another shape: .*mlp_rbf_h\.linear\.weight \(\(8, 64\) instead of \(9, 64\)\)"),
        ("cut off", r"model\.safetensors: damaged or incomplete"),
        ("missing", r"2 missing: heads\.a\.energy\.0\.weight, heads\.b\.forces\.8\.weight"),
        ("unknown", r"1 unknown: heads\.c\.energy\.0\.weight"),
        ("not finite", r"1 not finite: backbone\.embedding\.weight"),
    ],
)
def test_damage_is_named(bundle: Bundle, tmp_path: Path, what: str, message: str) -> None:
    save_bundle(bundle, tmp_path / "final")
    damaged(tmp_path / "final", what)
    with pytest.raises(UserError, match=message):
        load_bundle(tmp_path / "final")


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such bundle"):
        load_bundle(tmp_path / "nowhere")


def test_unfitted_scale_factors_name_the_command(tmp_path: Path) -> None:
    model = a_model()
    name = "backbone.int_blocks.1.quad_interaction.scale_cbf.scale_factor"
    model.get_buffer(name).zero_()
    bundle = Bundle.of(model, {})
    assert bundle.unfitted == [name]
    save_bundle(bundle, tmp_path / "fresh")
    with pytest.raises(UserError, match=rf"fresh has 1 scale factors .*{name}.*jmp-ds fit-scales"):
        load_bundle(tmp_path / "fresh")
    assert load_bundle(tmp_path / "fresh", require_fitted=False).unfitted == [name]


def test_fewer_neighbors_of_larger_structures_survive(tmp_path: Path) -> None:
    """A bundle without the key has no such rule; one with it says so, and nothing else is in its description."""
    graph = GraphSettings(fewer_neighbors=(FewerNeighbors(above=200, max_neighbors=10),))
    model = MultiTaskModel(preset("tiny"), (Task(name="s", graph=graph, energy=EnergyTarget()),))
    set_scales(model)
    save_bundle(Bundle.of(model, {}), tmp_path / "s")
    assert load_bundle(tmp_path / "s").tasks[0].graph == graph
    file = tmp_path / "s" / "bundle.json"
    spec = json.loads(file.read_text())
    settings = spec["tasks"][0]["graph"]
    assert settings.pop("fewer_neighbors") == [{"above": 200, "max_neighbors": 10}]
    assert settings == GraphSettings().to_dict()
    file.write_text(json.dumps(spec))
    assert load_bundle(tmp_path / "s").tasks[0].graph == GraphSettings()
    settings["fewer_neighbors"] = [{"above": 200, "max_neighbors": 40}]
    file.write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"bundle\.json: does not describe a model .*40 neighbours above 200 atoms"):
        load_bundle(tmp_path / "s")


def test_published_settings_survive_too(tmp_path: Path) -> None:
    task = Task(name="s", graph=published(8.0), energy=EnergyTarget())
    model = MultiTaskModel(preset("tiny"), (task,))
    set_scales(model)
    save_bundle(Bundle.of(model, {}), tmp_path / "s")
    read = load_bundle(tmp_path / "s")
    assert read.tasks == (task,)
    assert not read.config.direct_forces
