"""Bytes of parameters, gradients and optimiser against DeepSpeed's estimators; test_held_states.py counts them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from jmp_ds.planning.collectives import step_collectives
from jmp_ds.planning.devices import GIB
from jmp_ds.planning.states import PRECISIONS, STAGES, ModelStates, PrecisionName, Stage, model_states


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_more_processes_and_higher_stages_never_need_more_for_long(stage: Stage, precision: PrecisionName) -> None:
    one, many = (model_states(10_000_000, stage, world, precision) for world in (1, 64))
    assert many.resident <= one.resident
    if stage:
        assert many.moments == pytest.approx(one.moments / 64, rel=1e-3)
        assert (
            model_states(10_000_000, stage, 64, precision).resident
            <= model_states(10_000_000, 0, 64, precision).resident
        )


def test_a_stage_shards_what_it_says() -> None:
    held: dict[Stage, ModelStates] = {stage: model_states(8_000_000, stage, 8, "bf16") for stage in STAGES}
    assert held[0].moments == 8 * held[1].moments == 64_000_000
    assert held[1].gradients == 8 * held[2].gradients == 32_000_000
    assert held[2].parameters == 8 * held[3].parameters == 32_000_000
    assert {f.name for f in fields(ModelStates) if getattr(held[2], f.name) != getattr(held[3], f.name)} == {
        "parameters",
        "gathered",
    }


@pytest.mark.parametrize(
    ("parameters", "world", "stage", "gib"),
    [
        (235e6, 8, 2, 0.93),
        (235e6, 32, 2, 0.56),
        (235e6, 8, 3, 0.51),
        (235e6, 32, 3, 0.14),
        (1e9, 8, 2, 3.96),
        (1e9, 32, 2, 2.39),
        (1e9, 8, 3, 2.17),
        (1e9, 32, 3, 0.60),
        (5e9, 8, 2, 19.79),
        (5e9, 32, 2, 11.93),
        (5e9, 8, 3, 10.85),
        (5e9, 32, 3, 2.99),
    ],
)
def test_deepspeeds_estimators_agree(parameters: float, world: int, stage: Stage, gib: float) -> None:
    """They count 16-bit parameters, float32 masters and moments, and gradients in both; no moving average, no buffers.

    At stage 3 they leave the 16-bit parameters out (2 bytes per parameter and process) and count the largest layer in
    float32, a fiftieth of the model in these figures.
    """
    p = int(parameters)
    ours = model_states(p, stage, world, "deepspeed-bf16")
    counted = ours.gradients + ours.masters + ours.moments + 4 * p // world
    counted += 4 * p // 50 if stage == 3 else ours.parameters
    assert counted / GIB == pytest.approx(gib, abs=0.006)


def test_sums_by_stage() -> None:
    """Stage 2 sums after every micro-batch, stages 0 and 1 once."""
    sent = {s: sum(m.sent(4) for m in step_collectives(1000, s, "bf16", accumulation=3)) for s in STAGES}
    assert sent == {0: 6000.0, 1: 9000.0, 2: 3 * 6000.0 + 3000.0, 3: 3 * 3000.0 + 3 * 6000.0}
    assert sum(m.sent(1) for m in step_collectives(1000, 2, "bf16")) == 0
