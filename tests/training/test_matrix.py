"""A sample of the matrix; the whole is `python tests/training/matrix.py --out docs`."""

from __future__ import annotations

import pytest
from matrix import ALLOWED, run, section, table
from matrix_cells import Cell, Verdict, all_cells, judge, oracle_of, refusal, window, with_bad_step

#: Every cell of this many; has no factor in common with the lengths of the axes, so all of their values occur.
EVERY = 41
SAMPLE = all_cells()[::EVERY]


@pytest.fixture(scope="module")
def results() -> list[tuple[Cell, Verdict]]:
    return run(SAMPLE, timeout=600.0)


def test_every_cell_passes_or_is_refused(results: list[tuple[Cell, Verdict]]) -> None:
    failed = [(cell, verdict.reason) for cell, verdict in results if verdict.outcome == "failed"]
    assert not failed
    assert {verdict.outcome for _, verdict in results} == {"passed", "refused"}


def test_the_sample_has_everything() -> None:
    for axis in ("world", "stage", "forces", "precision", "accumulation", "recompute", "data"):
        values = {getattr(cell, axis) for cell in all_cells()}
        assert {getattr(cell, axis) for cell in SAMPLE} == values, axis
    bad = [cell for cell in SAMPLE if with_bad_step(cell) and refusal(cell) is None]
    assert {cell.stage for cell in bad} == {0, 1, 2, 3}
    assert {cell.world for cell in bad} == {1, 2, 3}
    assert {cell.recompute for cell in bad} == {False, True}


def test_only_two_things_are_refused() -> None:
    for cell in all_cells():
        reason = refusal(cell)
        expected = cell.precision == "fp16" or (cell.stage == 3 and cell.forces == "gradient")
        assert (reason is not None) == expected, cell
        assert reason is None or any(text in reason for text in ALLOWED.values())


def test_the_page_tells_the_outcome(results: list[tuple[Cell, Verdict]]) -> None:
    text = section(results, 1.0, "command")
    assert f"0 failed**, of {len(SAMPLE)} cells" in text
    assert len(table(results)) == 2 + len({(c.stage, c.forces, c.precision) for c in SAMPLE})


def test_mistakes_would_be_seen() -> None:
    cell = Cell(2, 1, "direct", "float32", 1, False, "all")
    oracle = oracle_of(window(cell), "direct")
    assert judge(cell, oracle["float32"], oracle).outcome == "passed"
    for kind, name in (
        ("gradients", "backbone.bases.mlp_rbf_h.linear.weight"),
        ("averages", "heads.slabs.energy.0.bias"),
    ):
        wrong = {k: dict(v) for k, v in oracle["float32"].items()}
        wrong[kind][name] = wrong[kind][name] * 1.00001
        verdict = judge(cell, wrong, oracle)
        assert verdict.outcome == "failed"
        assert name in verdict.reason
    narrow = Cell(2, 1, "direct", "bf16", 1, False, "all")
    assert "not reduced precision" in judge(narrow, oracle["float32"], oracle).reason
    assert "was not skipped" in judge(cell, oracle["float32"], oracle, ["it was not skipped"]).reason
    doubled = {k: {n: t * 1.1 for n, t in v.items()} for k, v in oracle["float32"].items()}
    assert judge(narrow, doubled, oracle).outcome == "failed"
