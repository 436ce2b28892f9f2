"""Learning-rate schedules against the published traces, and what variable batches and resumption must not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp_ds.training.schedules import (
    EarlyStopping,
    EarlyStoppingOptions,
    PlateauOptions,
    Schedule,
    ScheduleOptions,
)

FINETUNE_LIMITS = (0.01, 0.99)


@pytest.fixture(scope="module")
def traces(golden: Path) -> dict:
    return json.loads((golden / "misc.json").read_text())


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_pretraining_trace(traces: dict, batch: int) -> None:
    trace = traces["pretrain_schedule"]
    total = trace["max_steps"] * batch
    options = ScheduleOptions(
        warmup=trace["warmup_steps"] / trace["max_steps"],
        start_factor=trace["start_factor"],
        floor_factor=trace["min_factor"],
    )
    schedule = Schedule(options, trace["lr"], [1.0])
    published = trace["lr_used_at_optimizer_step"][: trace["max_steps"] + 1]  # afterwards it restarts; a run has ended
    ours = [schedule.rates(k * batch / total, batch / total)[0] for k in range(len(published))]
    assert ours == pytest.approx(published, rel=1e-12)


def finetune_schedule(trace: dict) -> Schedule:
    options = ScheduleOptions(
        kind="warmup_cosine_plateau",
        warmup=trace["warmup_epochs"],
        end=trace["max_epochs"],
        start_factor=0.1,
        floor_factor=0.1,
        floor_limits=FINETUNE_LIMITS,
    )
    return Schedule(options, trace["base_lr"], trace["group_scales"])


@pytest.mark.parametrize("interrupt_at", [None, 47, 67, 110])
def test_finetuning_trace(traces: dict, interrupt_at: int | None) -> None:
    trace = traces["finetune_schedule"]
    steps = trace["steps_per_epoch"]
    schedule = finetune_schedule(trace)
    for k, published in enumerate(trace["lr_used_at_step"]):
        if k == interrupt_at:
            state = json.loads(json.dumps(schedule.state()))
            schedule = finetune_schedule(trace)
            schedule.load_state(state)
        assert schedule.rates(k / steps, 1 / steps) == pytest.approx(published, rel=1e-12), k
        if (k + 1) % steps == 0:
            schedule.validated(trace["metrics_per_epoch"][k // steps], (k + 1) / steps, 1 / steps)


def test_plateau_ends_at_the_published_floor(traces: dict) -> None:
    schedule = finetune_schedule(traces["finetune_schedule"])
    for epoch in range(6, 400):
        schedule.validated(1.0, float(epoch), 1 / 6)
    assert schedule.rates(400.0, 1 / 6) == pytest.approx(traces["rlp_lr_floor_after_endless_plateau"], rel=1e-12)


def test_metrics_before_the_plateau_phase_are_not_seen() -> None:
    options = ScheduleOptions(kind="warmup_cosine_plateau", warmup=1.0, end=3.0, plateau=PlateauOptions(patience=0))
    schedule = Schedule(options, 1.0, [1.0])
    assert not schedule.validated(0.0, 2.0, 0.1)  # had it been seen, nothing later would improve on it
    assert not schedule.validated(5.0, 3.0, 0.1)
    assert schedule.validated(5.0, 4.0, 0.1)


@given(cuts=st.lists(st.integers(1, 40), min_size=20, max_size=60))
def test_variable_batches_follow_the_same_curve(cuts: list[int]) -> None:
    total = sum(cuts)
    schedule = Schedule(ScheduleOptions(warmup=0.3), 1.0, [1.0])
    position, rates = 0, []
    for cut in cuts:
        rates.append((position / total, schedule.rates(position / total, cut / total)[0]))
        position += cut
    assert all(0.1 - 1e-9 <= rate <= 1.0 + 1e-9 for _, rate in rates)
    cosine = [rate for where, rate in rates if where >= 0.3]
    assert cosine == sorted(cosine, reverse=True)
    assert schedule.rates(1.0, 1 / total) == pytest.approx([0.1])


def test_constant_and_no_warmup() -> None:
    assert Schedule(ScheduleOptions(kind="constant"), 2.0, [0.5, 1.0]).rates(0.7, 0.1) == [1.0, 2.0]
    assert Schedule(ScheduleOptions(warmup=0.0), 2.0, [1.0]).rates(0.0, 0.1) == [2.0]


def test_early_stopping_counts_and_resumes() -> None:
    stopping = EarlyStopping(EarlyStoppingOptions(patience=2))
    assert stopping.validated(1.0, [1e-3]) is None
    assert stopping.validated(1.0, [1e-3]) is None
    again = EarlyStopping(EarlyStoppingOptions(patience=2))
    again.load_state(json.loads(json.dumps(stopping.state())))
    assert "no improvement in 2 validations" in (again.validated(1.0 - 1e-9, [1e-3]) or "")
    assert stopping.validated(0.5, [1e-9]) == "learning rate 1e-09 is below 1e-08"
