"""Forms of the quadruplet kernels that the offline compilation checks: sizes and number formats of the published models.

- jmp-s: 7 orders, 8 azimuth channels (the published dihedral), 32 channels, 32 basis channels.
- smooth: the same with 7 azimuth channels (dihedral `smooth`).
- jmp-l: 64 channels, 64 basis channels.
- tiny: 4 orders, 5 azimuth channels, 8 channels, 8 basis channels.
"""

from typing import Any

import triton.language as tl

from jmp_kernels.triton_ops import quadruplet_gate, quadruplet_moments_kernels, quadruplet_read_kernels
from jmp_kernels.triton_ops.launch import Compiled
from jmp_kernels.triton_ops.quadruplet_gate import channel_block, covering
from jmp_kernels.triton_ops.quadruplet_read import padded_sizes

#: L, H, C, K, G by model.
SIZES = {
    "jmp-s": (7, 8, 32, 32, 16),
    "smooth": (7, 7, 32, 32, 16),
    "jmp-l": (7, 8, 64, 64, 16),
    "tiny": (4, 5, 8, 8, 8),
}

#: Number formats by model for the four large kernels, and for the others.
LARGE = {
    "jmp-s": ("float32", "tf32", "half", "float64"),
    "jmp-l": ("float32", "tf32", "half"),
    "smooth": ("half",),
    "tiny": ("float32",),
}
SMALL = {"jmp-s": ("float32", "half"), "jmp-l": ("float32", "half")}

_FEATURES = {"float32": "*fp32", "tf32": "*fp32", "half": "*bf16", "float64": "*fp64"}
_LISTS = ("in_edge", "first", "order", "middle", "same")
#: Tensors in the dtype of the features; gradients of other tensors have theirs.
_IN_FEATURE_DTYPE = ("x", "d_x", "out", "d_out")


def _form(
    name: str, kernel: Any, model: str, number_format: str, forward: bool = False, out: str = "", **more: Any
) -> Compiled:
    """One form; every pointer that is neither a list nor in the dtype of the features is a table or a sum, float32."""
    features = _FEATURES[number_format]
    table = "*fp64" if number_format == "float64" else "*fp32"
    orders, azimuths, channels, basis, gate = SIZES[model]
    constants = {
        "P": 2 * azimuths, "BP": covering(2 * azimuths), "G": gate, "BG": covering(gate),
        "K": basis, "BK": covering(basis), "C": channels, "BLOCK_C": channel_block(channels),
        "ACC": tl.float64 if number_format == "float64" else tl.float32, "TABLES": True,
        **padded_sizes(orders, azimuths), **more,
    }  # fmt: skip
    arguments = {a: "*i64" if a in _LISTS else features if a in _IN_FEATURE_DTYPE else table for a in kernel.arg_names}
    arguments |= {"R": "i32"} | ({"out": out} if out else {})
    return Compiled(
        name=f"{name}/{number_format}/{model}{'' if constants['TABLES'] else '/features only'}",
        kernel=kernel,
        tuned=name,
        number_format=number_format,
        arguments={a: t for a, t in arguments.items() if a in kernel.arg_names},
        constants={a: v for a, v in constants.items() if a in kernel.arg_names},
        forward=forward,
    )


def _large(model: str, key: str) -> list[Compiled]:
    moments, read = quadruplet_moments_kernels, quadruplet_read_kernels
    sums = "*fp64" if key == "float64" else "*fp32"
    return [
        _form("quadruplet_moments", moments.moments_kernel, model, key, forward=True, out=sums),
        _form("quadruplet_read", read.read_kernel, model, key, forward=True),
        _form("quadruplet_moments_backward", moments.moments_backward_kernel, model, key),
        _form("quadruplet_read_backward", read.read_backward_kernel, model, key),
        _form("quadruplet_read_backward", read.read_backward_kernel, model, key, TABLES=False),
    ]


def _small(model: str, key: str) -> list[Compiled]:
    return [
        _form("quadruplet_read_backward_middles", quadruplet_read_kernels.read_backward_middles_kernel, model, key),
        _form("quadruplet_gate_rows", quadruplet_gate.gate_rows_kernel, model, key),
        _form("quadruplet_gate_edges", quadruplet_gate.gate_edges_kernel, model, key),
    ]


COMPILED = [
    *(form for model, keys in LARGE.items() for key in keys for form in _large(model, key)),
    *(form for model, keys in SMALL.items() for key in keys for form in _small(model, key)),
]
