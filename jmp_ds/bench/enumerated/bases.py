"""Radial and angular bases of edges, triplets and quadruplets, padded once per step (specification section 4).

Geometry is computed in float32 at least; what enters matrix products with features is handed out in their precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_ds.bench.enumerated.layers import Weights, padded
from jmp_ds.bench.enumerated.lists import EnumeratedLists, Quadruplets, Triplets
from jmp_ds.graphs.graph import EdgeSet, Graph
from jmp_ds.graphs.settings import RADIAL_SPAN, Dihedral
from jmp_ds.models.angular import fourier_coefficients, zonal_harmonics

#: The published bound below which |n1 × n2| is not let.
DIHEDRAL_CLAMP = 1e-9


@dataclass(frozen=True)
class BilinearBasis:
    """Basis of the efficient bilinear layer (specification section 5.1); R groups, K places, S functions.

    Attributes:
        angular: [R, S, K], zero-padded.
        radial: [R, I, S].
    """

    angular: Tensor
    radial: Tensor

    def contract(self, messages: Tensor) -> Tensor:
        """Padded messages [R, K, C] to [R, I · C], basis channel first."""
        return torch.bmm(self.radial, torch.bmm(self.angular, messages)).flatten(1)


@dataclass(frozen=True)
class EnumeratedBases:
    """All bases of one batch.

    Attributes:
        vectors: [E, 3] unit vectors of main edges, source to target.
        radial: [E, num_radial] of main edges.
        rad: [E or E_a2ee2a, rbf], projections by the name of their layer in the model.
        a2a: [N, rbf, K], padded.
        e2e, a2e, quadruplets: bases on main edges.
        e2a_angular: [E_a2ee2a, S, K], padded.
        e2a_radial: [N, cbf, K' · S], padded over the a2ee2a edges of an atom.
        circular: [T_in, cbf], of input triplets.
    """

    vectors: Tensor
    radial: Tensor
    rad: dict[str, Tensor]
    a2a: Tensor
    e2e: BilinearBasis
    a2e: BilinearBasis
    quadruplets: BilinearBasis
    e2a_angular: Tensor
    e2a_radial: Tensor
    circular: Tensor


@dataclass(frozen=True)
class _Edges:
    """Unit vectors [E, 3] and radial basis [E, num_radial] of one graph."""

    vectors: Tensor
    radial: Tensor


@dataclass(frozen=True)
class _Shape:
    """What the angular bases depend on besides geometry, and the precision to hand them out in."""

    orders: int
    dihedral: Dihedral
    features: torch.dtype

    def cosine(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product of unit vectors [T, 3]; only the published rule clamps it."""
        cosine = (a * b).sum(-1)
        return cosine.clamp(-1.0, 1.0) if self.dihedral == "jmp" else cosine


def enumerated_bases(
    w: Weights,
    graph: Graph,
    lists: EnumeratedLists,
    pos: Tensor,
    *,
    orders: int,
    dihedral: Dihedral,
    features: torch.dtype,
) -> EnumeratedBases:
    """Bases of a batch.

    Args:
        w: the shared basis layers.
        graph: the four graphs.
        lists: of this batch.
        pos: [N, 3] in Å; differences are taken in its precision.
        orders: num_spherical.
        dihedral: the rule for azimuths.
        features: precision of features.
    """
    geometry = torch.float64 if w["mlp_rbf_h.linear.weight"].dtype == torch.float64 else torch.float32
    with torch.autocast(pos.device.type, enabled=False):
        number = w["mlp_rbf_h.linear.weight"].shape[1]
        ends = graph.envelope_end_of_atom.to(geometry)
        main, a2a, a2ee2a, qint = (
            _edges(each, pos, ends, number) for each in (graph.main, graph.a2a, graph.a2ee2a, graph.qint)
        )
        shape = _Shape(orders, dihedral, features)
        names = ("mlp_rbf_tint", "mlp_rbf_qint", "mlp_rbf_eaint", "mlp_rbf_h", "mlp_rbf_out")
        rad = {name: _projected(main.radial, w[f"{name}.linear.weight"]) for name in names}
        rad["mlp_rbf_aeint"] = _projected(a2ee2a.radial, w["mlp_rbf_aeint.linear.weight"])
        e2a_radial = padded(_contracted(w, "mlp_cbf_eaint", a2ee2a.radial).transpose(1, 2), lists.a2ee2a)
        return EnumeratedBases(
            vectors=main.vectors,
            radial=main.radial.to(features),
            rad={name: each.to(features) for name, each in rad.items()},
            a2a=padded(_projected(a2a.radial, w["mlp_rbf_aint.weight"]).to(features), lists.a2a).transpose(1, 2),
            e2e=_bilinear(w, "mlp_cbf_tint", main, _triplet_angles(main, main, lists.e2e, shape), shape),
            a2e=_bilinear(w, "mlp_cbf_aeint", main, _triplet_angles(a2ee2a, main, lists.a2e, shape), shape),
            quadruplets=_bilinear(w, "mlp_sbf_qint", main, _quadruplet_angles(main, qint, lists, shape), shape),
            e2a_angular=_triplet_angles(main, a2ee2a, lists.e2a, shape),
            e2a_radial=e2a_radial.flatten(1, 2).transpose(1, 2).to(features),
            circular=_circular(w, main, qint, lists.quadruplets, shape).to(features),
        )


def _edges(edges: EdgeSet, pos: Tensor, ends: Tensor, number: int) -> _Edges:
    vector = pos.index_select(0, edges.target) - pos.index_select(0, edges.source) - edges.shift.to(pos.dtype)
    vector = vector.to(ends.dtype)
    length = vector.square().sum(-1).sqrt()
    return _Edges(vector / length[:, None], _radial_basis(length, ends.index_select(0, edges.target), number))


def _radial_basis(length: Tensor, end: Tensor, number: int) -> Tensor:
    """Gaussians on a grid over 0 … 12 Å times the polynomial envelope that ends at `end`: [E] to [E, number]."""
    # the published grid was made in float32
    grid = torch.linspace(0, 1, number, dtype=torch.float32, device=length.device).to(length.dtype)
    gauss = torch.exp(-0.5 * (number - 1) ** 2 * (length[:, None] / RADIAL_SPAN - grid) ** 2)
    x = length / end
    inside = 1.0 + x**5 * (-21.0 + x * (35.0 - 15.0 * x))
    return torch.where(x < 1.0, inside, torch.zeros_like(x))[:, None] * gauss


def _projected(radial: Tensor, weight: Tensor) -> Tensor:
    return radial @ weight.to(radial.dtype).T


def _contracted(w: Weights, name: str, radial: Tensor) -> Tensor:
    """Radial part of a bilinear basis: [E, num_radial] to [E, I, S], with the published order of the weight's rows."""
    weight = w[f"{name}.weight"].to(radial.dtype)
    number, functions, size = weight.shape
    return (radial @ weight.reshape(number, -1)).view(radial.shape[0], size, functions)


def _bilinear(w: Weights, name: str, edges: _Edges, angular: Tensor, shape: _Shape) -> BilinearBasis:
    return BilinearBasis(angular=angular, radial=_contracted(w, name, edges.radial).to(shape.features))


def _triplet_angles(inputs: _Edges, outputs: _Edges, triplets: Triplets, shape: _Shape) -> Tensor:
    """Circular basis of triplets, padded: [R, S, K]."""
    into, out = inputs.vectors.index_select(0, triplets.into), outputs.vectors.index_select(0, triplets.out)
    angles = zonal_harmonics(shape.cosine(into, out), shape.orders)
    return padded(angles.to(shape.features), triplets.padding).transpose(1, 2)


def _quadruplet_angles(main: _Edges, qint: _Edges, lists: EnumeratedLists, shape: _Shape) -> Tensor:
    """Spherical basis of quadruplets, padded: [E, S², K], bond angle first."""
    quads = lists.quadruplets
    bond, axis = main.vectors.index_select(0, quads.out_edge), qint.vectors.index_select(0, quads.out_middle)
    angle = zonal_harmonics(shape.cosine(bond, axis), shape.orders)
    turned = dihedral_basis(main.vectors, qint.vectors, quads, shape.orders, shape.dihedral)
    both = angle.index_select(0, quads.out)[:, :, None] * turned[:, None, :]
    return padded(both.flatten(1).to(shape.features), quads.padding).transpose(1, 2)


def dihedral_basis(main: Tensor, qint: Tensor, quads: Quadruplets, orders: int, dihedral: Dihedral) -> Tensor:
    """P̃_l(cos θ) of every quadruplet, θ between the planes (c, a, b) and (a, b, d).

    Args:
        main, qint: unit vectors [E, 3] and [E_qint, 3].
        quads: the quadruplets.
        orders: number of l.
        dihedral: `jmp` is cos(atan2(max(|n1 × n2|, 1e-9), n1 · n2)); `smooth` takes the components perpendicular to the
            middle bond as complex numbers w and sums the Fourier series of P̃_l over powers of w_c conj(w_d).

    Returns:
        [Q, orders].
    """
    c_a, out_axis = main.index_select(0, quads.out_edge), qint.index_select(0, quads.out_middle)
    d_b, in_axis = main.index_select(0, quads.in_edge), qint.index_select(0, quads.in_middle)
    if dihedral == "jmp":
        first = torch.linalg.cross(c_a, out_axis).index_select(0, quads.out)
        second = torch.linalg.cross(d_b, in_axis).index_select(0, quads.into)
        x = (first * second).sum(-1)
        square = torch.linalg.cross(first, second).square().sum(-1).clamp(min=DIHEDRAL_CLAMP**2)
        # the cosine of atan2 without the angle
        return zonal_harmonics(x * (x.square() + square).rsqrt(), orders)
    w_c = c_a - (c_a * out_axis).sum(-1, keepdim=True) * out_axis
    w_d = d_b - (d_b * in_axis).sum(-1, keepdim=True) * in_axis
    p = (w_c.index_select(0, quads.out) * w_d.index_select(0, quads.into)).sum(-1)
    r = w_c.square().sum(-1).index_select(0, quads.out) * w_d.square().sum(-1).index_select(0, quads.into)
    powers = [torch.ones_like(p), p]
    for _ in range(orders - 2):
        powers.append(2.0 * p * powers[-1] - r * powers[-2])
    series = fourier_coefficients(orders, "smooth").to(p)
    return torch.stack(powers[:orders], dim=-1) @ series.T


def _circular(w: Weights, main: _Edges, qint: _Edges, quads: Quadruplets, shape: _Shape) -> Tensor:
    """Circular basis of input triplets times the radial weights of their middle bond: [T_in, cbf]."""
    bond, axis = main.vectors.index_select(0, quads.in_edge), qint.vectors.index_select(0, quads.in_middle)
    angle = zonal_harmonics(shape.cosine(bond, axis), shape.orders)
    radial = _contracted(w, "mlp_cbf_qint", qint.radial).index_select(0, quads.in_middle)
    return torch.bmm(radial, angle[:, :, None]).squeeze(2)
