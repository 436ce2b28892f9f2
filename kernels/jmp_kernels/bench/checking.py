"""Whether a form gives what float64 gives: output, gradients, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_kernels.bench.forms import Case, Form
from jmp_kernels.bench.passes import Prepared, prepare

#: Largest relative RMS deviation from float64, by the dtype of the features. `tf32`: float32 where TF32 is allowed.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "tf32": 2e-3, "float16": 1e-3, "bfloat16": 8e-3}

#: A second derivative passes through two roundings more.
_SECOND = 3.0


@dataclass(frozen=True)
class Reference:
    """What float64 gives, and how recorded gradients are weighted so that nothing overflows."""

    output: Tensor
    backward: Mapping[str, Tensor]
    weights: Mapping[str, float]
    second: Mapping[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a check.

    Attributes:
        error: largest relative RMS deviation.
        complaints: what deviates by more than is allowed.
    """

    error: float
    complaints: tuple[str, ...]


def reference(case: Case) -> Reference:
    """The PyTorch twin on the same numbers in float64."""
    held = prepare(case, case.forms[0], torch.float64)
    output = held.forward()
    backward = held.backward(output)
    first = held.recorded(held.forward())
    weights = {name: 1 / max(float(g.detach().abs().max()) if g.numel() else 0.0, 1e-30) for name, g in first.items()}
    return Reference(output.detach(), backward, weights, held.second(first, weights))


def check(case: Case, form: Form, expected: Reference) -> Verdict:
    """Compare a form; second derivatives where it has the operator's own tables and the operator's own dtype allows."""
    held = prepare(case, form)
    tolerance = TOLERANCE[format_of(next(iter(case.operands.values())))]
    output = held.forward()
    found = [("output", output.detach(), expected.output, tolerance)]
    gradients = {name: g for name, g in held.backward(output).items() if name in expected.backward}
    found += [(f"gradient of {name}", g, expected.backward[name], tolerance) for name, g in gradients.items()]
    if form.own is None and "double" in form.passes:
        found += _second(held, expected, tolerance * _SECOND)
    errors = [(name, relative_rms(a, b), limit) for name, a, b, limit in found]
    wrong = tuple(f"{name}: {error:.1e} > {limit:.0e}" for name, error, limit in errors if not error <= limit)
    return Verdict(max((error for _, error, _ in errors), key=lambda e: (e != e, e)), wrong)


def repeats(case: Case, form: Form) -> bool:
    """Whether two runs give the same bits, gradients included."""
    runs = []
    for _ in range(2):
        held = prepare(case, form)
        output = held.forward()
        runs.append([output.detach(), *held.backward(output).values()])
    return all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def _second(held: Prepared, expected: Reference, limit: float) -> list[tuple[str, Tensor, Tensor, float]]:
    second = held.second(held.recorded(held.forward()), expected.weights)
    return [(f"second gradient of {name}", g, expected.second[name], limit) for name, g in second.items()]


def format_of(x: Tensor) -> str:
    """Name of a number format: the dtype, or `tf32` where float32 products may be rounded to it."""
    name = str(x.dtype).removeprefix("torch.")
    rounded = x.device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if name == "float32" and rounded else name


def relative_rms(result: Tensor, expected: Tensor) -> float:
    """√(Σ(result − expected)² / Σ expected²) in float64; NaN where the result holds one; infinite for a wrong shape."""
    if result.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = result.detach().double(), expected.detach().double()
    scale = float(b.square().mean().sqrt())
    return float((a - b).square().mean().sqrt()) / (scale or 1.0)
