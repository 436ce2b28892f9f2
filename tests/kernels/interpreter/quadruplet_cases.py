"""Random in-triplets and out-pairs for the tests of the quadruplet operators, and what these should give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from checks import random_tensor, relative_rms, segments_with, transposed
from jmp_kernels import Segments
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Number of edges, segment sizes, and the widths of all tables."""

    in_sizes: Sequence[int]
    out_sizes: Sequence[int]
    edges: int = 5
    orders: int = 7
    azimuths: int = 8
    channels: int = 32
    basis: int = 32
    gate: int = 16


@dataclass(frozen=True)
class Case:
    """Index tensors and random values of one case; R' in-triplets of Q middle bonds, R out-pairs of S edges."""

    sizes: Sizes
    by_middle: Segments
    by_edge: Segments
    in_edge: Tensor
    out_middle: Tensor
    same: Tensor
    dtype: torch.dtype
    device: torch.device

    def random(self, *shape: int, seed: int) -> Tensor:
        return random_tensor(*shape, seed=seed, dtype=self.dtype).to(self.device)

    @property
    def gated(self) -> list[Tensor]:
        """x, gate, weight."""
        s = self.sizes
        return [
            self.random(s.edges, s.channels, seed=1),
            self.random(self.by_middle.num_rows, s.gate, seed=2),
            self.random(s.channels, s.gate, seed=3) * 0.25,
        ]

    @property
    def for_moments(self) -> list[Tensor]:
        """x, gate, weight, write."""
        return [*self.gated, self.random(self.by_middle.num_rows, 2 * self.sizes.azimuths, seed=4)]

    @property
    def for_read(self) -> list[Tensor]:
        """moments, zonal, read, share, radial, x, gate, weight."""
        s, rows = self.sizes, self.by_edge.num_rows
        return [
            self.random(self.by_middle.count, 2 * s.azimuths, s.channels, seed=5),
            self.random(rows, s.orders, seed=6),
            self.random(rows, 2 * s.azimuths, seed=7),
            self.random(rows, s.azimuths, seed=8),
            self.random(self.by_edge.count, s.basis, s.orders * s.azimuths, seed=9) * 0.125,
            *self.gated,
        ]

    @property
    def edge_lists(self) -> list[Tensor]:
        """edge_first, in_edge, edge_order."""
        order, first = transposed(self.in_edge, self.sizes.edges)
        return [t.to(self.device) for t in (first, self.in_edge, order)]

    @property
    def moment_lists(self) -> list[Tensor]:
        """Index arguments of quadruplet_moments."""
        return [self.by_middle.first.to(self.device), *self.edge_lists]

    @property
    def read_lists(self) -> list[Tensor]:
        """Index arguments of quadruplet_read."""
        middle_order, middle_first = transposed(self.out_middle, self.by_middle.count)
        same_order, same_first = transposed(self.same, self.by_middle.num_rows)
        lists = (self.by_edge.first, middle_first, self.out_middle, middle_order, same_first, self.same, same_order)
        return [*(t.to(self.device) for t in lists), *self.edge_lists]

    # --- what should come out, in the precision of the inputs --------------------------------------------------------

    def messages(self, x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        """y, straight from its definition."""
        return x[self.in_edge.to(x.device)] * torch.einsum("rg,ig->ri", gate, weight)

    def moments(self, x: Tensor, gate: Tensor, weight: Tensor, write: Tensor) -> Tensor:
        """B, with every product of a row and a column formed before it is added."""
        terms = write[:, :, None] * self.messages(x, gate, weight)[:, None]
        index = self.by_middle.index.to(x.device)
        return terms.new_zeros(self.by_middle.count, *terms.shape[1:]).index_add(0, index, terms)

    def read(
        self, moments: Tensor, zonal: Tensor, read: Tensor, share: Tensor, radial: Tensor,
        x: Tensor, gate: Tensor, weight: Tensor,
    ) -> Tensor:  # fmt: skip
        """o, with t and S formed in full."""
        s, rows = self.sizes, share.shape[0]
        y = torch.cat([self.messages(x, gate, weight), x.new_zeros(1, s.channels)])[self.same.to(x.device)]
        of_bond = moments[self.out_middle.to(x.device)].view(rows, s.azimuths, 2, s.channels)
        t = torch.einsum("rhz,rhzi->rhi", read.view(rows, s.azimuths, 2), of_bond) - share[:, :, None] * y[:, None]
        terms = zonal[:, :, None, None] * t[:, None]
        sums = terms.new_zeros(self.by_edge.count, *terms.shape[1:])
        sums = sums.index_add(0, self.by_edge.index.to(x.device), terms)
        return torch.einsum("ekp,epi->eki", radial, sums.flatten(1, 2))


def case(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Case:
    """Out-pairs of random middle bonds; two in three have an in-triplet d = c, where their bond has any."""
    generator = torch.Generator().manual_seed(seed)
    by_middle, by_edge = segments_with(sizes.in_sizes), segments_with(sizes.out_sizes)
    in_edge = torch.randint(max(sizes.edges, 1), (by_middle.num_rows,), generator=generator)
    out_middle = torch.randint(max(by_middle.count, 1), (by_edge.num_rows,), generator=generator)
    of_bond = by_middle.first[out_middle + 1] - by_middle.first[out_middle] if by_edge.num_rows else out_middle
    chosen = (torch.rand(by_edge.num_rows, generator=generator) * of_bond).long()
    found = (of_bond > 0) & (torch.rand(by_edge.num_rows, generator=generator) < 0.67)
    same = torch.where(found, by_middle.first[out_middle] + chosen, torch.full_like(out_middle, -1))
    return Case(sizes, by_middle, by_edge, in_edge, out_middle, same, dtype, device)


def same_when_recorded(operator: Callable[..., Tensor], values: Sequence[Tensor], names: Sequence[str]) -> None:
    """Gradients that are recorded, by a composition of operators, are those of the fused kernels (float64)."""
    inputs = [t.requires_grad_() for t in values]
    output = operator(*inputs)
    towards = random_tensor(*output.shape, seed=50).to(output.device)
    fused = torch.autograd.grad(output, inputs, towards, retain_graph=True)
    composed = torch.autograd.grad(output, inputs, towards, create_graph=True)
    for name, a, b in zip(names, fused, composed, strict=True):
        assert b.requires_grad, name
        assert relative_rms(a, b) < 1e-14, name
