"""Configuration files: layers, strictness, places in messages, round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmp_ds.config import FinetuneConfig, PretrainConfig, load_finetune, load_pretrain
from jmp_ds.config.base import Section
from jmp_ds.config.loading import EXCLUSIVE, read_recipe, recipe_names
from jmp_ds.config.tasks import SplitConfig
from jmp_ds.config.yaml_files import Layer, merge, parse_override, parse_yaml
from jmp_ds.errors import UserError

PRETRAIN = """
run: {dir: runs/pretrain-small, seed: 0}
model: {preset: tiny, graph: {symmetrize: invariant, envelope: cutoff, dihedral: smooth}, kernels: auto, recompute: auto}
tasks:
  slabs:     {store: data/slabs,     graph: {cutoff: 12.0, max_neighbors: 30}, energy: {weight: 1}, forces: {weight: 73}}
  molecules: {store: data/molecules, graph: {cutoff: 8.0,  max_neighbors: 30}, energy: {weight: 1}, forces: {weight: 15}}
sampling: {temperature: 2.0, batch: {edges: 20000}, workers: 2}
train:
  epochs: 2
  optimizer: {lr: 3.0e-4, betas: [0.9, 0.95], weight_decay: 0.1}
  schedule: {warmup: 0.02, cosine_to: 0.1}
  clip_norm: 1.0
  ema: 0.99
  edge_dropout: 0.1
engine: {deepspeed: ds_configs/zero1_bf16.json}
validate: {every: 0.1}
checkpoint: {every: 0.05, keep: 3}
"""
FINETUNE = """
run: {dir: runs/aspirin}
from: {bundle: runs/pretrain-small/final, heads: new}
tasks:
  aspirin: {store: data/aspirin, forces: {kind: gradient, weight: 10}}
layerwise_lr: {embedding: 0.3, blocks: [0.55, 0.40]}
train:
  optimizer: {lr: 8.0e-5}
  schedule: {kind: warmup_cosine_plateau}
  clip_value: 1.0
  early_stopping: {patience: 50}
"""


@pytest.fixture
def pretrain_file(tmp_path: Path) -> Path:
    path = tmp_path / "pretrain.yaml"
    path.write_text(PRETRAIN)
    return path


@pytest.fixture
def finetune_file(tmp_path: Path) -> Path:
    path = tmp_path / "finetune.yaml"
    path.write_text(FINETUNE)
    return path


def test_the_examples_of_the_design_load(pretrain_file: Path, finetune_file: Path) -> None:
    pretrain = load_pretrain(pretrain_file).config
    assert pretrain.tasks["molecules"].graph.cutoff == 8.0
    assert pretrain.tasks["slabs"].forces is not None
    assert pretrain.tasks["slabs"].forces.weight == 73.0
    assert pretrain.train.optimizer.betas == [0.9, 0.95]
    finetune = load_finetune(finetune_file).config
    assert finetune.source.bundle == "runs/pretrain-small/final"
    assert finetune.layerwise_lr is not None
    assert finetune.layerwise_lr.blocks == [0.55, 0.40]


def test_the_resolved_file_reads_back_to_the_same(pretrain_file: Path, finetune_file: Path, tmp_path: Path) -> None:
    again = tmp_path / "config.yaml"
    pretrain = load_pretrain(pretrain_file, ["train.clip_norm=null", "train.optimizer.lr=1e-4"])
    again.write_text(pretrain.to_yaml())
    assert load_pretrain(again).config == pretrain.config
    finetune = load_finetune(finetune_file, ["from=scratch", "train.ema=null"])
    again.write_text(finetune.to_yaml())
    assert load_finetune(again).config == finetune.config


def test_layers_win_in_order(pretrain_file: Path) -> None:
    """Defaults < recipe < file < overrides."""
    text = PRETRAIN.replace("validate: {every: 0.1}", "").replace(
        "sampling: {temperature: 2.0, batch: {edges: 20000}, workers: 2}", ""
    )
    pretrain_file.write_text(text)
    assert load_pretrain(pretrain_file).config.sampling.batch.edges == 20000  # default
    published = load_pretrain(pretrain_file, recipe="published").config
    assert published.sampling.batch.structures == 4  # recipe, which takes back `edges`
    assert published.sampling.batch.edges is None
    assert published.validation.every == 0.25
    assert published.model.preset == "tiny"  # file over recipe
    assert load_pretrain(pretrain_file, ["model.preset=jmp-s"], "published").config.model.preset == "jmp-s"


def test_an_override_speaks_yaml(pretrain_file: Path) -> None:
    config = load_pretrain(
        pretrain_file, ["train.optimizer.betas=[0.8, 0.99]", "tasks.slabs.split={val: 0.2, test: 0.1}", "train.steps=7"]
    ).config
    assert config.train.optimizer.betas == [0.8, 0.99]
    assert config.tasks["slabs"].split.shares(100) == {"train": pytest.approx(0.7), "val": 0.2, "test": 0.1}
    assert (config.train.steps, config.train.epochs) == (7, None)


def test_numbers_without_a_point_are_numbers() -> None:
    """YAML 1.1 reads 3e-4 as text, a trap that costs people hours."""
    assert parse_yaml("lr: 3e-4", "x").values == {"lr": 3e-4}
    assert parse_yaml("lr: -1E5", "x").values == {"lr": -1e5}
    assert parse_yaml("date: 2020-01-02", "x").values == {"date": "2020-01-02"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x:3: a: the same key twice (first at x:1)"),
        ("a: {b: 1, b: 2}", "x:1: a.b: the same key twice"),
        ("a: [1, 2", "x:1: not valid YAML"),
        ("- a", "must hold `key: value` pairs"),
        ("a: !!python/object/apply:os.system [echo]", "not valid YAML: could not determine a constructor"),
        ("a: !!set {1, 2}", "only texts, numbers, lists and mappings"),
    ],
)
def test_bad_yaml_says_where(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "x")
    assert message in str(caught.value)


def test_a_message_names_file_line_key_and_the_nearest_name(pretrain_file: Path) -> None:
    pretrain_file.write_text(PRETRAIN.replace("graph: {cutoff: 8.0", "graph: {cutof: 8.0"))
    with pytest.raises(UserError) as caught:
        load_pretrain(pretrain_file)
    assert str(caught.value) == f"{pretrain_file}:6: tasks.molecules.graph.cutof: unknown key; did you mean 'cutoff'?"


def test_where_graphs_are_built_is_one_of_three_words(pretrain_file: Path, finetune_file: Path) -> None:
    for load, file in ((load_pretrain, pretrain_file), (load_finetune, finetune_file)):
        assert load(file).config.sampling.graphs == "auto"
        assert load(file, ["sampling.graphs=device"]).config.sampling.graphs == "device"
        with pytest.raises(UserError) as caught:
            load(file, ["sampling.graphs=gpu"])
        assert str(caught.value) == (
            "override 'sampling.graphs=gpu': sampling.graphs: must be 'auto', 'host' or 'device', got 'gpu'"
        )


def test_a_mistake_in_an_override_names_the_override(pretrain_file: Path) -> None:
    with pytest.raises(UserError, match=r"override 'train.optimizer.lrr=1': train.optimizer.lrr: unknown key"):
        load_pretrain(pretrain_file, ["train.optimizer.lrr=1"])


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_every_recipe_validates(kind: str, pretrain_file: Path, finetune_file: Path) -> None:
    """Over the example files, and without keys that the schema does not know."""
    assert {"default", "published"} <= set(recipe_names(kind))
    for name in recipe_names(kind):
        assert read_recipe(kind, name).values
        if kind == "pretrain":
            load_pretrain(pretrain_file, recipe=name)
        else:
            load_finetune(finetune_file, recipe=name)


def sections(model: type[Section]) -> set[type[Section]]:
    """A section class and all below it."""
    found = {model}
    for field in model.model_fields.values():
        for part in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            for inner in [part, *getattr(part, "__args__", ())]:
                if isinstance(inner, type) and issubclass(inner, Section):
                    found |= sections(inner)
    return found


def test_every_setting_is_described() -> None:
    every = sections(PretrainConfig) | sections(FinetuneConfig)
    assert len(every) > 15
    bare = [f"{s.__name__}.{n}" for s in every for n, f in s.model_fields.items() if not f.description]
    assert bare == []
    assert all(s.__doc__ for s in every)


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ({}, {"train": 0.9, "val": 0.1}),
        ({"val": 0.2}, {"train": 0.8, "val": 0.2}),
        ({"train": 900, "val": 50, "test": 50}, {"train": 900, "val": 50, "test": 50}),
        ({"val": 10}, {"train": 990, "val": 10}),
        ({"train": 0.5}, {"train": 0.5}),
        ({"val": 0, "test": 0.25}, {"train": 0.75, "test": 0.25}),
    ],
)
def test_split_shares(values: dict[str, float], shares: dict[str, float]) -> None:
    split = SplitConfig(**values)
    assert split.shares(1000) == shares
    assert split.validates == ("val" in shares)


@pytest.mark.parametrize("values", [{"train": 0.9, "val": 0.2}, {"val": 1.0}, {"train": 900, "val": 0.1}, {"train": 0}])
def test_splits_that_make_no_sense(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"fraction|count|nothing"):
        SplitConfig(**values)


VALUES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "epochs", "steps"]), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from(["a", "b", "epochs", "steps"]), VALUES, max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # however busy the machine is
@given(lower=MAPPINGS, upper=MAPPINGS)
def test_merging_keeps_what_the_upper_says(lower: dict[str, object], upper: dict[str, object]) -> None:
    """What the upper layer sets is in the result, whatever lies below; the lower layer stays as it was."""

    def contains(whole: object, part: object) -> bool:
        if isinstance(part, dict):
            return isinstance(whole, dict) and all(k in whole and contains(whole[k], v) for k, v in part.items())
        return whole == part

    before = repr(lower)
    merged = merge(Layer(lower), Layer(upper), EXCLUSIVE).values
    assert contains(merged, upper)
    assert repr(lower) == before
    assert merge(Layer(lower), Layer({}), EXCLUSIVE).values == lower


def test_override_places_cover_the_path() -> None:
    layer = parse_override("a.b={c: [1, {d: 2}]}")
    assert layer.values == {"a": {"b": {"c": [1, {"d": 2}]}}}
    assert {("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "1", "d")} <= set(layer.origins)


@pytest.mark.parametrize(("text", "read"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_on_and_off_are_words(pretrain_file: Path, text: str, read: str) -> None:
    """YAML takes them for true and false."""
    resolved = load_pretrain(pretrain_file, [f"model.recompute={text}"])
    assert resolved.config.model.recompute == read
    assert parse_yaml(resolved.to_yaml(), "x").values["model"]["recompute"] == read
