"""The parts of the suite: what runs, with which limit, on a GPU or as a trial on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

#: Seconds that the whole suite may take.
DEADLINE = 530.0

#: Forms of the microbenchmarks that need no compilation beyond that of the kernels.
EAGER = (
    "triton",
    "torch",
    "torch_block",
    "padded",
    "index_add",
    "segment_reduce",
    "pyg",
    "gathered",
    "indexing",
    "by_pair",
)


@dataclass(frozen=True)
class Part:
    """One process of the suite.

    Attributes:
        name: of its log, and in the summary.
        command: what is run.
        limit: seconds.
        group: parts of one group run at the same time; those that measure time have a group of their own.
        environment: added to the process's own.
        needs: module without which the part is left out.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    group: str
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""

    @property
    def missing(self) -> bool:
        """Whether the part cannot run because its module is not installed."""
        return bool(self.needs) and find_spec(self.needs) is None


def gpu_parts(out: Path, tests: Path) -> list[Part]:
    """The suite on a GPU. First what decides whether the numbers mean anything, then the numbers.

    Args:
        out: folder of the results.
        tests: folder of the kernel tests.
    """
    checks = [
        _module(f"verify-{dtype}", "jmp_kernels.bench.verify", 170.0, "checks", "--dtypes", dtype, *_json(out, dtype))
        for dtype in ("float64", "float32", "float16", "bf16")
    ]
    curves = [
        _module(f"curves-{kernels}", "jmp_ds.bench.suite.curves", 170.0, "checks", "cuda", kernels, str(out))
        for kernels in ("torch", "triton")
    ]
    one_batch = ("--batches", "oc20x8")
    # conftest files above that folder want packages that need not be here; offline compilation needs no GPU
    where = (str(tests), "--confcutdir", str(tests), "--ignore", str(tests / "test_offline.py"))
    pytest = ("-q", "-p", "no:cacheprovider", *where)
    return [
        *checks,
        *curves,
        _module("curves", "jmp_ds.bench.suite.spread", 20.0, "spread", str(out)),
        _module("steps", "jmp_ds.bench.suite.steps", 170.0, "steps", "cuda", str(out), "--seconds", "150"),
        _bench("kernels-bf16", out, 70.0, "--dtypes", "bf16", "--tf32", "--forms", *EAGER),
        _bench("kernels-tf32", out, 40.0, "--dtypes", "float32", "--tf32", *one_batch, "--forms", *EAGER),
        _bench("kernels-compiled", out, 40.0, "--dtypes", "bf16", "--tf32", *one_batch, "--forms", "torch", "compiled"),
        _module("pytest", "pytest", 120.0, "pytest", *pytest, needs="pytest"),
    ]


def trial_parts(out: Path) -> list[Part]:
    """The same parts, small enough for a CPU; kernels run in triton's interpreter, where there is one."""
    some = ("--operators", "segment_sum", "segment_outer", "pair")
    interpreted = {"TRITON_INTERPRET": "1"}
    small = ("--batches", "ani64", "--operators", "segment_sum", "segment_outer")
    return [
        _module(
            "verify-float32", "jmp_kernels.bench.verify", 120.0, "verify", "--quick", "--dtypes", "float32", *some,
            *_json(out, "float32"), environment=interpreted, needs="triton",
        ),
        _module("curves-torch", "jmp_ds.bench.suite.curves", 120.0, "curves", "cpu", "torch", str(out), "--trial"),
        _module("curves", "jmp_ds.bench.suite.spread", 60.0, "spread", str(out)),
        _module("steps", "jmp_ds.bench.suite.steps", 120.0, "steps", "cpu", str(out), "--trial"),
        _bench("kernels-float32", out, 120.0, "--dtypes", "float32", *small),
    ]  # fmt: skip


def _module(
    name: str,
    module: str,
    limit: float,
    group: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    needs: str = "",
) -> Part:
    return Part(name, (sys.executable, "-m", module, *arguments), limit, group, environment or {}, needs)


def _json(out: Path, dtype: str) -> tuple[str, str]:
    return "--json", str(out / f"verify-{dtype}.json")


def _bench(name: str, out: Path, limit: float, *arguments: str) -> Part:
    """Microbenchmarks that stop by themselves at two thirds of their limit."""
    quick = ("--seconds", f"{limit * 2 / 3:.0f}", "--budget", "0.02")
    return _module(name, "jmp_kernels.bench", limit, name, "--out", str(out / name), *quick, *arguments)
