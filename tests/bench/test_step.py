"""The step benchmark: what it counts is there, and its ratios are those of its rounds."""

from __future__ import annotations

import importlib.util
import json
import statistics
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from jmp_ds.bench import measure as measuring
from jmp_ds.bench.activity import _counted
from jmp_ds.bench.batches import load_batch
from jmp_ds.bench.floor import Floor
from jmp_ds.bench.measure import StepRequest, measure
from jmp_ds.bench.memory import refuse_beyond_memory, saved_by
from jmp_ds.bench.step import TrainingStep, build_model, enumerated, head_rows
from jmp_ds.cli.app import app
from jmp_ds.errors import UserError
from jmp_ds.models.counts import BatchCounts, DenseLayer, dense_layers, step_flops

CPU = torch.device("cpu")
LAYERS = [
    DenseLayer("a", 5, 3, 4),
    DenseLayer("b", 7, 2, 6, "geometry"),
    DenseLayer("c", 0, 9, 9),
    DenseLayer("d", 5, 4, 1, last=True),
]


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_the_floor_is_exactly_the_counted_products(forces: str) -> None:
    floor = Floor(LAYERS, forces, CPU, torch.float32)  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter:
        floor.run()
    assert counter.get_total_flops() == step_flops(LAYERS, forces)  # type: ignore[arg-type]


def test_the_enumerated_form_does_the_counted_products() -> None:
    """Its dense products in a training step are the published list with every head on every structure."""
    source = load_batch("aspirin")
    tasks = source.tasks("direct")
    model = build_model("tiny", tasks, recompute=False, precision="float32", device=CPU)
    step = TrainingStep(enumerated(model), model, source, "direct", "float32", CPU)
    ready = step.build()
    layers = dense_layers(model.config, BatchCounts.of(ready.batch), head_rows(tasks, ready.batch, every=True))
    with FlopCounterMode(display=False) as counter:
        step.on(ready)
    found = counter.get_flop_counts()["Global"]
    assert found[torch.ops.aten.mm] + found.get(torch.ops.aten.addmm, 0) == step_flops(layers, "direct")


@pytest.fixture(scope="module")
def found() -> dict:
    request = StepRequest(model="tiny", batch="aspirin", repeats=2, threads=1, compare="enumerated")
    return measure(request)


def test_ratios_are_medians_over_rounds(found: dict) -> None:
    for form in (found, found["enumerated"]):
        rounds = form["rounds"]
        assert len(rounds) == 2
        network = [r["forward"] + r["backward"] for r in rounds]
        whole = [n + r["graph"] + r["optimiser"] for n, r in zip(network, rounds, strict=True)]
        assert form["step_over_floor"] == pytest.approx(
            statistics.median(n / r["floor"] for n, r in zip(network, rounds, strict=True))
        )
        assert form["seconds"]["whole"] == pytest.approx(statistics.median(whole))
        assert form["atoms_per_s"] == pytest.approx(21 / statistics.median(whole))
    pairs = zip(found["rounds"], found["enumerated"]["rounds"], strict=True)
    speed_up = statistics.median((b["forward"] + b["backward"]) / (a["forward"] + a["backward"]) for a, b in pairs)
    assert found["speedup_over_enumerated"] == pytest.approx(speed_up)


def test_details_are_there(found: dict) -> None:
    for form in (found, found["enumerated"]):
        assert form["saved_bytes"] > 0
        assert form["saved_bytes_per_edge"] == pytest.approx(form["saved_bytes"] / found["counts"]["main"])
        assert form["operations"] > 100
        assert form["launches"] is None
        assert form["host_synchronisations"] == sum(form["waits"].values())
        parts = form["parts_seconds"]
        assert all(seconds >= 0 for seconds in parts.values())
        assert min(parts[name] for name in ("graph", "backward dense", "backward pointwise", "optimiser")) > 0
    parts = found["parts_seconds"]
    assert min(parts[f"{way}{name}"] for way in ("", "backward ") for name in ("bases", "interactions", "heads")) > 0
    json.dumps(found)


def test_saved_tensors_are_counted_once() -> None:
    """x·W, twice used: one storage; parameters, the batch and the loss's own scalar aside."""
    model = nn.Linear(3, 5, bias=False)
    batch = {"x": torch.randn(7, 3)}

    def work() -> torch.Tensor:
        y = model(batch["x"])
        return (y * y).sum()

    saved = saved_by(work, model, batch)
    assert saved.activations == 7 * 5 * 4
    assert saved.weight_copies == 0


def test_copies_of_weights_are_told_apart() -> None:
    model = nn.Linear(3, 5, bias=False)
    batch = {"x": torch.randn(7, 3, requires_grad=True)}
    saved = saved_by(lambda: (batch["x"] @ (2.0 * model.weight).t()).sum(), model, batch)
    assert (saved.activations, saved.weight_copies) == (0, 5 * 3 * 4)


def test_waits_are_found() -> None:
    """What needs a number, or a size, on the host."""
    x = torch.tensor([1.0, 0.0, 2.0])

    def work() -> None:
        x.sum().item()
        x[x > 0]
        x.nonzero()
        x + x
        x[torch.tensor([0, 1])]

    counted = _counted(work)
    assert counted.waits["_local_scalar_dense"] == 1
    assert counted.waits["index"] == 1
    assert counted.waits["nonzero"] == 1
    assert sum(counted.waits.values()) == 3
    assert counted.operations >= 6


def test_what_memory_will_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"needs about 1024\.0 TiB|needs about 1048576\.0 GiB"):
        refuse_beyond_memory(2**50, CPU)
    monkeypatch.setattr(measuring, "estimate", lambda *_: 2**60)
    with pytest.raises(UserError, match="GiB are free on cpu"):
        measure(StepRequest(model="tiny", batch="aspirin"))


def test_the_verb(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    options = ["--model", "tiny", "--batch", "aspirin", "--forces", "gradient", "--repeats", "1", "--no-details"]
    run = CliRunner().invoke(app, ["bench", "step", *options, "--json", str(out)])
    assert run.exit_code == 0, run.output
    assert "step / floor" in run.output
    found = json.loads(out.read_text())
    assert found["request"]["forces"] == "gradient"
    assert found["step_over_floor"] > 0
    assert "saved_bytes" not in found


def test_kernels_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match="kernels: the Triton kernels need the package triton"):
        measure(StepRequest(model="tiny", batch="aspirin", kernels="triton"))


def test_mistakes_are_one_line() -> None:
    run = CliRunner().invoke(app, ["bench", "step", "--batch", "nowhere"])
    assert run.exit_code == 2
    assert "no batch or file 'nowhere'" in run.output


def test_deviation_of_bf16_from_float32() -> None:
    request = StepRequest(model="tiny", batch="aspirin", precision="bf16", repeats=1, threads=1)
    deviation = measure(request)["deviation_from_float32"]
    assert 1e-4 < deviation["gradient_median"] < 0.1
    assert 0.0 < deviation["loss_relative"] < 0.05
