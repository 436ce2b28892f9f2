"""Growth of cost: which graphs are grown, and the fit."""

from __future__ import annotations

import numpy as np
import pytest

from jmp_ds.bench.__main__ import main, request_of
from jmp_ds.bench.growth import NEIGHBORS, FixedCaps, Form, GrowthPoint, _batches, crystal, csv_rows, exponent, grow
from jmp_ds.errors import UserError


def test_crystal() -> None:
    """Twelve neighbours near 2.55 Å; rattled by a tenth of an Ångström."""
    structure = crystal((3, 3, 3))
    cell = np.diag(structure.cell)
    apart = structure.pos[:, None] - structure.pos[None]
    apart -= cell * np.round(apart / cell)
    length = np.linalg.norm(apart, axis=-1)
    near = (length < 3.1) & (length > 0)
    assert near.sum(1).mean() == pytest.approx(12.0, abs=0.3)
    assert length[near].mean() == pytest.approx(2.55, abs=0.05)


def test_caps() -> None:
    settings = FixedCaps(cutoff=12.0, max_neighbors=120)
    assert settings.caps_of(1) == (120, 1000, 20, 8)
    proportional = dict(_batches("neighbors-proportional"))
    assert proportional[120].graphs["slabs"].caps_of(1) == (120, 4000, 80, 32)
    assert [size for size, _ in _batches("neighbors")] == list(NEIGHBORS)
    assert [batch.structures[0].natoms for _, batch in _batches("atoms")] == [48, 96, 192, 400]


def test_exponent() -> None:
    points = [GrowthPoint("atoms", n, n, n, n, 3.0 * n**1.5, 2.0 * n) for n in (10, 20, 40)]
    assert exponent(points, "interactions") == pytest.approx(1.5)
    assert exponent(points, "network") == pytest.approx(1.0)
    assert csv_rows(points)[0]["interactions"] == "94.868"


@pytest.mark.parametrize("form", ["linear", "enumerated"])
def test_a_measured_point(form: Form) -> None:
    point = next(grow("atoms", "tiny", repeats=1, form=form))
    assert point.atoms == point.size == 48
    assert point.interactions > 0.0
    assert point.network > 0.0


def test_the_enumerated_form_is_refused_beyond_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp_ds.bench.memory.available", lambda device: 1000)
    with pytest.raises(UserError, match="GiB are free"):
        next(grow("atoms", "tiny", repeats=1, form="enumerated"))


def test_words_to_a_request() -> None:
    """The entry for machines without the command line."""
    request = request_of(["model=tiny", "recompute=on", "repeats=3", "cutoff=7.5", "details=off"])
    assert (request.model, request.recompute, request.repeats) == ("tiny", True, 3)
    assert (request.cutoff, request.details) == (7.5, False)
    for wrong in ("speed=1", "repeats=many", "recompute=perhaps"):
        with pytest.raises(UserError, match=wrong):
            request_of([wrong])
    assert main([]) == 2
