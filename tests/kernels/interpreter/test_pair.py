"""`jmp::pair` against explicit sums in float64, with every gradient and every order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from checks import (
    SIZES,
    TOLERANCE,
    assert_close,
    compare,
    poisoned,
    random_tensor,
    repeats,
    second_order,
    segments_with,
    traced,
    transposed,
)
from jmp_kernels import Segments
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from jmp_kernels.triton_ops.pair import composed_gradients, pair, pair_backward

NAMES = ("weight", "h")
ATOMS = 7


@dataclass(frozen=True)
class Case:
    """Rows by target, and by source; the device on which the kernels run. Everything else stays on the CPU."""

    segments: Segments
    source: Tensor
    order: Tensor
    first: Tensor
    device: torch.device

    def operator(self, weight: Tensor, h: Tensor) -> Tensor:
        return pair(*self.arguments(weight, h)).cpu()

    def arguments(self, weight: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """What `jmp::pair` takes, on its device."""
        given = (weight, h, self.source, self.segments.first, self.order, self.first)
        return tuple(t.to(self.device) for t in given)

    def oracle(self, weight: Tensor, h: Tensor) -> Tensor:
        products = torch.einsum("rk,ri->rki", weight, h[self.source])
        return products.new_zeros(self.segments.count, *products.shape[1:]).index_add(0, self.segments.index, products)


def case(sizes: list[int], device: torch.device, atoms: int = ATOMS) -> Case:
    """Random sources; the last atom is nobody's source."""
    segments = segments_with(sizes)
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(0, atoms - 1, (segments.num_rows,), generator=generator)
    return Case(segments, source, *transposed(source, atoms), device)


def inputs(given: Case, k: int, c: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """h in `dtype`; radial weights in float32 at least."""
    geometry = torch.float64 if dtype == torch.float64 else torch.float32
    atoms = given.first.shape[0] - 1
    return [
        random_tensor(given.segments.num_rows, k, seed=1, dtype=geometry),
        random_tensor(atoms, c, seed=2, dtype=dtype),
    ]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_degree(sizes: list[int], device: torch.device) -> None:
    given = case(sizes, device)
    compare(given.operator, given.oracle, inputs(given, 16, 16, torch.float32), 2e-6, NAMES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("k", "c"), [(16, 64), (32, 64), (16, 16), (5, 33), (1, 1), (20, 130)])
def test_sizes_and_dtypes(dtype: torch.dtype, k: int, c: int, device: torch.device) -> None:
    given = case([3, 0, 17, 40], device)
    compare(given.operator, given.oracle, inputs(given, k, c, dtype), TOLERANCE[dtype], NAMES)


def test_other_atoms_as_sources_than_as_targets(device: torch.device) -> None:
    given = case([3, 2], device, atoms=70)
    compare(given.operator, given.oracle, inputs(given, 4, 8, torch.float32), 2e-6, NAMES)


def test_second_order(device: torch.device) -> None:
    given = case([3, 0, 17, 2], device)
    second_order(given.operator, inputs(given, 2, 3))


@pytest.mark.parametrize("sizes", [[0, 0], [1], [3, 0, 17]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_composition_gives_the_fused_gradients(sizes: list[int], dtype: torch.dtype, device: torch.device) -> None:
    given = case(sizes, device)
    arguments = given.arguments(*inputs(given, 8, 20, dtype))
    grad = random_tensor(len(sizes), 8, 20, seed=5, dtype=dtype).to(device)
    with poisoned():
        fused = pair_backward(grad, *arguments)
        composed = composed_gradients(grad, *arguments)
    for name, a, b in zip(NAMES, composed, fused, strict=True):
        assert a.dtype == b.dtype
        assert_close(name, a, b, TOLERANCE[dtype])


def test_operator_contract(device: torch.device) -> None:
    given = case([3, 0, 4], device)
    arguments = given.arguments(*inputs(given, 4, 5, torch.float32))
    grad = random_tensor(3, 4, 5, dtype=torch.float32).to(device)
    torch.library.opcheck(torch.ops.jmp.pair_backward, (grad, *arguments))
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in arguments]
    torch.library.opcheck(torch.ops.jmp.pair, tuple(leaves))


def test_traced(device: torch.device) -> None:
    given = case([3, 0, 4], device)
    traced(given.operator, inputs(given, 4, 5, torch.float32))


def test_repeats(device: torch.device) -> None:
    given = case([15, 16, 0, 17, 130], device)
    repeats(given.operator, inputs(given, 16, 16, torch.float32))


def test_sizes_must_fit(device: torch.device) -> None:
    given = case([3, 2], device)
    weight, h, source, *rest = given.arguments(*inputs(given, 4, 5, torch.float32))
    with pytest.raises(ValueError, match=r"pair: 5 rows of weights and 7 atoms need source \[5\]"):
        pair(weight, h, source[:-1], *rest)
