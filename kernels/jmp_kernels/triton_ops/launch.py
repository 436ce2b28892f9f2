"""How kernels are launched: number formats, block sizes from the shipped file, and registration as PyTorch operators.

Block sizes stand in `tuned.json`, by kernel, GPU family (`sm_80`, `sm_90`, …; `default` for the others) and number
format. Nothing is tuned at run time, so a first call costs one compilation and no search.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TUNED = Path(__file__).resolve().parents[1] / "tuned.json"

#: Whether kernels run in triton's interpreter (TRITON_INTERPRET=1 when triton was imported). It cannot calculate with
#: bfloat16, so there every loaded value is widened at once.
INTERPRET = tl.constexpr(bool(triton.knobs.runtime.interpret))

#: Compiler options of every kernel: contraction to fused multiply-adds is asked for, because triton's default changes.
_ALWAYS = {"enable_fp_fusion": True}

_TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


# --- inside kernels -------------------------------------------------------------------------------------------------


@triton.jit
def load(pointer, mask, ACC: tl.constexpr):
    """Masked load, zero outside; widened to ACC in the interpreter."""
    value = tl.load(pointer, mask=mask, other=0.0)
    if INTERPRET:
        value = value.to(ACC)
    return value


@triton.jit
def dot(a, b, acc, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b, both factors cast to DOT; accumulated in ACC. Sides of all three are at least 16."""
    if INTERPRET:
        return tl.dot(a.to(ACC), b.to(ACC), acc, input_precision=PRECISION, out_dtype=ACC)
    return tl.dot(a.to(DOT), b.to(DOT), acc, input_precision=PRECISION, out_dtype=ACC)


# --- number formats -------------------------------------------------------------------------------------------------


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where any input is float64, else float32: what sums are kept in and moments are stored in."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def dot_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The format in which factors of different formats meet: the widest of them (bfloat16 and float16: float32)."""
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    return common


def triton_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of a floating dtype, to be passed to a kernel as a constexpr.

    Raises:
        ValueError: a dtype the kernels do not work on.
    """
    if dtype not in _TRITON_DTYPES:
        raise ValueError(f"the Triton kernels work on float64, float32, float16 and bfloat16, not {dtype}")
    return _TRITON_DTYPES[dtype]


def format_of(*dtypes: torch.dtype) -> str:
    """Key of the number format in tuned.json: `float64`, `float32`, `tf32` or `half`.

    `half` as soon as one input has 16 bits: then products of float32 factors may be rounded to TF32, which is finer
    than that input. float32 alone is exact unless TF32 was allowed (torch.set_float32_matmul_precision).
    """
    if torch.float64 in dtypes:
        return "float64"
    if torch.float16 in dtypes or torch.bfloat16 in dtypes:
        return "half"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"


# --- block sizes ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tuned() -> dict[str, Any]:
    tuned: dict[str, Any] = json.loads(TUNED.read_text())
    return tuned


@lru_cache(maxsize=16)
def family_of(device: torch.device) -> str:
    """GPU family of a device, `sm_90` for example; `default` for a CPU (interpreter)."""
    if device.type != "cuda":
        return "default"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@lru_cache(maxsize=1024)
def family_settings(kernel: str, family: str, number_format: str) -> Mapping[str, Any]:
    """Launch parameters of a kernel: its upper-case constexpr block sizes, PRECISION, num_warps, num_stages.

    `default` overlaid with the family's entry; in both, `all` overlaid with the number format's entry.

    Raises:
        ValueError: tuned.json has no entry for the kernel.
    """
    families = _tuned().get(kernel)
    if families is None:
        raise ValueError(f"{TUNED.name} has no entry for the kernel {kernel}")
    merged: dict[str, Any] = dict(_ALWAYS)
    for entry in (families["default"], families.get(family, {})):
        merged |= entry.get("all", {}) | entry.get(number_format, {})
    return MappingProxyType(merged)


def settings(kernel: str, device: torch.device, *dtypes: torch.dtype) -> Mapping[str, Any]:
    """Launch parameters of `kernel` on `device` for inputs of these dtypes (none: float32); pass them on by `**`."""
    return family_settings(kernel, family_of(device), format_of(*dtypes))


def block(size: int, largest: int) -> int:
    """Power of two that covers `size`, between 16 (the smallest side of tl.dot) and `largest`."""
    return max(16, min(largest, triton.next_power_of_2(max(size, 1))))


# --- operators ------------------------------------------------------------------------------------------------------


def check(*tensors: Tensor | None) -> None:
    """All tensors are where the kernels can run, on one device.

    Raises:
        ValueError: tensors on a CPU outside the interpreter, or on different devices.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"Triton kernels need all tensors on one device, not on {sorted(map(str, devices))}")
    if not INTERPRET.value and any(device.type != "cuda" for device in devices):
        raise ValueError(f"Triton kernels need CUDA tensors; these are on {devices.pop()}")


def register(
    name: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Any:
    """Registers `jmp::name` with its fake form and its derivative, and returns torch.ops.jmp.name.

    Args:
        implementation: typed function on plain tensors; its annotations become the operator's schema.
        fake: the same arguments to empty tensors of the right shape and dtype.
        setup_context, backward: as torch.library.register_autograd takes them. `backward` calls operators that have
            derivatives themselves wherever torch.is_grad_enabled(), so that every order exists.
    """

    def on_its_device(*arguments: Any) -> Any:
        tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.cuda.device_of(tensor):  # triton launches on the current GPU, whatever the tensors'
            return implementation(*arguments)

    schema = torch.library.infer_schema(implementation, mutates_args=())
    operator = torch.library.custom_op(f"jmp::{name}", on_its_device, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup_context)
    return getattr(torch.ops.jmp, name)


@dataclass(frozen=True)
class Compiled:
    """One form of a kernel that the offline compilation checks. Modules list theirs in `COMPILED`.

    Attributes:
        name: `kernel/number format/what else`, unique; the key in budget.json.
        kernel: the @triton.jit function.
        tuned: name of its entry in tuned.json, from which block sizes, PRECISION, num_warps and num_stages come.
        number_format: `float64`, `float32`, `tf32` or `half`: which part of that entry.
        arguments: types of the other arguments by name, as triton writes them: `*fp32`, `*bf16`, `*i64`, `i32`.
        constants: constexpr arguments that tuned.json does not set.
        forward: part of a forward pass: no spills allowed on sm_90.
    """

    name: str
    kernel: Any
    tuned: str
    number_format: str
    arguments: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    forward: bool = True
