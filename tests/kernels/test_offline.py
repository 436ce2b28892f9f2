"""Kernels compiled for GPUs that are not here, and their budget of registers, spills and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from jmp_kernels import offline
from jmp_kernels.offline import ARCHITECTURES, BUDGET, SHARED_LIMIT, Usage
from jmp_kernels.triton_ops.launch import Compiled


def compiled(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the module where triton compiles: a process of its own, without the interpreter."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "jmp_kernels.offline", *arguments],
        capture_output=True,
        text=True,
        timeout=1800,
        env=inherited | environment,
    )


def form(forward: bool = True) -> Compiled:
    return Compiled("kernel/float32", None, "kernel", "float32", {}, forward=forward)


def test_every_form_has_a_budget_on_every_architecture_and_no_other_has() -> None:
    budget = offline.read_budget(BUDGET)
    assert set(budget) == {form.name for form in offline.registered()}
    assert all(set(entry) == set(ARCHITECTURES) for entry in budget.values())
    assert BUDGET.read_text() == offline.written(budget), "budget.json is not as --update writes it"


def test_the_shipped_budget_keeps_the_rules() -> None:
    """No spills in forward kernels on sm_90; shared memory that the machine has."""
    budget = offline.read_budget(BUDGET)
    for form in offline.registered():
        for architecture in ARCHITECTURES:
            allowed = budget[form.name][architecture]
            assert offline.complaints(form, architecture, Usage(**allowed), allowed) == []


@pytest.mark.parametrize(
    ("used", "architecture", "says"),
    [
        (Usage(104, 0, 1024), "sm_80", ["registers 104 > 96"]),
        (Usage(96, 2, 1024), "sm_80", ["spills 2 > 0"]),
        (Usage(96, 0, 2048), "sm_80", ["shared 2048 > 1024"]),
        (Usage(96, 1, 1024), "sm_90", ["spills 1 > 0", "a forward kernel that spills on sm_90"]),
        (Usage(80, 0, 512), "sm_90", []),
    ],
)
def test_what_exceeds_the_budget_is_named(used: Usage, architecture: str, says: list[str]) -> None:
    allowed = {"registers": 96, "spills": 0, "shared": 1024}
    assert offline.complaints(form(), architecture, used, allowed) == says


def test_a_budget_does_not_excuse_what_cannot_run() -> None:
    too_much = Usage(96, 7, SHARED_LIMIT["sm_90"] + 1)
    assert len(offline.complaints(form(), "sm_90", too_much, vars(too_much))) == 2
    assert len(offline.complaints(form(forward=False), "sm_90", too_much, vars(too_much))) == 1
    assert offline.complaints(form(), "sm_90", Usage(8, 0, 0), None) == ["has no entry in the budget"]


def test_a_budget_that_is_too_small_ends_in_an_error_and_update_mends_it(tmp_path: Path) -> None:
    file = tmp_path / "budget.json"
    file.write_text(json.dumps({"gather_rows/float32": {"sm_90": {"registers": 8, "spills": 0, "shared": 0}}}))
    arguments = ("--only", "gather_rows/float32", "--arch", "sm_90", "--budget", str(file))
    run = compiled(*arguments)
    assert run.returncode == 1, run.stderr
    assert "> 8" in run.stdout
    assert compiled(*arguments, "--update").returncode == 0
    assert json.loads(file.read_text())["gather_rows/float32"]["sm_90"]["registers"] > 8
    assert compiled(*arguments).returncode == 0


def test_the_interpreter_and_unknown_names_are_refused() -> None:
    run = compiled(TRITON_INTERPRET="1")
    assert run.returncode == 2
    assert "TRITON_INTERPRET" in run.stderr
    run = compiled("--only", "nonsense")
    assert run.returncode == 2
    assert "no kernel form begins with nonsense" in run.stderr


def test_one_form_of_every_forward_kernel_keeps_its_budget_on_sm_90() -> None:
    """In the format of mixed-precision training, at the first of the registered sizes; all forms: the slow test."""
    forms = [form for form in offline.registered() if form.forward and form.number_format == "half"]
    names = list({form.tuned: form.name for form in reversed(forms)}.values())
    assert len(names) >= 4
    run = compiled("--arch", "sm_90", "--only", *names)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_kernels_keep_their_budget(architecture: str) -> None:
    run = compiled("--arch", architecture)
    assert run.returncode == 0, run.stdout + run.stderr
