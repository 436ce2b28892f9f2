"""Cases of the triplet operator: edge to edge, and atom to edge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jmp_kernels.bench.enumerated import count_triplets, triplets
from jmp_kernels.bench.forms import Case, Form, Pass, Sizes, Values, reducing
from jmp_kernels.bench.lists import Lists
from jmp_kernels.messages import ReadOut, TorchMessages
from jmp_kernels.segments import LookUp, Segments


def triplet(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """Edge to edge: x [E, C], R [E, K, L], Y [E, L²] to [E, K, C]."""
    s, k, c, orders = lists.main, sizes.basis, sizes.triplet, sizes.orders
    operands = {
        "x": values.features(s.num_rows, c, seed=1),
        "R": values.tables(s.num_rows, k, orders, seed=2) / orders,
        "Y": harmonics(values.tables(s.num_rows, orders**2, seed=3)),
    }
    factors = addition(orders, operands["Y"])
    forms = [
        Form("torch", lambda x, r, y: _twin(x, r, y, y, (s, s), None, factors), _twin_room(s, sizes)),
        _one_block(s, operands, factors),
        *_written_out(lists, sizes, operands["Y"]),
    ]
    if triton:
        from jmp_kernels.triton_ops.triplet import triplet as kernel

        forms.append(Form("triton", lambda x, r, y: kernel(x, y, s.first, r, y, s.first, s.rows, s.rows)))
    flops = _flops(s.num_rows, s.num_rows, sizes)
    return Case("triplet", operands, ("x", "R"), ("R", "Y"), tuple(forms), flops, (s.first,))


def triplet_a2e(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """Atom to edge: messages on the a2ee2a edges, which are other edges than those that read; some have no twin."""
    into, out_of, orders = lists.atom_edge, lists.main, sizes.orders
    operands = {
        "x": values.features(into.num_rows, sizes.triplet, seed=1),
        "R": values.tables(out_of.num_rows, sizes.basis, orders, seed=2) / orders,
        "Y_in": harmonics(values.tables(into.num_rows, orders**2, seed=3)),
        "Y_out": harmonics(values.tables(out_of.num_rows, orders**2, seed=4)),
    }
    twin, factors = lists.twin, addition(orders, operands["Y_out"])
    forms = [
        Form("torch", lambda x, r, i, o: _twin(x, r, i, o, (into, out_of), twin, factors), _twin_room(out_of, sizes)),
    ]
    if triton:
        from jmp_kernels.triton_ops.triplet import triplet as kernel

        here = twin.signed, twin.inverse
        forms.append(Form("triton", lambda x, r, i, o: kernel(x, i, into.first, r, o, out_of.first, *here)))
    flops = _flops(into.num_rows, out_of.num_rows, sizes)
    positional = ("R", "Y_in", "Y_out")
    return Case("triplet_a2e", operands, ("x", "R"), positional, tuple(forms), flops, (into.first, out_of.first))


def harmonics(rows: Tensor) -> Tensor:
    """Rows [R, L²], scaled order by order to Σ_m Y_lm² = (2l+1)/4π, as the spherical harmonics of any direction have it.

    So an edge gives P̃_l(1) with itself, and subtracting its term equals leaving it out.
    """
    degrees = [2 * l + 1 for l in range(math.isqrt(rows.shape[1]))]
    parts = rows.split(degrees, dim=1)
    return torch.cat([p * (math.sqrt(p.shape[1] / (4 * math.pi)) / p.norm(dim=1, keepdim=True)) for p in parts], 1)


def addition(orders: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(4π/(2l+1)) where l is the order of p, else 0 [L, L²]; and P̃_l(1) [L] (linear message passing, section 1)."""
    degrees = 2 * torch.arange(orders) + 1
    factor = (4 * math.pi / degrees.double()).sqrt()
    here = torch.repeat_interleave(torch.arange(orders), degrees) == torch.arange(orders)[:, None]
    return (here * factor[:, None]).to(like), (1 / factor).to(like)


def _twin(
    x: Tensor,
    radial: Tensor,
    y_in: Tensor,
    y_out: Tensor,
    segments: tuple[Segments, Segments],
    twin: LookUp | None,
    factors: tuple[Tensor, Tensor],
) -> Tensor:
    """The PyTorch form with its read-out table, which a network makes once for all its blocks."""
    into, out_of = segments
    by_order, at_one = (f.to(y_out.dtype) for f in factors)
    read = TorchMessages.read_out(radial, y_out, by_order, at_one, out_of)
    return TorchMessages.triplet(x.to(y_in.dtype), y_in, into, read, out_of, twin).to(x.dtype)


def _one_block(s: Segments, operands: dict[str, Tensor], factors: tuple[Tensor, Tensor]) -> Form:
    """The twin as in each of several blocks: with its read-out, made once per batch."""
    radial, y = operands["R"], operands["Y"]

    def tables() -> dict[str, Tensor]:
        read = TorchMessages.read_out(radial, y, *factors, s)
        return {"table": read.table, "own": read.own, "harmonics": y}

    def block(x: Tensor, table: Tensor, own: Tensor, harmonics: Tensor) -> Tensor:
        read = ReadOut(radial, harmonics, table, own)
        return TorchMessages.triplet(x.to(harmonics.dtype), harmonics, s, read, s, None).to(x.dtype)

    room = 4 * s.count * s.width * radial.shape[1] * y.shape[1]
    return Form("torch_block", block, room, tables, learned=("x", "table", "own"))


def _twin_room(readers: Segments, sizes: Sizes) -> int:
    """Bytes of its padded tables."""
    return 4 * readers.count * readers.width * (sizes.basis + 1) * sizes.orders**2


def _written_out(lists: Lists, sizes: Sizes, y: Tensor) -> list[Form]:
    """The published, padded form, and sums over listed triplets; both take the zonal harmonics of every triplet."""
    terms, edges, c = triplets(lists), lists.main.num_rows, sizes.triplet
    places = terms.padded_source(edges)
    padded_count = count_triplets(lists)

    def zonal() -> Tensor:
        factors, _ = addition(sizes.orders, y)
        return (y[terms.via] * y[terms.source]) @ factors.T

    def padded(x: Tensor, radial: Tensor, table: Tensor) -> Tensor:
        rows = torch.cat([x.to(table.dtype), table.new_zeros(1, c)]).index_select(0, places)
        o = torch.bmm(radial, torch.bmm(table, rows.view(edges, -1, c)))
        return o.to(x.dtype)

    def products(x: Tensor, radial: Tensor, table: Tensor) -> Tensor:
        return table[:, :, None] * x.to(table.dtype).index_select(0, terms.source)[:, None]

    def finish(sums: Tensor, x: Tensor, radial: Tensor, table: Tensor) -> Tensor:
        return torch.bmm(radial, sums).to(x.dtype)

    listed = reducing(products, terms.by_row, finish, 4 * len(terms.source) * sizes.orders * c)
    with_zonal = [form.taking(lambda: {"zonal": zonal()}) for form in listed]
    if not padded_count:
        return with_zonal
    return [
        Form("padded", padded, 4 * padded_count * (c + sizes.orders), lambda: {"zonal": terms.padded(zonal())}),
        *with_zonal,
    ]


def _flops(carrying: int, reading: int, sizes: Sizes) -> dict[Pass, int]:
    """Moments and read-out; back they are made again, and each has two factors.

    The recorded gradient of the tables is as much as one backward pass, and its own derivative twice that.
    """
    p = sizes.orders**2
    one = 2 * (carrying * p + reading * sizes.basis * p) * sizes.triplet
    return {"forward": one, "backward": 2 * one, "double": 6 * one}


CASES = {f.__name__: f for f in (triplet, triplet_a2e)}
