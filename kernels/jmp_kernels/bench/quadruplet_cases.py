"""Cases of the quadruplet operators: moments of middle bonds, their read-out, and both in one."""

from __future__ import annotations

import torch
from torch import Tensor

from jmp_kernels import trilinear
from jmp_kernels.bench.enumerated import count_quadruplets, quadruplets
from jmp_kernels.bench.forms import Case, Form, Pass, Sizes, Values, reducing
from jmp_kernels.bench.lists import Lists
from jmp_kernels.messages import TorchMessages
from jmp_kernels.middles import MiddleRows, MiddleTables


def quadruplet_moments(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """x [E_f, C], W [C, G], g [R_in, G], write [R_in, 2H] to [Q, 2H, C]."""
    m, c = lists.middles, sizes.quadruplet
    operands = _gate(m, sizes, values) | {"write": _write(m, sizes, values)}

    def products(x: Tensor, weight: Tensor, gate: Tensor, write: Tensor) -> Tensor:
        return write[:, :, None] * messages(m, x, weight, gate)[:, None]

    def twin(x: Tensor, weight: Tensor, gate: Tensor, write: Tensor) -> Tensor:
        return trilinear.segment_outer(write, messages(m, x, weight, gate), m.by_middle)

    rows, p = m.by_middle.num_rows, 2 * sizes.azimuths
    forms = [
        Form("torch", twin, 4 * m.by_middle.count * m.by_middle.width * (p + c)),
        *reducing(products, m.by_middle, room=4 * rows * p * c),
    ]
    if triton:
        from jmp_kernels.triton_ops.quadruplet_moments import quadruplet_moments as kernel

        at = m.by_middle.first, *edge_lists(m)
        forms.append(Form("triton", lambda x, w, g, write: kernel(x, g, w, write, *at)))
    one = _gate_flops(rows, sizes) + 2 * rows * p * c
    read = (m.by_middle.first, *edge_lists(m))
    return Case(
        "quadruplet_moments", operands, ("x", "W", "g"), ("g", "write"), tuple(forms), _with_gradients(one), read
    )


def quadruplet_read(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """B [Q, 2H, C] and the tables of out-pairs to [E_r, K, C]."""
    m, h, c = lists.middles, sizes.azimuths, sizes.quadruplet
    moments = values.tables(m.by_middle.count, 2 * h, c, seed=5)
    operands = _gate(m, sizes, values) | {"B": moments} | _out_tables(m, sizes, values)

    def products(x: Tensor, w: Tensor, g: Tensor, b: Tensor, radial: Tensor, *tables: Tensor) -> Tensor:
        zonal, read, share = tables
        return zonal[:, :, None] * per_pair(m, messages(m, x, w, g), b, read, share).flatten(1)[:, None]

    def finish(sums: Tensor, x: Tensor, w: Tensor, g: Tensor, b: Tensor, radial: Tensor, *tables: Tensor) -> Tensor:
        return _read_out(sums, radial, c).to(x.dtype)

    def twin(x: Tensor, w: Tensor, g: Tensor, b: Tensor, radial: Tensor, *tables: Tensor) -> Tensor:
        zonal, read, share = tables
        t = per_pair(m, messages(m, x, w, g), b, read, share).flatten(1)
        return finish(trilinear.segment_outer(zonal, t, m.by_reader), x, w, g, b, radial, *tables)

    rows = m.by_reader.num_rows
    forms = [
        Form("torch", twin, 4 * m.by_reader.count * m.by_reader.width * h * c),
        *reducing(products, m.by_reader, finish, 4 * rows * sizes.orders * h * c),
    ]
    if triton:
        from jmp_kernels.triton_ops.quadruplet_read import quadruplet_read as kernel

        at = read_lists(m)

        def fused(x: Tensor, w: Tensor, g: Tensor, b: Tensor, radial: Tensor, *tables: Tensor) -> Tensor:
            out: Tensor = kernel(b, *tables, radial, x, g, w, *at)
            return out

        forms.append(Form("triton", fused))
    return Case(
        "quadruplet_read", operands, ("x", "W", "g", "B", "R"), ("R", "zonal", "read", "share"), tuple(forms),
        _with_gradients(_read_flops(m, sizes)), read_lists(m),
    )  # fmt: skip


def quadruplet(lists: Lists, sizes: Sizes, values: Values, triton: bool) -> Case:
    """Both steps: features of the edges that feed to messages to the edges that read."""
    m, c = lists.middles, sizes.quadruplet
    write = _write(m, sizes, values)
    out = _out_tables(m, sizes, values)
    out["share"] = _share_of(m, write, out["read"], sizes)
    radial = {"R": out.pop("R")}
    operands = _gate(m, sizes, values) | radial | {"write": write} | out

    def by_pair(x: Tensor, w: Tensor, g: Tensor, radial: Tensor, *positional: Tensor) -> Tensor:
        write, zonal, read, share = positional
        y = messages(m, x, w, g)
        t = per_pair(m, y, trilinear.segment_outer(write, y, m.by_middle), read, share).flatten(1)
        return _read_out(trilinear.segment_outer(zonal, t, m.by_reader), radial, c).to(x.dtype)

    def twin(x: Tensor, w: Tensor, g: Tensor, radial: Tensor, *positional: Tensor) -> Tensor:
        """With its tables by atom, which a network makes once for all its blocks."""
        write, zonal, read, share = positional
        powers, own = read.view(read.shape[0], sizes.azimuths, 2), share * m.same.found[:, None]
        tables = TorchMessages().middle_tables(g, write, radial, zonal, powers, own, m)
        return TorchMessages().quadruplet(x, w, tables, m).to(x.dtype)

    oracle = Form("by_pair", by_pair, 4 * m.by_reader.count * m.by_reader.width * sizes.azimuths * c)
    forms = [oracle]
    if m.by_reader.num_rows:
        forms += [Form("torch", twin), _one_block(m, operands, sizes), *_padded(lists, sizes, operands)]
    if triton:
        from jmp_kernels.triton_ops.quadruplet_moments import quadruplet_moments as write_kernel
        from jmp_kernels.triton_ops.quadruplet_read import quadruplet_read as read_kernel

        into, out_of = (m.by_middle.first, *edge_lists(m)), read_lists(m)

        def fused(x: Tensor, w: Tensor, g: Tensor, radial: Tensor, *positional: Tensor) -> Tensor:
            write, *tables = positional
            o: Tensor = read_kernel(write_kernel(x, g, w, write, *into), *tables, radial, x, g, w, *out_of)
            return o

        forms.append(Form("triton", fused))
    rows = m.by_middle.num_rows
    one = _gate_flops(rows, sizes) + 4 * rows * sizes.azimuths * c + _read_flops(m, sizes)
    learned, positional = ("x", "W", "g", "R"), ("g", "R", "write", "zonal", "read", "share")
    return Case("quadruplet", operands, learned, positional, tuple(forms), _with_gradients(one), read_lists(m))


def messages(m: MiddleRows, x: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
    """y of every in-triplet."""
    return x.to(weight.dtype).index_select(0, m.feature.index) * (gate @ weight.T)


def per_pair(m: MiddleRows, y: Tensor, moments: Tensor, read: Tensor, share: Tensor) -> Tensor:
    """t of every out-pair: [R_out, H, C]."""
    rows, azimuths = share.shape
    c = y.shape[1]
    real, imaginary = moments.view(-1, azimuths, 2, c).index_select(0, m.middle.index).unbind(2)
    powers = read.view(rows, azimuths, 2)
    t = powers[:, :, :1] * real + powers[:, :, 1:] * imaginary
    if not y.shape[0]:
        return t
    own = share * m.same.found[:, None]
    return t - own[:, :, None] * y.index_select(0, m.same.index)[:, None]


def _read_out(sums: Tensor, radial: Tensor, channels: int) -> Tensor:
    """Sums [E_r, L, H·C] contracted with R [E_r, K, L·H]: [E_r, K, C]."""
    return torch.bmm(radial, sums.view(radial.shape[0], radial.shape[2], channels))


def edge_lists(m: MiddleRows) -> tuple[Tensor, Tensor, Tensor]:
    """edge_first, in_edge, edge_order, as the kernels take them."""
    back = m.feature.transposed
    return back.first, m.feature.index, back.order


def read_lists(m: MiddleRows) -> tuple[Tensor, ...]:
    """All lists of `jmp::quadruplet_read`."""
    middle, same = m.middle.transposed, m.same.transposed
    of_middle = (middle.first, m.middle.index, middle.order)
    return m.by_reader.first, *of_middle, same.first, m.same.signed, same.order, *edge_lists(m)


def _gate(m: MiddleRows, sizes: Sizes, values: Values) -> dict[str, Tensor]:
    """Operands that make y; the weight is one of the tables, as in the network."""
    return {
        "x": values.features(m.feature.count, sizes.quadruplet, seed=1),
        "W": values.tables(sizes.quadruplet, sizes.basis, seed=2) / 4,
        "g": values.tables(m.by_middle.num_rows, sizes.basis, seed=3),
    }


def _write(m: MiddleRows, sizes: Sizes, values: Values) -> Tensor:
    return values.tables(m.by_middle.num_rows, 2 * sizes.azimuths, seed=4)


def _out_tables(m: MiddleRows, sizes: Sizes, values: Values) -> dict[str, Tensor]:
    """R [E_r, K, L·H], zonal [R_out, L], read [R_out, 2H], share [R_out, H]."""
    rows, h = m.by_reader.num_rows, sizes.azimuths
    return {
        "R": values.tables(m.by_reader.count, sizes.quadruplet_basis, sizes.orders * h, seed=6) / 8,
        "zonal": values.tables(rows, sizes.orders, seed=7),
        "read": values.tables(rows, 2 * h, seed=8),
        "share": values.tables(rows, h, seed=9),
    }


def _share_of(m: MiddleRows, write: Tensor, read: Tensor, sizes: Sizes) -> Tensor:
    """What the in-triplet d = c contributes to every azimuth channel, so that subtracting it equals leaving it out."""
    if not write.shape[0]:
        return read.new_zeros(read.shape[0], sizes.azimuths)
    both = (read * write.index_select(0, m.same.index)).view(read.shape[0], sizes.azimuths, 2)
    return both.sum(2) * m.same.found[:, None]


def _one_block(m: MiddleRows, operands: dict[str, Tensor], sizes: Sizes) -> Form:
    """The twin as in each of several blocks: with tables that are made once per batch."""
    names = ("g", "write", "R", "zonal", "read", "share")

    def made() -> MiddleTables:
        g, write, radial, zonal, read, share = (operands[name] for name in names)
        powers = read.view(read.shape[0], sizes.azimuths, 2)
        return TorchMessages().middle_tables(g, write, radial, zonal, powers, share * m.same.found[:, None], m)

    def tables() -> dict[str, Tensor]:
        found = made()
        # `own` is made of R: the gradient of R, other than that of the whole operator, is only one part of it here
        return {"radial": found.radial, "write": found.write, "joint": found.joint, "own": found.own}

    def block(x: Tensor, w: Tensor, g: Tensor, radial: Tensor, *own: Tensor) -> Tensor:
        write, joint, minus = own
        found = MiddleTables(g, write, radial, radial[:0], radial[:0], radial[:0], joint, minus)
        return TorchMessages().quadruplet(x, w, found, m).to(x.dtype)

    return Form("torch_block", block, 0, tables, learned=("x", "W", "g", "radial", "own"))


def _padded(lists: Lists, sizes: Sizes, operands: dict[str, Tensor]) -> list[Form]:
    """The published form: every quadruplet of every edge, padded. It takes the product of both angular bases."""
    m, c, orders, h = lists.middles, sizes.quadruplet, sizes.orders, sizes.azimuths
    places = count_quadruplets(lists)
    if not places:
        return []
    terms = quadruplets(lists)
    source = terms.padded_source(m.by_middle.num_rows)

    def spherical() -> dict[str, Tensor]:
        both = (operands["read"][terms.via] * operands["write"][terms.source]).view(-1, h, 2).sum(2)
        return {"spherical": terms.padded((operands["zonal"][terms.via][:, :, None] * both[:, None]).flatten(1))}

    def padded(x: Tensor, w: Tensor, g: Tensor, radial: Tensor, table: Tensor) -> Tensor:
        y = torch.cat([messages(m, x, w, g), w.new_zeros(1, c)]).index_select(0, source)
        return torch.bmm(radial, torch.bmm(table, y.view(m.by_reader.count, -1, c))).to(x.dtype)

    return [Form("padded", padded, 4 * places * (c + 2 * orders * h), spherical)]


def _gate_flops(rows: int, sizes: Sizes) -> int:
    return rows * sizes.quadruplet * (2 * sizes.basis + 1)


def _read_flops(m: MiddleRows, sizes: Sizes) -> int:
    rows, h, c = m.by_reader.num_rows, sizes.azimuths, sizes.quadruplet
    t = _gate_flops(rows, sizes) + 6 * rows * h * c
    return t + 2 * rows * sizes.orders * h * c + 2 * m.by_reader.count * sizes.quadruplet_basis * sizes.orders * h * c


def _with_gradients(one: int) -> dict[Pass, int]:
    """Back, everything is made again and every product has two factors; recorded and differentiated, three times that."""
    return {"forward": one, "backward": 2 * one, "double": 6 * one}


CASES = {f.__name__: f for f in (quadruplet_moments, quadruplet_read, quadruplet)}
