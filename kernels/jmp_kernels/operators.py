"""The one choice of backend: who passes messages, and how often dense layers can be differentiated."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from jmp_kernels.dense_once import DenseOnce
from jmp_kernels.dense_twice import DenseTwice
from jmp_kernels.messages import ReadOut, TorchMessages
from jmp_kernels.middles import MiddleRows, MiddleTables
from jmp_kernels.segments import Gather, LookUp, Segments

log = logging.getLogger(__name__)

#: Backends by name; `auto` is Triton on a GPU it is installed for, PyTorch elsewhere.
BackendName = Literal["auto", "torch", "triton"]


class Messages(Protocol):
    """What every backend offers; documented in `jmp_kernels.messages.TorchMessages`."""

    name: str

    def segment_sum(self, x: Tensor, segments: Segments) -> Tensor: ...  # noqa: D102
    def spread(self, y: Tensor, segments: Segments) -> Tensor: ...  # noqa: D102
    def gather(self, y: Tensor, taken: Gather) -> Tensor: ...  # noqa: D102
    def sum_into(self, x: Tensor, taken: Gather) -> Tensor: ...  # noqa: D102
    def segment_outer(self, u: Tensor, x: Tensor, segments: Segments) -> Tensor: ...  # noqa: D102
    def expand_feature(self, u: Tensor, outer: Tensor, segments: Segments) -> Tensor: ...  # noqa: D102
    def read_out(  # noqa: D102
        self, radial: Tensor, harmonics: Tensor, addition: Tensor, at_one: Tensor, segments: Segments
    ) -> ReadOut: ...
    def triplet(  # noqa: D102
        self, x: Tensor, harmonics: Tensor, into: Segments, read: ReadOut, out_of: Segments, twin: LookUp | None
    ) -> Tensor: ...
    def pair(self, rad: Tensor, x: Tensor, source: Gather, by_target: Segments) -> Tensor: ...  # noqa: D102
    def middle_tables(  # noqa: D102
        self,
        circular: Tensor,
        write: Tensor,
        radial: Tensor,
        zonal: Tensor,
        read: Tensor,
        same: Tensor,
        rows: MiddleRows,
    ) -> MiddleTables: ...
    def quadruplet(self, x: Tensor, gate: Tensor, tables: MiddleTables, taken: MiddleRows) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Operators:
    """What a network is built on; the default runs anywhere and differentiates twice.

    Attributes:
        messages: sums over edges, triplets and quadruplets.
        dense: dense layers; `DenseTwice` where forces are energy gradients.
    """

    messages: Messages = field(default_factory=TorchMessages)
    dense: DenseOnce | DenseTwice = field(default_factory=DenseTwice)


def messages_for(name: BackendName, device: torch.device | str) -> Messages:
    """The backend for a device, chosen once when a model is built; says in the log which it is.

    Args:
        name: `auto`, `torch` or `triton`.
        device: where the model will run.

    Raises:
        ValueError: Triton is asked for where it is not installed, or for a device it does not run on.
    """
    kind = torch.device(device).type
    installed = importlib.util.find_spec("triton") is not None
    if name == "auto":
        name = "triton" if kind == "cuda" and installed else "torch"
    if name == "torch":
        log.info("message passing: PyTorch on %s", kind)
        return TorchMessages()
    if not installed:
        raise ValueError("the Triton kernels need the package triton, which is not installed; use torch, or install it")
    from jmp_kernels.triton_ops.launch import INTERPRET
    from jmp_kernels.triton_ops.messages import TritonMessages

    if kind != "cuda" and not INTERPRET.value:
        raise ValueError(f"the Triton kernels run on GPUs, not on {kind!r}; use torch (or auto)")
    log.info("message passing: Triton kernels on %s%s", kind, ", interpreted" if INTERPRET.value else "")
    return TritonMessages()
