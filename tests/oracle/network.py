"""The network with every triplet and quadruplet listed: the oracle that the linear-time model is tested against.

Written from sections 2 to 5 of the specification and from nothing else; it shares no code with the model. Slow by design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from oracle.blocks import Geometry, Inputs, Weights, final_features, interaction_block, output_block, silu
from oracle.functions import published_dihedral, radial_functions, smooth_dihedral, zonal
from oracle.lists import Lists, enumerate_lists
from torch import Tensor

from jmp_ds.graphs.neighbors import EdgeLists
from jmp_ds.models.config import BackboneConfig


def oracle_forward(
    state: Mapping[str, Tensor],
    config: BackboneConfig,
    edges: EdgeLists,
    atomic_numbers: Tensor,
    pos: Tensor,
    cell: Tensor,
    structure: Tensor,
    *,
    dihedral: str = "jmp",
    envelope_end: float | Sequence[float] = 12.0,
    edge_dropout: float = 0.0,
) -> dict[str, Tensor]:
    """Features of a batch, and everything on the way to them.

    Args:
        state: tensors of the backbone by published name, with or without `backbone.` before it.
        config: sizes.
        edges: of the whole batch, atoms counted through, in any order; results on edges come in this order.
        atomic_numbers: int64 [N].
        pos: [N, 3] in Å; all arithmetic is in its precision.
        cell: [B, 3, 3], rows in Å.
        structure: int64 [N], the structure of every atom.
        dihedral: `jmp` or `smooth`.
        envelope_end: length in Å at which the envelope ends, for all structures or one for each.
        edge_dropout: share of dropped edges that the output blocks make up for.

    Returns:
        `atoms` [N, emb_atom], `vectors` [E, 3], `edges` [E, emb_edge] if config.direct_forces, and intermediates under the
        names of the golden files (`h0`, `m0`, `int0_h`, `int0_trip_interaction`, `out0_xE`, ...).
    """
    tensors = {name.removeprefix("backbone."): value for name, value in state.items()}
    weights = Weights(tensors, pos.dtype)
    ends = torch.as_tensor(envelope_end, dtype=pos.dtype).expand(cell.shape[0])
    inputs = _inputs(config, edges, pos, cell, structure, ends, dihedral, 1.0 - edge_dropout)
    main = inputs.main

    h = weights["embedding.weight"][atomic_numbers - 1]
    m = weights.dense(torch.cat([h[main.source], h[main.target], main.radial], 1), "bases.edge_emb.dense")
    found = {"h0": h, "m0": m, "vectors": main.vector, "raw_radial_basis": main.radial}
    found |= {f"angular_{name}": value for name, value in inputs.angular.items()}
    energies, forces = [], []
    for k in range(config.num_blocks + 1):
        if k > 0:
            h, m, parts = interaction_block(weights.below(f"int_blocks.{k - 1}"), weights.below("bases"), inputs, h, m)
            found |= {f"int{k - 1}_{name}": value for name, value in (parts | {"h": h, "m": m}).items()}
        x_energy, x_force = output_block(weights.below(f"out_blocks.{k}"), weights.below("bases"), inputs, h, m)
        energies.append(x_energy)
        found[f"out{k}_xE"] = x_energy
        if x_force is not None:
            forces.append(x_force)
            found[f"out{k}_xF"] = x_force
    found["atoms"] = final_features(weights.below("out_mlp_E.out_mlp"), energies, config)
    if config.direct_forces:
        found["edges"] = final_features(weights.below("out_mlp_F.out_mlp"), forces, config)
    return found


def head(state: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """Five linear layers with biases where the state has them (specification section 2); [R, d] to [R]."""
    for k in range(0, 9, 2):
        x = x @ state[f"{prefix}.{k}.weight"].to(x.dtype).T
        if f"{prefix}.{k}.bias" in state:
            x = x + state[f"{prefix}.{k}.bias"].to(x.dtype)
        x = silu(x) if k < 8 else x
    return x[:, 0]


def energy_of(values: Tensor, structure: Tensor, count: int) -> Tensor:
    """Sum of [N] per structure: [B]."""
    return values.new_zeros(count).index_add(0, structure, values)


def forces_of(values: Tensor, vectors: Tensor, target: Tensor, natoms: int) -> Tensor:
    """F_a = Σ f_e v_e over incoming edges: [N, 3]."""
    return values.new_zeros(natoms, 3).index_add(0, target, values[:, None] * vectors)


def _inputs(
    config: BackboneConfig,
    edges: EdgeLists,
    pos: Tensor,
    cell: Tensor,
    structure: Tensor,
    ends: Tensor,
    dihedral: str,
    kept: float,
) -> Inputs:
    rows = {name: torch.as_tensor(value).long().reshape(-1, 5) for name, value in edges._asdict().items()}
    lists = enumerate_lists(rows["main"], rows["a2ee2a"], rows["qint"])
    geometry = {}
    for name, each in rows.items():
        own = structure[each[:, 1]]
        shift = torch.einsum("ek,eki->ei", each[:, 2:].to(pos.dtype), cell.to(pos.dtype)[own])
        difference = pos[each[:, 1]] - pos[each[:, 0]] - shift
        length = torch.linalg.norm(difference, dim=1)
        radial = radial_functions(length, ends[own], config.num_radial)
        geometry[name] = Geometry(each[:, 0], each[:, 1], difference / length[:, None], radial)
    return Inputs(
        **geometry,
        lists=lists,
        swap=_swap(rows["main"]),
        angular=_angular(config.num_spherical, geometry, lists, dihedral),
        natoms=len(pos),
        kept=kept,
        config=config,
    )


def _swap(main: Tensor) -> Tensor:
    """Number of the reverse of every main edge."""
    numbers = {tuple(row): k for k, row in enumerate(main.tolist())}
    reverse = [numbers[t, s, -o1, -o2, -o3] for s, t, o1, o2, o3 in main.tolist()]
    return torch.tensor(reverse, dtype=torch.int64)


def _angular(orders: int, geometry: dict[str, Geometry], lists: Lists, dihedral: str) -> dict[str, Tensor]:
    main, ae, q = geometry["main"].vector, geometry["a2ee2a"].vector, geometry["qint"].vector

    def angle(one: Tensor, other: Tensor) -> Tensor:
        return zonal((one * other).sum(1).clamp(-1.0, 1.0), orders)

    db, ba, ca = lists.quad_edges.T
    bond = angle(main[lists.quad_out[:, 1]], q[lists.quad_out[:, 0]])[lists.quads[:, 1]]
    rule = {"jmp": published_dihedral, "smooth": smooth_dihedral}[dihedral]
    turn = rule(main[ca], q[ba], main[db], orders)
    return {
        "e2e": angle(main[lists.e2e[:, 0]], main[lists.e2e[:, 1]]),
        "a2e": angle(ae[lists.a2e[:, 0]], main[lists.a2e[:, 1]]),
        "e2a": angle(main[lists.e2a[:, 0]], ae[lists.e2a[:, 1]]),
        "quad_in": angle(main[lists.quad_in[:, 0]], q[lists.quad_in[:, 1]]),
        "quad": (bond[:, :, None] * turn[:, None, :]).flatten(1),
    }
