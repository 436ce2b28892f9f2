"""Microbenchmarks: lists of real batches, all forms against float64, the gate, the report, and the search."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jmp_kernels.bench import measure, verify
from jmp_kernels.bench.__main__ import main
from jmp_kernels.bench.checking import check, reference, relative_rms, repeats
from jmp_kernels.bench.forms import SIZES, Case, Form, Values
from jmp_kernels.bench.lists import lists_of, read_degrees, shipped, small_degrees
from jmp_kernels.bench.output import Table, plot, read_rows
from jmp_kernels.bench.passes import prepare
from jmp_kernels.bench.registry import OPERATORS
from jmp_kernels.bench.timing import Roofline, time_work

CPU = torch.device("cpu")
DEGREES = (5, 0, 17, 1, 33)


def case(operator: str, degrees: tuple[int, ...] = DEGREES, dtype: torch.dtype = torch.float32, **more: Any) -> Case:
    lists = lists_of("small", small_degrees(degrees), more.get("device", CPU))
    values = Values(dtype, more.get("device", CPU))
    return OPERATORS[operator](lists, SIZES[more.get("sizes", "tiny")], values, more.get("triton", False))


def measured_forms(held: Case) -> list[Form]:
    """Those that need no compiler."""
    return [form for form in held.forms if form.name != "compiled"]


# --- lists ------------------------------------------------------------------------------------------------------------


def test_shipped_lists_are_consistent() -> None:
    for name in shipped():
        degrees = read_degrees(name)
        lists = lists_of(name, degrees, CPU)
        rows = lists.middles
        assert lists.main.num_rows == int(degrees.main.sum())
        for gather in (rows.feature, rows.middle, lists.source, lists.pair_source):
            assert int(gather.index.min()) >= 0
            assert int(gather.index.max()) < gather.count
        found = rows.same.found
        assert 0.5 < float(found.float().mean()) < 1
        # d = c is an in-triplet of the pair's own middle bond, and no in-triplet serves two pairs of one edge
        assert torch.equal(rows.by_middle.index[rows.same.index[found]], rows.middle.index[found])
        assert torch.equal(rows.middle_target[rows.middle.index], rows.reader_target[rows.by_reader.index])
        twins = lists.twin.index[lists.twin.found]
        assert torch.equal(lists.atom_edge.index[twins], lists.main.index[lists.twin.found])
        assert len(twins.unique()) == len(twins)


def test_unknown_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch 'nonsense'; there are oc20x8"):
        read_degrees("nonsense")


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [(), (0, 0), DEGREES], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_all_forms_agree_in_float64(operator: str, degrees: tuple[int, ...]) -> None:
    held = case(operator, degrees, torch.float64)
    expected = reference(held)
    for form in measured_forms(held):
        assert check(held, form, expected).complaints == (), form.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operator", OPERATORS)
def test_all_forms_agree_in_other_formats(operator: str, dtype: torch.dtype) -> None:
    held = case(operator, dtype=dtype, sizes="odd")
    expected = reference(held)
    for form in measured_forms(held):
        verdict = check(held, form, expected)
        assert verdict.complaints == (), form.name
        assert verdict.error < 1e-2


@pytest.mark.parametrize("operator", ["segment_sum", "gather_rows", "segment_outer", "pair", "quadruplet_moments"])
def test_kernels_pass_the_check(operator: str, device: torch.device) -> None:
    held = case(operator, (3, 0, 2), triton=True, device=device)
    kernel = held.forms[-1]
    assert kernel.name == "triton"
    with verify.poisoned():
        assert check(held, kernel, reference(held)).complaints == ()
    assert repeats(held, kernel)


def broken(wrong: Callable[..., torch.Tensor]) -> Case:
    held = case("segment_outer")
    return replace(held, forms=(held.forms[0], Form("broken", wrong)))


@pytest.mark.parametrize(
    ("factor_x", "factor_u", "says"),
    [(1.01, 1.0, "output"), (float("nan"), 1.0, "output")],
)
def test_a_wrong_output_is_found(factor_x: float, factor_u: float, says: str) -> None:
    right = case("segment_outer").forms[0].function
    held = broken(lambda x, u: factor_x * right(x, factor_u * u))
    assert any(line.startswith(says) for line in check(held, held.forms[1], reference(held)).complaints)


def test_a_wrong_gradient_is_found() -> None:
    """The value is right; the first and the second derivative are not."""
    right = case("segment_outer").forms[0].function
    held = broken(lambda x, u: right(0.99 * x + (0.01 * x).detach(), u))
    complaints = check(held, held.forms[1], reference(held)).complaints
    assert any(line.startswith("gradient of x") for line in complaints)
    assert any(line.startswith("second gradient of x") for line in complaints)
    assert not any(line.startswith("output") for line in complaints)


def test_runs_that_differ_are_found() -> None:
    calls = iter(range(100))
    right = case("segment_outer").forms[0].function
    held = broken(lambda x, u: right(x, u) + 1e-6 * next(calls))
    assert not repeats(held, held.forms[1])
    assert repeats(held, held.forms[0])


def test_relative_rms() -> None:
    one = torch.ones(4)
    assert relative_rms(1.5 * one, one) == pytest.approx(0.5)
    assert relative_rms(one[:3], one) == float("inf")
    assert relative_rms(one * float("nan"), one) != relative_rms(one * float("nan"), one)
    assert relative_rms(one[:0], one[:0]) == 0.0


# --- counts -----------------------------------------------------------------------------------------------------------


def test_bytes_and_operations_of_an_outer_product() -> None:
    """E = 56 rows, L² = 16, C = 16, N = 5, in float32."""
    held = case("segment_outer")
    output = prepare(held, held.forms[0]).forward()
    x, u, o, first = 4 * 56 * 16, 4 * 56 * 16, 4 * 5 * 16 * 16, 8 * 6
    moved = held.bytes(output)
    assert moved["forward"] == x + u + o + first
    assert moved["backward"] == x + u + o + first + x
    assert moved["double"] == 2 * (x + u + o + first + u) + x + o
    assert held.flops["forward"] == 2 * 56 * 16 * 16


def test_share_of_the_roofline() -> None:
    roof = Roofline(bandwidth=1e9, products=1e10)
    assert roof.share(moved=10**6, flops=1, seconds=2e-3) == pytest.approx(0.5)
    assert roof.share(moved=1, flops=10**8, seconds=2e-2) == pytest.approx(0.5)


def test_preparation_is_not_timed() -> None:
    import time

    def slow() -> None:
        time.sleep(0.02)

    times = time_work(slow, lambda _: None, CPU, 0.01)
    assert times.runs == 5
    assert times.p20 <= times.p50 <= times.p80 < 0.02


# --- report -----------------------------------------------------------------------------------------------------------

SMALL = ("--batches", "ani64", "--sizes", "tiny", "--operators", "gather_rows", "--budget", "0.001", "--device", "cpu")


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "kernels.csv")
    assert {(row["form"], row["which"]) for row in rows} == {
        (form, which) for form in ("torch", "indexing") for which in ("forward", "backward", "double")
    }
    for row in rows:
        assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"])
        assert float(row["roofline_share"]) >= 0
        assert row["torch"] == torch.__version__
        assert row["device"]
        assert row["date"]
    assert "Triton kernels are not timed on cpu" in capsys.readouterr().err


def test_a_wrong_operator_is_left_out_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = OPERATORS["gather_rows"]

    def wrong(*arguments: Any) -> Case:
        held = right(*arguments)
        return replace(held, forms=(*held.forms[:2], Form("broken", lambda y: 1.1 * held.forms[0].function(y))))

    monkeypatch.setitem(OPERATORS, "gather_rows", wrong)
    assert main([*SMALL, "--passes", "forward", "--out", str(tmp_path)]) == 1
    assert {row["form"] for row in read_rows(tmp_path / "kernels.csv")} == {"torch", "indexing"}
    assert "broken left out, it is wrong: output" in capsys.readouterr().err


def test_a_form_that_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OPERATORS["gather_rows"]

    def failing(*arguments: Any) -> Case:
        def fails(y: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such kernel")

        held = right(*arguments)
        return replace(held, forms=(held.forms[0], Form("fails", fails), held.forms[1]))

    monkeypatch.setitem(OPERATORS, "gather_rows", failing)
    assert main([*SMALL, "--passes", "forward", "--out", str(tmp_path)]) == 1
    assert {row["form"] for row in read_rows(tmp_path / "kernels.csv")} == {"torch", "indexing"}


def test_what_memory_does_not_hold_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        *SMALL,
        "--seconds",
        "100",
        "--operators",
        "pair",
        "--passes",
        "forward",
        "--room",
        "0.0025",
        "--out",
        str(tmp_path),
    ]
    assert main(asked) == 0
    assert "index_add left out, takes" in capsys.readouterr().err


def test_nothing_is_begun_after_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--seconds", "0", "--out", str(tmp_path)]) == 0
    assert "gather_rows on ani64, tiny, float32: left out, the 0 s are over" in capsys.readouterr().err
    assert read_rows(tmp_path / "kernels.csv") == []


def test_absent_packages_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "has_pyg", lambda: False)
    monkeypatch.setattr("jmp_kernels.bench.output.find_spec", lambda name: None)
    assert main([*SMALL, "--passes", "forward", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert "torch-geometric is not installed" in told
    assert "matplotlib is not installed" in told


def test_a_missing_gpu_is_a_mistake_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert main([*SMALL, "--tune"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert main([*SMALL, "--passes", "forward", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "kernels-ani64-tiny-float32.png").stat().st_size > 5000
    assert plot([], tmp_path) == []


def test_rows_are_on_disk_as_soon_as_they_are_measured(tmp_path: Path) -> None:
    table = Table(tmp_path / "new" / "kernels.csv")
    with (tmp_path / "new" / "kernels.csv").open(newline="") as file:
        assert next(csv.reader(file))[:3] == ["operator", "batch", "sizes"]
    assert table is not None


# --- checks without pytest, and the search ---------------------------------------------------------------------------


def test_verify(device: torch.device, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["--quick", "--dtypes", "float64", "--operators", "segment_sum", "--json", str(tmp_path / "v.json")]
    assert verify.main(asked) == 0
    assert "1 checks of the Triton operators passed, 0 failed" in capsys.readouterr().out


def test_verify_finds_a_wrong_kernel(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = OPERATORS["segment_sum"]

    def wrong(*arguments: Any) -> Case:
        held = right(*arguments)
        return replace(held, forms=(held.forms[0], Form("triton", lambda x: held.forms[0].function(x) + 1)))

    monkeypatch.setitem(OPERATORS, "segment_sum", wrong)
    assert verify.main(["--quick", "--dtypes", "float64", "--operators", "segment_sum"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_the_search_keeps_what_helps() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from jmp_kernels.bench.tune import descend

    def cost(settings: dict[str, Any]) -> float:
        if settings["num_warps"] == 8:
            return float("inf")
        return abs(settings["BLOCK_ROWS"] - 64) + 2.0 + settings["num_stages"]

    start = {"BLOCK_ROWS": 16, "PRECISION": "ieee", "num_warps": 4, "num_stages": 2}
    best, before, after = descend(start, cost)
    assert best == {"BLOCK_ROWS": 64, "PRECISION": "ieee", "num_warps": 4, "num_stages": 1}
    assert (before, after) == (52.0, 3.0)


def test_what_the_search_writes_is_read_back() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    import json

    from jmp_kernels.bench.tune import SHOWN_BY, written
    from jmp_kernels.triton_ops import launch

    table = json.loads(launch.TUNED.read_text())
    assert json.loads(written(table)) == table
    assert set(SHOWN_BY) == set(table), "every kernel has an operator that shows its time"
