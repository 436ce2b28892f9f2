"""Published states under our names: full key lists, choice of weights, and errors that name every tensor."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from golden_systems import TINY, finetune_task, our_state, published_tasks
from published_files import averaged, checkpoint, raw_state
from torch import Tensor

from jmp_ds.bundle import state_shapes
from jmp_ds.errors import UserError
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.jmp_checkpoint import import_state, our_name, parameter_keys
from jmp_ds.models.presets import preset
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, ScalarTarget, Task

TASKS = ("oc20", "oc22", "ani1x", "transition1x")
LISTS = Path(__file__).parent / "published"
#: SHA-256 of the published optimizer's parameter names, one per line, and how many there are.
PARAMETER_ORDER = {"jmp-s": (405, "e4468105c2ee9d9b"), "jmp-l": (585, "87ad9ceb86a3d02d")}


def shapes(config: BackboneConfig, tasks: tuple[Task, ...]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return state_shapes(MultiTaskModel(config, tasks))


def listed(size: str) -> dict[str, Tensor]:
    """Every key of the published state with a tensor of its shape that takes no memory."""
    state = {}
    for line in (LISTS / f"{size}.txt").read_text().splitlines():
        name, shape, *_ = line.split()
        sizes = [] if shape == "scalar" else [int(n) for n in shape.split("x")]
        state[name] = torch.ones(()).expand(sizes)
    return state


@pytest.mark.parametrize("size", ["jmp-s", "jmp-l"])
def test_every_published_key_finds_its_place(size: str) -> None:
    raw, expected = listed(size), shapes(preset(size), published_tasks("ethanol"))
    state, report = import_state({"state_dict": raw}, expected, TASKS, "raw")
    assert report.unmatched == report.zero_factors == report.differing_aliases == ()
    assert state.keys() == expected.keys()
    constants = sum(bool(re.search(r"\.rbf\.|^task_steps", k)) for k in raw)
    aliases = sum(".seq_energy_pre." in k for k in raw)
    assert report.tensors == len(expected) == len(raw) - constants - aliases
    parameters = parameter_keys(list(raw))
    digest = hashlib.sha256("\n".join(parameters).encode()).hexdigest()[:16]
    assert (len(parameters), digest) == PARAMETER_ORDER[size]


def test_a_file_of_the_other_size_is_refused() -> None:
    expected = shapes(preset("jmp-s"), published_tasks("ethanol"))
    with pytest.raises(UserError, match=r"another size.*of another shape.*in the file only: .*int_blocks\.5") as caught:
        import_state({"state_dict": listed("jmp-l")}, expected, TASKS, "raw")
    assert "missing" not in str(caught.value)
    assert "backbone.int_blocks.4.dense_ca.linear.weight" in str(caught.value)


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Size]:
    return shapes(TINY, published_tasks("ethanol"))


def test_raw_weights_are_the_recorded_ones(tiny: dict[str, torch.Size]) -> None:
    state, report = import_state(checkpoint(raw_state(), None), tiny, TASKS, "raw")
    reference = our_state("tiny_pretrain_state")
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[k], reference[k]) for k in reference)
    assert report.unmatched == ()


def test_weights_are_chosen_tensor_by_tensor(tiny: dict[str, torch.Size]) -> None:
    raw = raw_state()
    content = checkpoint(raw, averaged(raw, 0.25))
    reference = our_state("tiny_pretrain_state")
    twice = re.compile(r"backbone\.out_blocks\.\d+\.layers\.")
    assert sum(bool(twice.match(k)) for k in reference) == 7 * 3
    for weights in ("ema", "published"):
        state, _ = import_state(content, tiny, TASKS, weights)  # type: ignore[arg-type]
        for name, x in reference.items():
            stays = name.endswith("scale_factor") or (weights == "published" and twice.match(name))
            assert torch.equal(state[name], x if stays else x + 0.25), (weights, name)
    # atom_update has layers of the same name, which are registered once
    assert not twice.match("backbone.int_blocks.0.atom_update.layers.0.linear.weight")


def test_absent_averages_name_the_other_choices(tiny: dict[str, torch.Size]) -> None:
    for weights in ("ema", "published"):
        with pytest.raises(UserError, match=r"no moving averages.*ema, raw and published.*only `raw`"):
            import_state(checkpoint(raw_state(), None), tiny, TASKS, weights)  # type: ignore[arg-type]
    raw = raw_state()
    ema = averaged(raw, 0.0)
    with pytest.raises(UserError, match=r"264 moving averages for 265 parameters"):
        import_state(checkpoint(raw, ema[:-1]), tiny, TASKS, "ema")
    swapped = [ema[1], ema[0], *ema[2:]]
    with pytest.raises(UserError, match=r"first at embedding\.atom_embedding\.weight"):
        import_state(checkpoint(raw, swapped), tiny, TASKS, "ema")
    with pytest.raises(UserError, match="no weights 'best'; the choices are ema, raw, published"):
        import_state(checkpoint(raw, ema), tiny, TASKS, "best")  # type: ignore[arg-type]


def test_every_unmatched_and_missing_key_is_named(tiny: dict[str, torch.Size]) -> None:
    raw = raw_state()
    extra = {
        "output.out_energy.4.0.weight": torch.zeros(1),
        "backbone.novel.weight": torch.zeros(1),
        "loss.w": torch.zeros(1),
    }
    _, report = import_state({"state_dict": {**raw, **extra}}, tiny, TASKS, "raw")
    assert report.unmatched == tuple(extra)
    gone = ["backbone.bases.mlp_rbf_h.linear.weight", "backbone.int_blocks.0.trip_interaction.scale_rbf.scale_factor"]
    with pytest.raises(UserError) as caught:
        import_state({"state_dict": {k: v for k, v in raw.items() if k not in gone}}, tiny, TASKS, "raw")
    assert "2 missing" in str(caught.value)
    assert all(name in str(caught.value) for name in gone)


def test_zero_factors_become_one_and_are_listed(tiny: dict[str, torch.Size]) -> None:
    raw = raw_state()
    name = "backbone.int_blocks.1.quad_interaction.scale_cbf.scale_factor"
    raw[name] = torch.zeros(())
    state, report = import_state({"state_dict": raw}, tiny, TASKS, "raw")
    assert report.zero_factors == (name,)
    assert float(state[name]) == 1.0


def test_differing_aliases_are_told(tiny: dict[str, torch.Size]) -> None:
    raw = raw_state()
    raw["backbone.out_blocks.0.seq_energy_pre.0.linear.weight"] += 1.0
    state, report = import_state({"state_dict": raw}, tiny, TASKS, "raw")
    name = "backbone.out_blocks.0.layers.0.linear.weight"
    assert report.differing_aliases == (name,)
    assert torch.equal(state[name], raw[name] + 1.0)  # the name that the published code reads last wins


def test_fine_tuned_layouts() -> None:
    task = finetune_task("ethanol")
    state, report = import_state(
        {"state_dict": raw_state("tiny_ft_gradforce_state")}, shapes(TINY, (task,)), ("ft",), "raw"
    )
    reference = our_state("tiny_ft_gradforce_state")
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[k], reference[k]) for k in reference)
    assert report.unmatched == ()


def test_fine_tuned_heads_of_the_published_list() -> None:
    graph = finetune_task("ethanol").graph
    both = Task(name="t", graph=graph, energy=EnergyTarget(), forces=ForcesTarget())
    scalars = Task(name="t", graph=graph, scalars=(ScalarTarget(label="alpha"), ScalarTarget(label="y")))
    expected = {**shapes(preset("jmp-s"), (both,)), **shapes(preset("jmp-s"), (scalars,))}
    lines = [line for line in (LISTS / "finetune-heads.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 41
    for line in lines:
        key, shape, _ = line.split()
        name = our_name(key, ("t",))
        assert name is not None
        assert tuple(expected[name]) == tuple(int(n) for n in shape.split("x")), key


def test_what_is_no_checkpoint_says_so(tiny: dict[str, torch.Size]) -> None:
    with pytest.raises(UserError, match="no state_dict in it; it has model, step"):
        import_state({"model": {}, "step": 1}, tiny, TASKS, "raw")
    with pytest.raises(UserError, match="not a Lightning checkpoint"):
        import_state([1, 2], tiny, TASKS, "raw")
    with pytest.raises(UserError, match="entries that are no tensors: a"):
        import_state({"state_dict": {"a": 1}}, tiny, TASKS, "raw")
