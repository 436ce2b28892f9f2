"""What is measured: an operator on the lists of one batch, and the forms in which it can be computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from jmp_kernels import trilinear
from jmp_kernels.segments import Segments

Pass = Literal["forward", "backward", "double"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "double")

Function = Callable[..., Tensor]
#: Sums rows [R, …] per segment to [S, …].
Reducer = Callable[[Tensor, Segments], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Widths of the operands. Defaults are those of JMP-S.

    Attributes:
        orders: L, orders of the angular bases.
        azimuths: H, azimuth channels of quadruplets.
        edge, atom: widths of edge and atom features.
        triplet, quadruplet, pair: widths of messages (C).
        basis: basis channels of triplets (K), and of the angular gate of quadruplets.
        pair_basis: those of atom pairs.
        quadruplet_basis: those of quadruplets.
    """

    orders: int = 7
    azimuths: int = 8
    edge: int = 512
    atom: int = 256
    triplet: int = 64
    quadruplet: int = 32
    pair: int = 64
    basis: int = 16
    pair_basis: int = 16
    quadruplet_basis: int = 32


#: By model; `tiny` and `odd` are for checks.
SIZES = {
    "jmp-s": Sizes(),
    "jmp-l": Sizes(edge=1024, quadruplet=64, pair_basis=32, quadruplet_basis=64),
    "tiny": Sizes(4, 5, 16, 16, 16, 8, 16, 8, 8, 8),
    "odd": Sizes(3, 4, 37, 5, 33, 13, 7, 3, 5, 6),
}


@dataclass(frozen=True)
class Values:
    """Makes random operands, the same from run to run.

    Attributes:
        dtype: of features and weights.
        device: where.
    """

    dtype: torch.dtype
    device: torch.device

    @property
    def geometry(self) -> torch.dtype:
        """Of tables that depend on positions alone: float32, float64 with float64 features."""
        return torch.promote_types(self.dtype, torch.float32)

    def features(self, *shape: int, seed: int) -> Tensor:
        """Normal random numbers that every format holds exactly, in the dtype of the features."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).bfloat16().to(device=self.device, dtype=self.dtype)

    def tables(self, *shape: int, seed: int) -> Tensor:
        """The same in the dtype of the tables."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).bfloat16().to(device=self.device, dtype=self.geometry)


@dataclass(frozen=True)
class Form:
    """One way to compute an operator.

    Attributes:
        name: of the form; `torch` is the PyTorch twin, `triton` the kernel.
        function: of all operands in order; with `own`, of the learned operands and then of those.
        room: bytes of the largest tensors it makes beyond operands and output; decides whether it is tried at all.
        own: makes the tables of positions where the form takes others than the operator.
        learned: operands, of the case or its own, that depend on parameters; empty: those of the case.
        passes: what can be measured; second derivatives are missing from some of PyTorch's own operators.
    """

    name: str
    function: Function
    room: int = 0
    own: Callable[[], dict[str, Tensor]] | None = None
    learned: tuple[str, ...] = ()
    passes: tuple[Pass, ...] = PASSES

    def taking(self, own: Callable[[], dict[str, Tensor]]) -> Form:
        """The same form on tables of its own."""
        return replace(self, own=own)


@dataclass(frozen=True)
class Case:
    """An operator with its operands.

    Attributes:
        operator: its name.
        operands: floating tensors by name, in the order in which forms take them.
        learned: names of operands that depend on parameters; `backward` is the gradient of these.
        positional: names of operands that depend on positions; `double` differentiates the gradient of these again.
        forms: the first in float64 is what all are held to; it is plain PyTorch.
        flops: of each pass, as the formulas need them, nothing kept from one pass to the next.
        lists: integer tensors that the operator reads.
    """

    operator: str
    operands: Mapping[str, Tensor]
    learned: tuple[str, ...]
    positional: tuple[str, ...]
    forms: tuple[Form, ...]
    flops: Mapping[Pass, int]
    lists: Sequence[Tensor] = field(default_factory=tuple)

    def bytes(self, output: Tensor) -> dict[Pass, int]:
        """Memory traffic that each pass cannot do without: every operand read once, every result written once.

        `double` is the gradient of the positional operands, recorded, and the gradient of its square: all operands read
        and all results written in each.
        """
        read = sum(map(size_of, self.operands.values())) + sum(map(size_of, self.lists)) + size_of(output)
        learned = sum(size_of(self.operands[name]) for name in self.learned)
        first = sum(size_of(self.operands[name]) for name in self.positional or self.learned)
        return {
            "forward": read,
            "backward": read + learned,
            "double": 2 * (read + first) + learned + size_of(output),
        }


def size_of(x: Tensor) -> int:
    """Bytes."""
    return x.numel() * x.element_size()


def index_add(rows: Tensor, segments: Segments) -> Tensor:
    """`Tensor.index_add`: atomics on a GPU."""
    return rows.new_zeros((segments.count, *rows.shape[1:])).index_add(0, segments.index, rows)


def segment_reduce(rows: Tensor, segments: Segments) -> Tensor:
    """`torch.segment_reduce` over the row pointer."""
    flat = rows.flatten(1)
    summed = torch.segment_reduce(flat, "sum", offsets=segments.first, axis=0, unsafe=True, initial=0.0)
    return summed.view(segments.count, *rows.shape[1:])


def pyg_scatter(rows: Tensor, segments: Segments) -> Tensor:
    """torch-geometric's own scatter."""
    from torch_geometric.utils import scatter

    summed: Tensor = scatter(rows, segments.index, 0, segments.count, "sum")
    return summed


def has_pyg() -> bool:
    """Whether torch-geometric is installed."""
    return find_spec("torch_geometric") is not None


def reducing(
    products: Function, segments: Segments, finish: Callable[..., Tensor] | None = None, room: int = 0
) -> list[Form]:
    """The naive form of a sum over segments with every reducer there is: form all products, then add them up.

    Args:
        products: of the operands, to rows [R, …].
        segments: of the rows.
        finish: of the sums and all operands, to the result; None: the sums are the result.
        room: bytes of the products.
    """

    def whole(reduce: Reducer, *operands: Tensor) -> Tensor:
        sums = reduce(products(*operands), segments)
        return sums if finish is None else finish(sums, *operands)

    naive = partial(whole, index_add)
    once: tuple[Pass, ...] = ("forward", "backward")
    forms = [
        Form("index_add", naive, room),
        Form("segment_reduce", partial(whole, segment_reduce), room, passes=once),
        compiled(naive, room),
    ]
    return [*forms, Form("pyg", partial(whole, pyg_scatter), room)] if has_pyg() else forms


def compiled(function: Function, room: int = 0) -> Form:
    """A naive form compiled as a whole, when it is first called; PyTorch cannot differentiate it twice."""

    @cache
    def ready() -> Function:
        made: Function = torch.compile(function, dynamic=False)
        return made

    return Form("compiled", lambda *operands: ready()(*operands), room, passes=("forward", "backward"))


def padded_sum(rows: Tensor, segments: Segments) -> Tensor:
    """Sum over the padded layout."""
    return trilinear.padded(rows, segments).sum(1)
