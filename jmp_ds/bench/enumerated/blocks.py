"""Interaction and output blocks as published, and the features they end in (specification sections 5.7-5.9)."""

from __future__ import annotations

import torch
from torch import Tensor

from jmp_ds.bench.enumerated.interactions import (
    Inputs,
    atom_to_atom,
    atom_to_edge,
    edge_to_atom,
    edge_to_edge,
    quadruplet,
)
from jmp_ds.bench.enumerated.layers import SQRT_2, SQRT_3, Weights, sum_rows
from jmp_ds.models.config import BackboneConfig


def features(
    w: Weights, config: BackboneConfig, inputs: Inputs, atomic_numbers: Tensor, kept: float
) -> tuple[Tensor, Tensor | None]:
    """Features of atoms [N, atom] and, with a force branch, of main edges [E, edge].

    Args:
        w: the backbone's tensors.
        config: sizes.
        inputs: lists and bases of the batch.
        atomic_numbers: int64 [N].
        kept: share of edges that were not dropped.
    """
    h = w["embedding.weight"].index_select(0, atomic_numbers - 1)
    m = w.below("bases").dense(_edge_inputs(inputs, h, inputs.bases.radial), "edge_emb.dense")
    outputs = [_output_block(w.below("out_blocks.0"), config, inputs, h, m, kept)]
    for k in range(config.num_blocks):
        h, m = _interaction_block(w.below(f"int_blocks.{k}"), config, inputs, h, m)
        outputs.append(_output_block(w.below(f"out_blocks.{k + 1}"), config, inputs, h, m, kept))
    layers = config.num_global_out_layers
    atoms = _final(w.below("out_mlp_E"), [energy for energy, _ in outputs], layers)
    forces = [force for _, force in outputs if force is not None]
    return atoms, _final(w.below("out_mlp_F"), forces, layers) if forces else None


def _interaction_block(
    w: Weights, config: BackboneConfig, inputs: Inputs, h: Tensor, m: Tensor
) -> tuple[Tensor, Tensor]:
    """Section 5.7: all interactions on the same (h, m), then the updates."""
    c = config
    x = w.dense(m, "dense_ca") + edge_to_edge(w.below("trip_interaction"), inputs, m)
    x = x + quadruplet(w.below("quad_interaction"), inputs, m)
    x = (x + atom_to_edge(w.below("atom_edge_interaction"), inputs, h)) * 0.5
    h = (
        h
        + edge_to_atom(w.below("edge_atom_interaction"), inputs, m)
        + atom_to_atom(w.below("atom_interaction"), inputs, h)
    )
    h = h * (1 / SQRT_3)
    m = (m + w.residuals(x, "layers_before_skip", range(c.num_before_skip))) * (1 / SQRT_2)
    m = w.residuals(m, "layers_after_skip", range(c.num_after_skip))
    h = w.residuals(h, "atom_emb_layers", range(c.num_atom_emb_layers))
    h = (h + _into_atoms(w.below("atom_update"), c, inputs, m, "mlp_rbf_h", 1.0)) * (1 / SQRT_2)
    update = w.dense(_edge_inputs(inputs, h, m), "concat_layer.dense")
    return h, (m + w.residuals(update, "residual_m", range(c.num_concat))) * (1 / SQRT_2)


def _output_block(
    w: Weights, config: BackboneConfig, inputs: Inputs, h: Tensor, m: Tensor, kept: float
) -> tuple[Tensor, Tensor | None]:
    """Section 5.8: energy features [N, atom] and force features [E, edge] of one depth."""
    layers = range(config.num_output_afteratom)
    x = (_into_atoms(w, config, inputs, m, "mlp_rbf_out", kept) + h) * (1 / SQRT_2)
    energy = w.residuals(x, "seq_energy2", layers)
    if not config.direct_forces:
        return energy, None
    force = w.residuals(m, "seq_forces", layers) * w.linear(inputs.bases.rad["mlp_rbf_out"], "dense_rbf_F")
    return energy, w.scaled(force, "scale_rbf_F")


def _into_atoms(w: Weights, config: BackboneConfig, inputs: Inputs, m: Tensor, rad: str, kept: float) -> Tensor:
    """Gated sum over incoming edges, then dense layers: [E, edge] to [N, atom]."""
    x = m * w.linear(inputs.bases.rad[rad], "dense_rbf")
    x = sum_rows(x, inputs.graph.main.target, inputs.graph.num_atoms)
    if kept != 1.0:
        x = x / kept
    x = w.dense(w.scaled(x, "scale_sum"), "layers.0")
    return w.residuals(x, "layers", range(1, config.num_atom + 1))


def _edge_inputs(inputs: Inputs, h: Tensor, m: Tensor) -> Tensor:
    """[h_s, h_t, m]: [E, 2 · atom + width]."""
    main, h = inputs.graph.main, h.to(m.dtype)
    return torch.cat([h.index_select(0, main.source), h.index_select(0, main.target), m], dim=1)


def _final(w: Weights, depths: list[Tensor], layers: int) -> Tensor:
    """Section 5.9: features of all depths to one."""
    return w.residuals(w.dense(torch.cat(depths, dim=1), "out_mlp.0"), "out_mlp", range(1, layers + 1))
