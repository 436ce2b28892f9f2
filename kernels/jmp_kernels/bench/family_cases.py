"""Cases of the trilinear family, of sums and gathers, and of the pair interaction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from jmp_kernels import trilinear
from jmp_kernels.bench.forms import Case, Form, Pass, Sizes, Values, compiled, padded_sum, reducing
from jmp_kernels.bench.lists import Lists
from jmp_kernels.messages import TorchMessages


def wide(x: Tensor) -> Tensor:
    """In float32 at least: what every form but the kernels adds up in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def segment_sum(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """Edges into atoms: [E, edge] to [N, edge] (atom update)."""
    s = lists.main
    rows, c = s.num_rows, sizes.edge
    forms = [
        Form("torch", lambda x: TorchMessages.segment_sum(x, s)),
        Form("padded", lambda x: padded_sum(wide(x), s), 4 * s.count * s.width * c),
        *(form for form in reducing(wide, s) if form.name != "index_add"),  # that is the twin
    ]
    if triton:
        from jmp_kernels.triton_ops.rows import segment_sum as kernel

        forms.append(Form("triton", lambda x: kernel(x, s.first, s.index, None, wide(x[:0]).dtype)))
    flops: dict[Pass, int] = {"forward": rows * c, "backward": 0, "double": rows * c}
    operands = {"x": values.features(rows, c, seed=1)}
    return Case("segment_sum", operands, ("x",), (), tuple(forms), flops, (s.first,))


def gather_rows(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """Source atoms of the a2ee2a edges: [N, atom] to [R, atom]."""
    g, c = lists.source, sizes.atom
    forms = [
        Form("torch", lambda y: y.index_select(0, g.index)),
        Form("indexing", lambda y: y[g.index]),
        compiled(lambda y: y[g.index]),
    ]
    if triton:
        from jmp_kernels.triton_ops.rows import gather_rows as kernel

        back = g.transposed
        forms.append(Form("triton", lambda y: kernel(y, back.first, g.index, back.order)))
    flops: dict[Pass, int] = {"forward": 0, "backward": g.index.shape[0] * c, "double": 0}
    operands = {"y": values.features(g.count, c, seed=1)}
    return Case("gather_rows", operands, ("y",), (), tuple(forms), flops, (g.index,))


def segment_outer(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """Moments of atoms: u [E, L²], x [E, C] to [N, L², C]."""
    s, p, c = lists.main, sizes.orders**2, sizes.triplet
    room = 4 * s.num_rows * p * c
    forms = [
        Form("torch", lambda x, u: trilinear.segment_outer(u, x.to(u.dtype), s), _padded(s.count * s.width, p, c)),
        *reducing(lambda x, u: u[:, :, None] * x.to(u.dtype)[:, None], s, room=room),
    ]
    if triton:
        from jmp_kernels.triton_ops.family import segment_outer as kernel

        forms.append(Form("triton", lambda x, u: kernel(u, x, s.first)))
    operands = {"x": values.features(s.num_rows, c, seed=1), "u": values.tables(s.num_rows, p, seed=2)}
    flops = _trilinear(s.num_rows, p, c)
    return Case("segment_outer", operands, ("x",), ("u",), tuple(forms), flops, (s.first,))


def expand_feature(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """Moments read by edges: u [E, L²], O [N, L², C] to [E, C]."""
    s, p, c = lists.main, sizes.orders**2, sizes.triplet
    naive = partial(_expanded, lambda o, u: (u[:, :, None] * o).sum(1), lists)
    forms = [
        Form("torch", lambda o, u: trilinear.expand_feature(u, o.to(u.dtype), s), _padded(s.count * s.width, p, c)),
        Form("gathered", naive, 8 * s.num_rows * p * c),
        compiled(naive, 8 * s.num_rows * p * c),
    ]
    if triton:
        from jmp_kernels.triton_ops.family import expand_feature as kernel

        forms.append(Form("triton", lambda o, u: kernel(u, o, s.first)))
    operands = {"O": values.features(s.count, p, c, seed=1), "u": values.tables(s.num_rows, p, seed=2)}
    flops = _trilinear(s.num_rows, p, c)
    return Case("expand_feature", operands, ("O",), ("u",), tuple(forms), flops, (s.first,))


def expand_basis(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """What the moments of its atom say to the basis of an edge: x [E, C], O [N, L², C] to [E, L²]."""
    s, p, c = lists.main, sizes.orders**2, sizes.triplet
    naive = partial(_expanded, lambda o, x: (x[:, None] * o).sum(2), lists)
    room = 8 * s.num_rows * p * c

    def twin(x: Tensor, o: Tensor) -> Tensor:
        return trilinear.expand_basis(x.to(o.dtype), o, s)

    forms = [
        Form("torch", twin, _padded(s.count * s.width, p, c)),
        Form("gathered", lambda x, o: naive(o, x), room),
        compiled(lambda x, o: naive(o, x), room),
    ]
    if triton:
        from jmp_kernels.triton_ops.family import expand_basis as kernel

        forms.append(Form("triton", lambda x, o: kernel(x, o, s.first, o.dtype)))
    operands = {"x": values.features(s.num_rows, c, seed=1), "O": values.tables(s.count, p, c, seed=2)}
    flops = _trilinear(s.num_rows, p, c)
    return Case("expand_basis", operands, ("x",), ("O",), tuple(forms), flops, (s.first,))


def pair(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """Atom pairs: w [P, K], h [N, C] to [N, K, C]."""
    s, g, k, c = lists.pairs, lists.pair_source, sizes.pair_basis, sizes.pair

    def products(h: Tensor, w: Tensor) -> Tensor:
        return w[:, :, None] * h.to(w.dtype).index_select(0, g.index)[:, None]

    def twin(h: Tensor, w: Tensor) -> Tensor:
        return TorchMessages.pair(w, h.to(w.dtype), g, s)

    forms = [
        Form("torch", twin, _padded(s.count * s.width, k, c)),
        *reducing(products, s, room=4 * s.num_rows * k * c),
    ]
    back = g.transposed
    if triton:
        from jmp_kernels.triton_ops.pair import pair as kernel

        forms.append(Form("triton", lambda h, w: kernel(w, h, g.index, s.first, back.order, back.first)))
    operands = {"h": values.features(g.count, c, seed=1), "w": values.tables(s.num_rows, k, seed=2)}
    one = 2 * s.num_rows * k * c
    flops: dict[Pass, int] = {"forward": one, "backward": 2 * one, "double": 3 * one}
    lists_read = (s.first, g.index, back.order, back.first)
    return Case("pair", operands, ("h", "w"), ("w",), tuple(forms), flops, lists_read)


def _expanded(contract: Callable[[Tensor, Tensor], Tensor], lists: Lists, o: Tensor, rows: Tensor) -> Tensor:
    """An expansion with the matrix of its segment gathered for every row."""
    common = torch.promote_types(o.dtype, rows.dtype)
    return contract(o.to(common).index_select(0, lists.main.index), rows.to(common))


def _padded(places: int, p: int, c: int) -> int:
    """Bytes of both padded factors."""
    return 4 * places * (p + c)


def _trilinear(rows: int, p: int, c: int) -> dict[Pass, int]:
    """One contraction forward and one back; its second derivative is three more (linear message passing, section 3)."""
    one = 2 * rows * p * c
    return {"forward": one, "backward": one, "double": 3 * one}


CASES = {f.__name__: f for f in (segment_sum, gather_rows, segment_outer, expand_feature, expand_basis, pair)}
