"""Interaction and output blocks over enumerated lists (specification sections 2, 5 and 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from oracle.lists import Lists
from torch import Tensor

from jmp_ds.models.config import BackboneConfig

SQRT2, SQRT3 = math.sqrt(2.0), math.sqrt(3.0)


@dataclass(frozen=True)
class Weights:
    """Tensors by name, below a prefix."""

    tensors: Mapping[str, Tensor]
    dtype: torch.dtype
    prefix: str = ""

    def below(self, name: str) -> Weights:
        return Weights(self.tensors, self.dtype, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name].to(self.dtype)

    def dense(self, x: Tensor, name: str, act: bool = True) -> Tensor:
        y = x @ self[f"{name}.linear.weight"].T
        return silu(y) if act else y

    def residual(self, x: Tensor, name: str) -> Tensor:
        inner = self.dense(self.dense(x, f"{name}.dense_mlp.0"), f"{name}.dense_mlp.1")
        return (x + inner) / SQRT2

    def residuals(self, x: Tensor, name: str, numbers: range) -> Tensor:
        for k in numbers:
            x = self.residual(x, f"{name}.{k}")
        return x

    def scaled(self, x: Tensor, name: str) -> Tensor:
        factor = self[f"{name}.scale_factor"]
        return x if factor == 0 else x * factor


def silu(x: Tensor) -> Tensor:
    """SiLU / 0.6."""
    return torch.nn.functional.silu(x) / 0.6


@dataclass(frozen=True)
class Geometry:
    """Edges with their lengths, unit vectors and radial functions."""

    source: Tensor
    target: Tensor
    vector: Tensor
    radial: Tensor


@dataclass(frozen=True)
class Inputs:
    """What all blocks see: geometry, lists, angular functions, the swap of main edges, and sizes."""

    main: Geometry
    a2a: Geometry
    a2ee2a: Geometry
    qint: Geometry
    lists: Lists
    swap: Tensor
    angular: dict[str, Tensor]
    natoms: int
    kept: float
    config: BackboneConfig


def interaction_block(
    w: Weights, bases: Weights, inputs: Inputs, h: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Specification section 5.7; returns h', m' and what the sub-blocks gave."""
    c, main = inputs.config, inputs.main
    parts = {
        "trip_interaction": triplets(w.below("trip_interaction"), bases, inputs, m),
        "quad_interaction": quadruplets(w.below("quad_interaction"), bases, inputs, m),
        "atom_edge_interaction": atom_to_edge(w.below("atom_edge_interaction"), bases, inputs, h),
        "edge_atom_interaction": edge_to_atom(w.below("edge_atom_interaction"), bases, inputs, m),
        "atom_interaction": atom_to_atom(w.below("atom_interaction"), bases, inputs, h),
    }
    on_edges = parts["trip_interaction"] + parts["quad_interaction"] + parts["atom_edge_interaction"]
    x = (w.dense(m, "dense_ca") + on_edges) / 2.0
    h1 = (h + parts["edge_atom_interaction"] + parts["atom_interaction"]) / SQRT3
    x = w.residuals(x, "layers_before_skip", range(c.num_before_skip))
    m1 = w.residuals((m + x) / SQRT2, "layers_after_skip", range(c.num_after_skip))
    h1 = w.residuals(h1, "atom_emb_layers", range(c.num_atom_emb_layers))
    parts["atom_update"] = atom_update(w.below("atom_update"), bases, inputs, m1)
    h_new = (h1 + parts["atom_update"]) / SQRT2
    m2 = w.dense(torch.cat([h_new[main.source], h_new[main.target], m1], 1), "concat_layer.dense")
    m2 = w.residuals(m2, "residual_m", range(c.num_concat))
    return h_new, (m1 + m2) / SQRT2, parts


def triplets(w: Weights, bases: Weights, inputs: Inputs, m: Tensor) -> Tensor:
    """Edge to edge (section 5.2)."""
    x = w.dense(m, "dense_ba") * w.dense(bases.dense(inputs.main.radial, "mlp_rbf_tint", act=False), "mlp_rbf", False)
    x = w.dense(w.scaled(x, "scale_rbf"), "down_projection")
    weight = basis_weight(bases["mlp_cbf_tint.weight"], inputs.main.radial)
    into, out = inputs.lists.e2e.T
    y = bilinear(w, "mlp_cbf.bilinear", x[into], inputs.angular["e2e"], out, weight)
    return _up_and_swap(w, w.scaled(y, "scale_cbf_sum"), inputs.swap)


def quadruplets(w: Weights, bases: Weights, inputs: Inputs, m: Tensor) -> Tensor:
    """Quadruplets (section 5.3)."""
    lists = inputs.lists
    x = w.dense(m, "dense_db") * w.dense(bases.dense(inputs.main.radial, "mlp_rbf_qint", act=False), "mlp_rbf", False)
    x = w.dense(w.scaled(x, "scale_rbf"), "down_projection")
    db, ba = lists.quad_in.T
    gate = basis_weight(bases["mlp_cbf_qint.weight"], inputs.qint.radial)[ba]
    circular = torch.einsum("tis,ts->ti", gate, inputs.angular["quad_in"])
    x = w.scaled(x[db] * w.dense(circular, "mlp_cbf", False), "scale_cbf")
    weight = basis_weight(bases["mlp_sbf_qint.weight"], inputs.main.radial)
    out = lists.quad_edges[:, 2]
    y = bilinear(w, "mlp_sbf.bilinear", x[lists.quads[:, 0]], inputs.angular["quad"], out, weight)
    return _up_and_swap(w, w.scaled(y, "scale_sbf_sum"), inputs.swap)


def atom_to_edge(w: Weights, bases: Weights, inputs: Inputs, h: Tensor) -> Tensor:
    """Atom to edge (section 5.4)."""
    edges = inputs.a2ee2a
    x = w.dense(h, "dense_ba")[edges.source]
    x = x * w.dense(bases.dense(edges.radial, "mlp_rbf_aeint", act=False), "mlp_rbf", False)
    x = w.dense(w.scaled(x, "scale_rbf"), "down_projection")
    weight = basis_weight(bases["mlp_cbf_aeint.weight"], inputs.main.radial)
    into, out = inputs.lists.a2e.T
    y = bilinear(w, "mlp_cbf.bilinear", x[into], inputs.angular["a2e"], out, weight)
    return _up_and_swap(w, w.scaled(y, "scale_cbf_sum"), inputs.swap)


def edge_to_atom(w: Weights, bases: Weights, inputs: Inputs, m: Tensor) -> Tensor:
    """Edge to atom (section 5.5)."""
    x = w.dense(m, "dense_ba") * w.dense(bases.dense(inputs.main.radial, "mlp_rbf_eaint", act=False), "mlp_rbf", False)
    x = w.dense(w.scaled(x, "scale_rbf"), "down_projection")
    weight = basis_weight(bases["mlp_cbf_eaint.weight"], inputs.a2ee2a.radial)
    into, out = inputs.lists.e2a.T
    per_edge = _contracted(x[into], inputs.angular["e2a"], out, weight)
    per_atom = sum_rows(per_edge, inputs.a2ee2a.target, inputs.natoms)
    y = w.dense(per_atom.flatten(1), "mlp_cbf.bilinear", False)
    return w.dense(w.scaled(y, "scale_cbf_sum"), "up_projection_ca")


def atom_to_atom(w: Weights, bases: Weights, inputs: Inputs, h: Tensor) -> Tensor:
    """Atom to atom (section 5.6)."""
    x = w.dense(h, "down_projection")[inputs.a2a.source]
    radial = inputs.a2a.radial @ bases["mlp_rbf_aint.weight"].T
    total = sum_rows(radial[:, :, None] * x[:, None, :], inputs.a2a.target, inputs.natoms)
    y = w.scaled(w.dense(total.flatten(1), "bilinear", False), "scale_rbf_sum")
    return w.dense(y, "up_projection")


def atom_update(w: Weights, bases: Weights, inputs: Inputs, m: Tensor) -> Tensor:
    """Edges summed into atoms (section 5.7, last paragraph)."""
    x = m * w.dense(bases.dense(inputs.main.radial, "mlp_rbf_h", act=False), "dense_rbf", False)
    x = w.scaled(sum_rows(x, inputs.main.target, inputs.natoms), "scale_sum")
    return w.residuals(w.dense(x, "layers.0"), "layers", range(1, inputs.config.num_atom + 1))


def output_block(w: Weights, bases: Weights, inputs: Inputs, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor | None]:
    """Section 5.8: features of atoms, and of edges where there is a force branch."""
    c = inputs.config
    radial = bases.dense(inputs.main.radial, "mlp_rbf_out", act=False)
    x = sum_rows(m * w.dense(radial, "dense_rbf", False), inputs.main.target, inputs.natoms) / inputs.kept
    x = w.dense(w.scaled(x, "scale_sum"), "layers.0")
    x = w.residuals(x, "layers", range(1, c.num_atom + 1))
    x = w.residuals((x + h) / SQRT2, "seq_energy2", range(c.num_output_afteratom))
    if not c.direct_forces:
        return x, None
    y = w.residuals(m, "seq_forces", range(c.num_output_afteratom))
    return x, w.scaled(y * w.dense(radial, "dense_rbf_F", False), "scale_rbf_F")


def basis_weight(weight: Tensor, radial: Tensor) -> Tensor:
    """W1[e, i, s] = Σ_r rad[e, r] Wflat[r, i·S' + s]: the declared axes [R, S', I] are scrambled (section 4)."""
    count, functions, size = weight.shape
    return (radial @ weight.reshape(count, -1)).reshape(-1, size, functions)


def bilinear(w: Weights, name: str, x: Tensor, angular: Tensor, out: Tensor, weight: Tensor) -> Tensor:
    """Efficient bilinear layer (section 5.1): messages [T, J] of lists to output edges [E, out]."""
    return w.dense(_contracted(x, angular, out, weight).flatten(1), name, False)


def _contracted(x: Tensor, angular: Tensor, out: Tensor, weight: Tensor) -> Tensor:
    """B[e, i, j] = Σ_s W1[e, i, s] Σ_{t of e} Y_s(t) x_t[j]."""
    moments = sum_rows(angular[:, :, None] * x[:, None, :], out, weight.shape[0])
    return torch.einsum("eis,esj->eij", weight, moments)


def sum_rows(x: Tensor, into: Tensor, count: int) -> Tensor:
    """Rows of x summed into `count` groups."""
    return x.new_zeros(count, *x.shape[1:]).index_add(0, into, x)


def _up_and_swap(w: Weights, y: Tensor, swap: Tensor) -> Tensor:
    return (w.dense(y, "up_projection_ca") + w.dense(y, "up_projection_ac")[swap]) / SQRT2


def final_features(w: Weights, features: list[Tensor], config: BackboneConfig) -> Tensor:
    """Section 5.9."""
    x = w.dense(torch.cat(features, 1), "0")
    for k in range(1, config.num_global_out_layers + 1):
        x = w.residual(x, str(k))
    return x
