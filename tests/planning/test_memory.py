"""What a network runs on: the backend, and the estimate of activations that decides on recomputation."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from jmp_kernels import TorchMessages

from jmp_ds.bench.batches import load_batch
from jmp_ds.bench.memory import saved_by
from jmp_ds.bench.step import Precision, TrainingStep, build_model, head_rows, linear_time
from jmp_ds.errors import UserError
from jmp_ds.models.counts import BatchCounts, HeadRows
from jmp_ds.models.presets import preset
from jmp_ds.planning import available, backend, graphs_on, kept_numbers, scaled, step_memory
from jmp_ds.tasks.specs import ForceKind

CPU = torch.device("cpu")
COUNTS = BatchCounts(
    structures=4, atoms=80, main=2000, a2ee2a=1500, qint=300, a2a=5000, pairs=4000, in_triplets=4000, out_pairs=4000
)
HEADS = [HeadRows("t.energy", "atoms", 80), HeadRows("t.forces", "edges", 2000)]


def test_graphs_are_built_where_the_model_runs_unless_told() -> None:
    assert [graphs_on("auto", device) for device in ("cpu", "cuda", torch.device("cuda", 1), "mps")] == [
        *("host", "device", "device", "host")
    ]
    assert {
        (place, device): graphs_on(place, device) for place in ("host", "device") for device in ("cpu", "cuda")
    } == {(place, device): place for place in ("host", "device") for device in ("cpu", "cuda")}
    with pytest.raises(UserError, match="must be one of auto, host, device, got 'there'"):
        graphs_on("there", CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "batch", "forces", "precision"),
    [
        ("tiny", "slab98", "direct", "float32"),
        ("tiny", "mixed", "direct", "float32"),
        ("tiny", "ani64", "gradient", "float32"),
        ("jmp-s", "slab98", "direct", "float32"),
        ("jmp-s", "slab98", "direct", "bf16"),
        pytest.param("jmp-s", "aspirin4", "gradient", "float32", marks=pytest.mark.slow),
        pytest.param("jmp-l", "aspirin4", "direct", "float32", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_is_near_what_autograd_keeps(
    size: str, batch: str, forces: ForceKind, precision: Precision, recompute: bool
) -> None:
    source = load_batch(batch)
    tasks = source.tasks(forces)
    model = build_model(size, tasks, recompute=recompute, precision=precision, device=CPU)
    step = TrainingStep(linear_time(model), model, source, forces, precision, CPU)
    ready = step.build()
    seen = saved_by(lambda: step.loss(ready), model, ready.batch).activations
    heads, itemsize = head_rows(tasks, ready.batch), 2 if precision == "bf16" else 4
    memory = step_memory(model.config, BatchCounts.of(ready.batch), heads, forces, itemsize=itemsize)
    assert memory.kept == pytest.approx(seen, rel=0.25)
    parameters = sum(p.numel() for p in model.parameters())
    assert memory.trained == pytest.approx(20 * parameters, rel=0.02)


def test_recomputation_saves_nothing_with_gradient_forces() -> None:
    config = preset("jmp-s")
    again = step_memory(replace(config, recompute=True), COUNTS, HEADS, "gradient")
    assert again == step_memory(config, COUNTS, HEADS, "gradient")


def test_recomputation_needs_less() -> None:
    config = preset("jmp-s")
    kept = step_memory(config, COUNTS, HEADS, "direct")
    again = step_memory(replace(config, recompute=True), COUNTS, HEADS, "direct")
    assert again.kept < kept.kept / 3
    assert again.total < kept.total
    assert again.total == again.trained + again.kept + again.passing


def test_padding_is_paid_for_where_there_is_some() -> None:
    config = preset("jmp-s")
    padded, tight = (kept_numbers(config, COUNTS, HEADS, padded=padded) for padded in (True, False))
    assert (padded.edges, padded.atoms) == (tight.edges, tight.atoms)
    assert padded.tables > tight.tables


def test_memory_grows_with_the_batch() -> None:
    double = scaled(COUNTS, 4000)
    assert (double.main, double.atoms, double.structures, double.in_triplets) == (4000, 160, 8, 8000)
    config = preset("tiny")
    heads = [replace(head, rows=2 * head.rows) for head in HEADS]
    assert kept_numbers(config, double, heads).edges == 2 * kept_numbers(config, COUNTS, HEADS).edges


def test_a_batch_without_edges_can_be_scaled() -> None:
    assert scaled(replace(COUNTS, main=0), 0).main == 0


def test_free_memory_of_the_host() -> None:
    free = available(CPU)
    if free is None:
        pytest.skip("this system has no /proc/meminfo")
    assert 2**20 < free < 2**50


def test_backends_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(backend("auto", CPU), TorchMessages)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match="kernels: the Triton kernels need the package triton"):
        backend("triton", CPU)
