"""Fitting scale factors without triplet lists: the weights are the enumerated lists' own counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase.build import molecule
from building import batch_for, model_for
from golden_systems import SYSTEMS, given_batch, published_tasks, recorded
from small_models import set_scales, structure
from torch import Tensor

from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.interactions import (
    AtomEdgeInteraction,
    EdgeAtomInteraction,
    QuadrupletInteraction,
    _incoming,
)
from jmp_ds.models.scaling import ScaleFactor, fit_scale_factors, scale_factors, unfitted

LISTS = {
    "trip_e2e_in_out": ("main", lambda g: _incoming(g, g.main.target) - 1),
    "trip_a2e_in_out": ("a2ee2a", AtomEdgeInteraction._counts),
    "trip_e2a_in_out": ("main", EdgeAtomInteraction._counts),
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("key", list(LISTS))
def test_counts_are_those_of_the_recorded_triplets(name: str, key: str) -> None:
    z = recorded(name)
    if key not in z:
        pytest.skip(f"{name} records only a hash of {key} (more than 20,000 rows)")
    batch, order = given_batch(name, published_tasks(name))
    edges, counts = LISTS[key]
    expected = np.bincount(z[key][:, 0].astype(np.int64), minlength=len(order[edges]))
    np.testing.assert_array_equal(counts(batch.graph).numpy(), expected[order[edges]])


@pytest.mark.parametrize("name", SYSTEMS)
def test_quadruplets_are_counted_exactly(name: str) -> None:
    """Their number, without listing them, is that of the recorded list."""
    from golden_systems import INDEX

    batch, _ = given_batch(name, published_tasks(name))
    assert int(QuadrupletInteraction._counts(batch.graph).sum()) == INDEX["systems"][name]["quad_db_ba_ca_count"]


def observed(model: torch.nn.Module, run: object) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    seen: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for name, factor in scale_factors(model).items():

        def observer(x: Tensor, y: Tensor, counts: Tensor | None, name: str = name) -> Tensor:
            seen[name] = x, y, counts
            return y

        factor.observer = observer
    run()  # type: ignore[operator]
    for factor in scale_factors(model).values():
        factor.observer = None
    return seen


def enumerated_variance(x: Tensor, counts: Tensor | None) -> float:
    rows = x if counts is None else x.repeat_interleave(counts.long(), dim=0)
    return float(rows.double().var(dim=0, unbiased=True).mean())


def test_a_fit_equals_the_enumerated_one() -> None:
    """Each factor is sqrt(var before / var after) over listed triplets and quadruplets, earlier factors in place."""
    model = model_for(GraphSettings(cutoff=6.0))
    batches = [batch_for(model, [structure(molecule(n)) for n in names]) for names in (("CH3CH2OH", "CO"), ("C6H6",))]
    order: list[str] = []
    values = fit_scale_factors(model, lambda k: model(batches[k]), 2, lambda name, value: order.append(name))
    assert order[:2] == ["backbone.out_blocks.0.scale_sum", "backbone.out_blocks.0.scale_rbf_F"]
    assert order[2] == "backbone.int_blocks.0.trip_interaction.scale_rbf"
    assert len(order) == len(scale_factors(model)) == 2 * 11 + 3 * 2
    set_scales(model)
    with torch.no_grad():
        for name in order:
            seen = [observed(model, lambda b=b: model(b))[name] for b in batches]
            before = after = rows_before = rows_after = 0.0
            for x, y, counts in seen:
                n = float(counts.sum()) if counts is not None else float(len(x))
                before, rows_before = before + n * enumerated_variance(x, counts), rows_before + n
                after, rows_after = after + len(y) * enumerated_variance(y, None), rows_after + len(y)
            expected = math.sqrt((before / rows_before) / (after / rows_after))
            assert abs(values[name] - expected) <= 1e-6 * expected, name
            scale_factors(model)[name].scale_factor.fill_(values[name])


def test_operations_that_are_never_reached_get_one() -> None:
    model = model_for(GraphSettings(cutoff=6.0))
    batch = batch_for(model, [structure(molecule("H2"))])
    values = fit_scale_factors(model, lambda k: model(batch), 1)
    assert values["backbone.int_blocks.0.quad_interaction.scale_sbf_sum"] == 1.0
    assert not unfitted(model)


def test_unfitted_factors_are_named() -> None:
    model = model_for(GraphSettings(cutoff=6.0))
    first = next(iter(scale_factors(model)))
    scale_factors(model)[first].scale_factor.zero_()
    assert unfitted(model) == [first]
    scale_factors(model)[first].scale_factor.fill_(2.0)
    assert unfitted(model) == []
    assert float(ScaleFactor().scale_factor) == 0.0


def test_fitted_factors_bring_variances_together() -> None:
    """After the fit every observed operation keeps the variance of what it took."""
    model = model_for(GraphSettings(cutoff=6.0))
    batch = batch_for(model, [structure(molecule(n)) for n in ("CH3CH2OH", "C6H6", "CH3NO2")])
    values = fit_scale_factors(model, lambda k: model(batch), 1)
    assert all(v > 0 and math.isfinite(v) for v in values.values())
    with torch.no_grad():
        for name, (x, y, counts) in observed(model, lambda: model(batch)).items():
            ratio = enumerated_variance(y, None) / enumerated_variance(x, counts)
            assert 0.99 < ratio < 1.01, name


def test_factors_that_have_a_value_can_be_kept() -> None:
    model = model_for(GraphSettings(cutoff=6.0))
    batch = batch_for(model, [structure(molecule("CH3CH2OH"))])
    kept = "backbone.out_blocks.0.scale_sum"
    scale_factors(model)[kept].scale_factor.fill_(3.0)
    values = fit_scale_factors(model, lambda k: model(batch), 1, keep=[kept])
    assert kept not in values
    assert float(scale_factors(model)[kept].scale_factor) == 3.0


def test_a_failing_batch_ends_the_fit_with_its_error() -> None:
    model = model_for(GraphSettings(cutoff=6.0))
    batch = batch_for(model, [structure(molecule("CH3CH2OH"))])

    def run(k: int) -> object:
        if k == 1:
            raise RuntimeError("no such batch")
        return model(batch)

    with pytest.raises(RuntimeError, match="no such batch"):
        fit_scale_factors(model, run, 3)
    assert all(factor.observer is None for factor in scale_factors(model).values())
    with pytest.raises(ValueError, match="without structures"):
        fit_scale_factors(model, run, 0)


def test_an_interrupted_fit_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    model = model_for(GraphSettings(cutoff=6.0))
    batch = batch_for(model, [structure(molecule("CH3CH2OH"))])
    before = threading.active_count()
    join = threading.Thread.join

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_scale_factors(model, lambda k: model(batch), 4)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            join(thread, timeout=60)
    assert threading.active_count() <= before
