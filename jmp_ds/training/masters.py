"""Where DeepSpeed keeps the float32 master weights at every ZeRO stage, and how weights get from there into the model.

| stage | precision of the parameters | masters of a process |
|---|---|---|
| 0 | float32 | the parameters themselves |
| 0 | bfloat16, float16 | one float32 copy of every parameter |
| 1, 2 | any | its flat partition of every group of parameters |
| 3 | float32 | its partition of every parameter, one flat tensor per group; the model's own storage |
| 3 | bfloat16, float16 | the same as a float32 copy |

`Piece` says which part of which parameter lies where, so that whoever has the partitions of all processes can put whole
parameters together, or cut partitions for another stage or number of processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jmp_ds.training.processes import Processes

#: Numbers per process and message when partitions are collected.
_CHUNK = 2**24


class Piece(NamedTuple):
    """A part of a parameter inside a process's master tensor.

    Attributes:
        name: of the parameter.
        begin, end: in the flattened parameter.
        offset: in the flattened master tensor.
    """

    name: str
    begin: int
    end: int
    offset: int

    @property
    def length(self) -> int:
        """How many numbers it has."""
        return self.end - self.begin

    def of(self, master: Tensor) -> Tensor:
        """Its numbers in the master tensor that it lies in, or in another one of that shape; flat, not a copy."""
        return master.view(-1)[self.offset : self.offset + self.length]


#: For every master tensor of a process, its pieces. What they do not cover is padding.
Layout = list[list[Piece]]


class Masters(ABC):
    """The float32 master weights of one process."""

    #: Whether every process has all of them.
    replicated = False
    #: Whether they are the memory that the model computes with.
    inside_model = False

    def __init__(self, module: nn.Module) -> None:
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The masters, as DeepSpeed keeps them; changed in place by every step."""

    @abstractmethod
    def show(self, weights: Sequence[Tensor]) -> None:
        """Make the model compute with these weights, one tensor for each master; collective unless replicated."""

    @abstractmethod
    def layout(self, rank: int) -> Layout:
        """What lies where on a process."""

    def take(self, full: Mapping[str, Tensor], rank: int) -> None:
        """Set the masters to this process's part of whole parameters; the model does not see them before `show`."""
        with torch.no_grad():
            for master, pieces in zip(self.tensors(), self.layout(rank), strict=True):
                for piece in pieces:
                    piece.of(master).copy_(full[piece.name].reshape(-1)[piece.begin : piece.end])


class _Whole(Masters):
    """One master tensor per parameter, everything on every process."""

    replicated = True

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(module)
        self._parameters = list(parameters)

    def layout(self, rank: int) -> Layout:
        """See `Masters`."""
        return [[Piece(self._names[id(p)], 0, p.numel(), 0)] for p in self._parameters]

    @torch.no_grad()
    def show(self, weights: Sequence[Tensor]) -> None:
        """See `Masters`."""
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)


class Parameters(_Whole):
    """Stage 0 in float32."""

    inside_model = True

    def tensors(self) -> list[Tensor]:
        """See `Masters`."""
        return [p.detach() for p in self._parameters]


class Copies(_Whole):
    """Stage 0 with narrow parameters."""

    def __init__(self, module: nn.Module, wrapper: Any) -> None:
        """Args: wrapper: DeepSpeed's optimizer for narrow parameters."""
        super().__init__(module, [p for group in wrapper.fp16_groups for p in group])
        self._wrapper = wrapper

    def tensors(self) -> list[Tensor]:
        """See `Masters`."""
        return [master.detach() for group in self._wrapper.fp32_groups for master in group]


class Partitions(Masters):
    """Stages 1 and 2: the parameters of a group in a row, padded, divided among the processes."""

    def __init__(self, module: nn.Module, zero: Any) -> None:
        """Args: zero: DeepSpeed's optimizer of these stages."""
        super().__init__(module)
        self._zero = zero

    def tensors(self) -> list[Tensor]:
        """See `Masters`."""
        return [p.detach() for p in self._zero.single_partition_of_fp32_groups]

    def show(self, weights: Sequence[Tensor]) -> None:
        """See `Masters`."""
        masters = self._zero.single_partition_of_fp32_groups
        self._zero.single_partition_of_fp32_groups = list(weights)
        try:
            self._zero.update_lp_params()
        finally:
            self._zero.single_partition_of_fp32_groups = masters

    def layout(self, rank: int) -> Layout:
        """See `Masters`."""
        result: Layout = []
        for parameters, size in zip(self._zero.round_robin_bit16_groups, self._zero.partition_size, strict=True):
            first, pieces, position = rank * size, [], 0
            for parameter in parameters:
                begin = max(first - position, 0)
                end = min(first + size - position, parameter.numel())
                if begin < end:
                    pieces.append(Piece(self._names[id(parameter)], begin, end, position + begin - first))
                position += parameter.numel()
            result.append(pieces)
        return result


class PartitionedParameters(Masters):
    """Stage 3: every parameter divided by itself; the parts of a group in a row."""

    def __init__(self, module: nn.Module, zero: Any) -> None:
        """Args: zero: DeepSpeed's optimizer of this stage."""
        super().__init__(module)
        self._zero = zero
        pairs = zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
        self.inside_model = all(narrow is master for narrow, master in pairs)

    def tensors(self) -> list[Tensor]:
        """See `Masters`."""
        return [p.detach() for p in self._zero.fp32_partitioned_groups_flat]

    @torch.no_grad()
    def show(self, weights: Sequence[Tensor]) -> None:
        """See `Masters`."""
        self._zero.parameter_offload.partition_all_parameters()
        for number, weight in enumerate(weights):
            self._zero.fp16_partitioned_groups_flat[number].data.copy_(weight)
            self._zero._unflatten_partitioned_parameters(number)
        kept_whole = self._zero.persistent_parameters
        if kept_whole:
            kept_whole[0].all_gather(kept_whole)

    def layout(self, rank: int) -> Layout:
        """See `Masters`."""
        result: Layout = []
        for parameters in self._zero.fp16_groups:
            pieces, offset = [], 0
            for parameter in parameters:
                size, whole = parameter.partition_numel(), parameter.ds_numel
                begin, end = min(rank * size, whole), min((rank + 1) * size, whole)
                if begin < end:
                    pieces.append(Piece(self._names[id(parameter)], begin, end, offset))
                offset += size
            result.append(pieces)
        return result


def masters_of(engine: Any, stage: int, narrow: bool) -> Masters:
    """The masters of a DeepSpeed engine.

    Args:
        engine: after `deepspeed.initialize`.
        stage: ZeRO stage.
        narrow: whether the parameters are bfloat16 or float16.
    """
    optimizer = engine.optimizer
    if stage == 3:
        return PartitionedParameters(engine.module, optimizer)
    if stage > 0:
        return Partitions(engine.module, optimizer)
    if narrow:
        return Copies(engine.module, optimizer)
    return Parameters(engine.module, [p for group in optimizer.param_groups for p in group["params"]])


def whole(
    masters: Masters, weights: Sequence[Tensor], shapes: Mapping[str, torch.Size], processes: Processes
) -> dict[str, Tensor]:
    """Whole parameters from the parts of all processes; collective unless replicated.

    Args:
        masters: where the parts belong.
        weights: this process's, one tensor for each master.
        shapes: of all parameters, by name.
        processes: that take part.

    Returns:
        float32 on the CPU, by name, in the order of `shapes`; the first process has them, the others get nothing.
    """
    result = {name: torch.empty(shape) for name, shape in shapes.items()} if processes.first else {}
    ranks = [processes.rank] if masters.replicated else range(processes.world)
    layouts = [masters.layout(rank) for rank in ranks]
    for number, weight in enumerate(weights):
        flat = weight.detach().reshape(-1)
        parts = [flat] if masters.replicated else _collected(flat, processes)
        if processes.first:
            for layout, part in zip(layouts, parts, strict=True):
                for piece in layout[number]:
                    result[piece.name].view(-1)[piece.begin : piece.end] = piece.of(part)
    return result


def _collected(flat: Tensor, processes: Processes) -> list[Tensor]:
    """The same tensor of all processes, on the CPU of the first; bit by bit, so that no device holds them all."""
    result = [torch.empty(flat.shape) for _ in range(processes.world)] if processes.first else []
    for begin in range(0, flat.numel(), _CHUNK):
        chunk = flat[begin : begin + _CHUNK].to(processes.device)
        parts = [torch.empty_like(chunk) for _ in range(processes.world)]
        dist.all_gather(parts, chunk)
        for whole_part, part in zip(result, parts, strict=False):
            whole_part[begin : begin + part.numel()] = part
    return result
