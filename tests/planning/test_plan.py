"""Plans: predictions, choices, the largest structure, devices fitted to measured steps."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_stores import write_store

from jmp_ds.bench.batches import load_batch
from jmp_ds.bench.prediction import compare, summary
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import assemble
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.counts import BatchCounts, dense_layers, forward_flops, step_flops
from jmp_ds.models.presets import preset
from jmp_ds.planning.batches import head_rows, named_batch, named_counts, store_batch, with_edges
from jmp_ds.planning.choice import candidates, choose, offloaded, ready_config
from jmp_ds.planning.collectives import Collective
from jmp_ds.planning.devices import GIB, Device, cluster, device, device_names
from jmp_ds.planning.duration import step_time, work_of
from jmp_ds.planning.fitting import fit_seconds
from jmp_ds.planning.largest import largest_structure
from jmp_ds.planning.measured import fitted_device, read_step
from jmp_ds.planning.plan import Setting, predict
from jmp_ds.training.ds_config import SHIPPED, shipped_configs

FILES = sorted((Path(__file__).parents[2] / "docs/benchmarks/plan-cpu").glob("*.json"))
SMALL = GraphSettings(cutoff=5.0, max_neighbors=6)
LINKS = cluster("nvlink4", "ib-8x400", 8)
CONFIGS = [ready_config(name, json.loads((SHIPPED / f"{name}.json").read_text())) for name in shipped_configs()]


def setting(model: str = "jmp-l", **changes: Any) -> Setting:
    edges = changes.pop("edges", 20_000)
    return Setting(model=model, config=preset(model), batch=with_edges(named_batch("mixed"), edges), **changes)


# ------------------------------------------------------------------------------------------------ what is counted


@pytest.mark.parametrize("name", ["slab98", "aspirin4", "ani64"])
def test_named_counts_are_those_of_the_batches(name: str) -> None:
    assert named_counts()[name] == BatchCounts.of(load_batch(name).assemble("direct"))


def test_a_store_gives_its_own_proportions(tmp_path: Path) -> None:
    write_store(tmp_path / "store", seed=1)
    counts = store_batch(tmp_path / "store", SMALL).counts
    assert counts.structures == 64
    assert counts.atoms > 64
    assert counts.a2a >= counts.main > 0
    whole = Store(tmp_path / "store")
    found = assemble([r.structure() for r in whole.range(0, len(whole))], [0] * len(whole), [("t", SMALL)])
    seen = BatchCounts.of(found)
    for name in ("main", "qint", "in_triplets", "out_pairs"):
        assert getattr(counts, name) / 64 == pytest.approx(getattr(seen, name) / len(whole), abs=0.02)
    with pytest.raises(UserError, match="--edges must be at least 1"):
        with_edges(named_batch("mixed"), 0)


def test_work_is_the_floor_and_blocks_again() -> None:
    config, counts = preset("jmp-s"), named_counts()["slab98"]
    heads = head_rows(counts, 4, "direct")
    layers = dense_layers(config, counts, heads)
    plain = work_of(config, counts, heads, "direct")
    again = work_of(replace(config, recompute=True), counts, heads, "direct")
    assert plain.flops == step_flops(layers, "direct")
    blocks = forward_flops([x for x in layers if x.name.startswith(("int_blocks", "out_blocks"))])
    assert again.flops - plain.flops == blocks


# -------------------------------------------------------------------------------------------------------- devices


def test_every_device_has_a_source_and_all_rates() -> None:
    for name in device_names():
        found = device(name)
        assert found.source
        assert set(found.flops) == {"float32", "tf32", "bf16", "fp16"}
        assert found.memory > 20 * GIB
        cluster(found.link, "ethernet-100", 8)
    with pytest.raises(UserError, match="no device 'h300'; there are h200"):
        device("h300")
    with pytest.raises(UserError, match="no network"):
        cluster("nvlink4", "pigeon", 8)


def test_messages_between_nodes_go_at_the_network_s_rate() -> None:
    slow = cluster("nvlink4", "ethernet-100", 8)
    message = Collective("all_reduce", 10**9, 1)
    assert message.seconds(1, slow) == 0.0
    assert message.seconds(8, slow) == pytest.approx(2 * 7 / 8 * 1e9 / (0.8 * 450e9), rel=0.02)
    assert message.seconds(16, slow) == pytest.approx(2 * 15 / 16 * 1e9 / (0.8 * 12.5e9), rel=0.01)


def test_starting_operations_bounds_small_steps_on_a_gpu_and_adds_on_a_cpu() -> None:
    counts = named_counts()["aspirin4"]
    config, heads = preset("jmp-s"), head_rows(counts, 1, "direct")
    gpu = device("h200")
    common: dict[str, Any] = {"parameters": 44_000_000, "precision": "bf16", "stage": 1, "world": 1}
    fast = step_time(config, counts, heads, "direct", gpu, LINKS, **common)
    assert fast.network == fast.starting > fast.products + fast.passes
    alone = step_time(config, counts, heads, "direct", replace(gpu, concurrent=False), LINKS, **common)
    assert alone.network == pytest.approx(fast.starting + fast.products + fast.passes)


# ---------------------------------------------------------------------------------------------------- predictions


def test_a_component_for_everything_and_a_peak_that_is_their_sum() -> None:
    p = predict(setting(stage=2, world=8), device("h200"), LINKS)
    s, m = p.memory.states, p.memory
    backward = s.parameters + s.gradients + s.masters + s.moments + s.average + s.buckets + m.activations + m.workspace
    assert m.total == backward > s.in_step
    assert p.time.total == pytest.approx(p.time.network + p.time.optimiser + p.time.collectives)
    assert p.fits


def test_hours_are_structures_over_rate() -> None:
    p = predict(setting(world=64), device("h200"), LINKS)
    hours = p.device_hours(120e6, 2)
    assert hours == pytest.approx(64 * 240e6 / p.structures_per_s / 3600, rel=1e-3)
    mean = p.setting.batch.counts.main / p.setting.batch.counts.structures
    assert p.device_hours(120e6, 2, 2 * mean) == pytest.approx(2 * hours)


@pytest.mark.parametrize("model", ["jmp-s", "jmp-l", "jmp-xl", "jmp-xxl"])
@pytest.mark.parametrize("world", [1, 8, 4096])
def test_every_model_on_one_to_four_thousand_devices(model: str, world: int) -> None:
    """Something is said for each; on eight H200s every preset trains with a ready configuration."""
    found = candidates(setting(model, world=world), device("h200"), LINKS)
    choice = choose(found, device("h200"), LINKS, CONFIGS)
    assert choice.advice
    if (model, world) != ("jmp-xxl", 1):
        assert choice.best is not None
        assert choice.best.fits
        assert choice.config in shipped_configs()
        assert (choice.config == "one_gpu") == (world == 1)


def test_gradient_forces_never_get_stage_three() -> None:
    found = candidates(setting(forces="gradient", world=8), device("h200"), LINKS, stages=(3,))
    choice = choose(found, device("h200"), LINKS, CONFIGS)
    assert choice.best is None
    assert "Stage 3 is out" in choice.advice[0]


def test_too_large_a_batch_is_told_the_batch_that_fits() -> None:
    gpu = device("rtx4090")
    found = candidates(setting(edges=2_000_000), gpu, LINKS)
    choice = choose(found, gpu, LINKS, CONFIGS)
    assert choice.best is None
    edges = int(choice.advice[-1].split("at most about ")[1].split()[0])
    for share, fits in ((0.97, True), (1.03, False)):
        found = candidates(setting(edges=int(share * edges)), gpu, LINKS)
        assert any(p.fits for p in found) is fits


def test_too_large_a_model_is_told_how_many_devices() -> None:
    gpu = device("a100-40")
    choice = choose(candidates(setting("jmp-xxl"), gpu, LINKS), gpu, LINKS, CONFIGS)
    assert choice.best is None
    world = int(choice.advice[-1].split(": take ")[1].split()[0])
    for devices, fits in ((world, True), (world // 2, False)):
        found = candidates(setting("jmp-xxl", world=devices, edges=1), gpu, LINKS)
        assert any(p.fits for p in found) is fits


def test_configurations_are_known_by_their_contents() -> None:
    assert {(c.name, c.stage, c.precision) for c in CONFIGS if c.offload == "none" and not c.for_cpu} >= {
        ("zero1_bf16", 1, "bf16"),
        ("zero2_fp32", 2, "float32"),
    }
    offloading = {c.name: (c.stage, c.precision, c.offload) for c in CONFIGS if c.offload != "none" and not c.for_cpu}
    assert offloading == {
        "few_gpus_offload": (2, "bf16", "optimiser"),
        "few_gpus_offload_all": (3, "deepspeed-bf16", "all"),
    }
    assert ready_config("x", {"bf16": {"enabled": True}}).precision == "deepspeed-bf16"


def test_states_are_either_on_the_device_or_in_the_machine() -> None:
    """Of 16 bytes of masters, moments and averages per parameter, and gradients; two processes hold half each."""
    plain = predict(setting(stage=2, world=2, recompute=True), device("a100-40"), LINKS)
    below = predict(setting(stage=2, world=2, recompute=True, offload="optimiser"), device("a100-40"), LINKS)
    parameters = plain.setting.parameters
    assert below.memory.states.resident == 4 * parameters
    assert below.host == pytest.approx(2 * 20 * parameters / 2, rel=1e-6)
    assert plain.host == plain.time.transfers == 0
    assert plain.memory.states.resident - below.memory.states.resident == pytest.approx(8 * parameters, rel=1e-6)
    everything = predict(setting(stage=3, world=2, offload="all", precision="deepspeed-bf16"), device("a100-40"), LINKS)
    assert everything.memory.states.resident == 0
    assert everything.host == pytest.approx((20 + 2) * parameters, rel=1e-6)


def test_transfers_go_over_the_link_to_the_machine() -> None:
    where, one = device("h200"), setting(stage=2, world=4, offload="optimiser")
    links = cluster("nvlink4", "ib-8x400", 8, "pcie5")
    once, four = (predict(replace(one, accumulation=n), where, links).time for n in (1, 4))
    part = one.parameters / 4
    assert once.transfers == pytest.approx(part * (4 + 4) / (0.8 * 50e9))
    assert four.transfers == pytest.approx(part * (4 * 4 + 4) / (0.8 * 50e9))  # parameters come up once
    every = replace(one, stage=3, offload="all", precision="deepspeed-bf16", accumulation=4)
    assert predict(every, where, links).time.transfers == pytest.approx(part * 4 * (2 + 2 * 2) / (0.8 * 50e9))
    assert once.optimiser == pytest.approx(44 * part * 4 / 100e9)  # four processes share the machine's memory
    assert once.total > predict(replace(one, offload="none"), where, links).time.total


def test_what_the_machine_cannot_hold_is_told() -> None:
    small = cluster("nvlink4", "ib-8x400", 8, "pcie4", 64)
    found = offloaded(setting("jmp-xxl", world=1, precision="deepspeed-bf16"), device("rtx4090"), small)
    chosen = choose(found, device("rtx4090"), small, CONFIGS)
    assert chosen.best is None
    assert any("GiB of each machine's memory, 51.2 GiB are usable" in line for line in chosen.advice), chosen.advice
    large = replace(small, host=replace(small.host, memory=400 * GIB))
    chosen = choose(
        offloaded(setting("jmp-xxl", world=1, precision="deepspeed-bf16", edges=2000), device("rtx4090"), large),
        device("rtx4090"),
        large,
        CONFIGS,
    )
    assert chosen.config == "few_gpus_offload_all", chosen.advice
    assert "usable GiB per machine for optimiser states and parameters" in chosen.advice[0]


def test_the_largest_structure_fills_the_device() -> None:
    gpu = device("a100-80")
    found = largest_structure(setting(), gpu)
    batch = named_batch("slab225x4")
    full = with_edges(batch, found.edges)
    used = predict(setting(), gpu, LINKS)
    used = predict(replace(used.setting, batch=full), gpu, LINKS)
    assert used.memory.total == pytest.approx(used.limit, rel=0.01)
    assert largest_structure(setting(recompute=True), gpu).atoms > 2 * found.atoms
    assert largest_structure(setting("jmp-xxl"), device("rtx4090")).atoms == 0


# ------------------------------------------------------------------------------------------------ measured steps


def test_measured_steps_are_predicted_within_the_stated_error() -> None:
    """The files of docs/planning.md; times of models and batches that were not fitted to, from those of one batch."""
    base = [path for path in FILES if "slab98-float32" in path.name]
    found = compare(FILES, base)
    assert sum(not c.fitted for c in found) >= 10
    for c in found:
        assert c.saved == pytest.approx(1, abs=0.26)
        assert c.peak == pytest.approx(1, abs=0.30)
        assert c.time is None or c.time == pytest.approx(1, abs=0.20)
    assert any(line.startswith("time, others: median") for line in summary(found))


def test_a_fit_finds_the_constants_and_none_below_zero() -> None:
    rng = np.random.default_rng(0)
    columns = rng.uniform(1, 10, (8, 3))
    assert fit_seconds(columns, columns @ [2.0, 0.5, 3.0]) == pytest.approx((2.0, 0.5, 3.0))
    seconds = columns @ [2.0, 0.0, 0.0] - 0.01 * columns[:, 1]
    assert min(np.linalg.lstsq(columns / seconds[:, None], np.ones(8))[0]) < 0.0
    assert min(fit_seconds(columns, seconds)) == 0.0


def test_no_other_constants_are_nearer_than_the_fitted_ones() -> None:
    rng = np.random.default_rng(1)
    columns = rng.uniform(1, 10, (30, 5)) * [1e12, 1e9, 1e3, 1.0, 0.0]
    seconds = columns @ [1e-12, 0.0, 1e-4, 2.0, 0.0] * (1 + 0.1 * rng.normal(size=30))
    found = fit_seconds(columns, seconds)
    assert found[4] == 0.0
    relative = columns / seconds[:, None]
    slope = relative.T @ (relative @ found - 1) / np.linalg.norm(relative, axis=0).clip(1e-9)
    assert slope[found > 0] == pytest.approx(0.0, abs=1e-9)
    assert (slope[found == 0] >= 0.0).all()


def test_one_file_gives_a_rate_of_products_alone() -> None:
    step = read_step(next(path for path in FILES if path.name.startswith("jmp-s-slab98-float32")))
    found = fitted_device([step], "float32", GIB)
    assert found.flops["float32"] == pytest.approx(step.work.flops / step.network)
    assert (found.per_operation, found.passes) == (0.0, 0.0)


def test_files_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="not a file of `jmp-ds bench step --json`"):
        read_step(tmp_path / "list.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_step(tmp_path / "absent.json")
    step = read_step(FILES[0])
    with pytest.raises(UserError, match="no file has precision deepspeed-fp16"):
        fitted_device([step], "deepspeed-fp16", GIB)
    with pytest.raises(UserError, match="several devices"):
        fitted_device([step, replace(step, device="other")], "float32", GIB)


def test_a_device_is_a_plain_value() -> None:
    assert Device(**asdict(device("h100"))) == device("h100")
