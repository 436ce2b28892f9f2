"""GemNet-OC in linear time: positions and graphs to features of atoms and edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jmp_ds.graphs.graph import Graph
from jmp_ds.graphs.settings import Dihedral
from jmp_ds.models.bases import Bases
from jmp_ds.models.blocks import InteractionBlock, OutMLP, OutputBlock
from jmp_ds.models.config import BackboneConfig


@dataclass(frozen=True)
class BackboneOutput:
    """What heads read.

    Attributes:
        atoms: [N, emb_size_atom].
        edges: [E, emb_size_edge] on main edges; None without the force branch.
        vectors: [E, 3] unit vectors of main edges, source to target, float32 at least.
    """

    atoms: Tensor
    edges: Tensor | None
    vectors: Tensor


class Backbone(nn.Module):
    """GemNet-OC with all four interactions (specification sections 1-5). Parameter names are the published ones."""

    def __init__(self, config: BackboneConfig, dihedral: Dihedral) -> None:
        """Build the network with untrained weights and unfitted scale factors.

        Args:
            config: sizes.
            dihedral: the rule for azimuths, the same for all tasks of a model.
        """
        super().__init__()
        c = config
        self.config = config
        self.embedding = nn.Embedding(c.num_elements, c.emb_size_atom)
        self.bases = Bases(c, dihedral)
        self.out_blocks = nn.ModuleList()
        self.int_blocks = nn.ModuleList()
        # registered in the order of computation, which is the order in which scale factors are fitted
        self.out_blocks.append(OutputBlock(c))
        for _ in range(c.num_blocks):
            self.int_blocks.append(InteractionBlock(c))
            self.out_blocks.append(OutputBlock(c))
        depths = c.num_blocks + 1
        self.out_mlp_E = OutMLP(c.emb_size_atom * depths, c.emb_size_atom, c.num_global_out_layers)
        if c.direct_forces:
            self.out_mlp_F = OutMLP(c.emb_size_edge * depths, c.emb_size_edge, c.num_global_out_layers)
        self.register_gradient_division()

    def register_gradient_division(self) -> None:
        """Divide the gradients of shared basis tensors from now on, if the configuration says so.

        Called again after parameters were replaced, which lose their hooks.
        """
        if self.config.divide_shared_gradients:
            for name, divisor in self.gradient_divisors().items():
                self.get_parameter(name).register_hook(_divide_by(divisor))

    def gradient_divisors(self) -> dict[str, float]:
        """The 12 shared basis tensors and the number of blocks that use them (specification section 5.10)."""
        blocks = float(self.config.num_blocks)
        dense = ("mlp_rbf_tint", "mlp_rbf_h", "mlp_rbf_qint", "mlp_rbf_aeint", "mlp_rbf_eaint")
        tables = ("mlp_cbf_tint", "mlp_cbf_qint", "mlp_cbf_aeint", "mlp_cbf_eaint", "mlp_sbf_qint", "mlp_rbf_aint")
        divisors = {f"bases.{name}.linear.weight": blocks for name in dense}
        divisors |= {f"bases.{name}.weight": blocks for name in tables}
        return divisors | {"bases.mlp_rbf_out.linear.weight": blocks + 1.0}

    def forward(self, pos: Tensor, atomic_numbers: Tensor, graph: Graph, edge_dropout: float = 0.0) -> BackboneOutput:
        """Features of a batch.

        Args:
            pos: [N, 3] in Å; differences are taken in its precision.
            atomic_numbers: int64 [N], 1 … num_elements.
            graph: its graphs.
            edge_dropout: share of edges dropped when the graph was made; the output blocks' sums make up for it.
        """
        geometry = torch.float64 if self.embedding.weight.dtype == torch.float64 else torch.float32
        tables = self.bases(graph, pos, geometry)
        kept = 1.0 - edge_dropout
        h = self.embedding(atomic_numbers - 1)
        m = self.bases.edge_emb(h, tables.radial.to(h.dtype), graph.main.source, graph.main.target)
        out_blocks = [cast(OutputBlock, block) for block in self.out_blocks]
        features = [self._run(out_blocks[0].features, graph, tables, h, m, kept)]
        for block, out_block in zip(self.int_blocks, out_blocks[1:], strict=True):
            h, m = self._run(block, graph, tables, h, m)
            features.append(self._run(out_block.features, graph, tables, h, m, kept))
        atoms = self.out_mlp_E(torch.cat([energy for energy, _ in features], dim=-1))
        edges = None
        if self.config.direct_forces:
            edges = self.out_mlp_F(torch.cat([force for _, force in features], dim=-1))
        return BackboneOutput(atoms=atoms, edges=edges, vectors=tables.vectors)

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a block, keeping only its inputs where activations are to be recomputed."""
        if self.config.recompute and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)


def _divide_by(divisor: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient / divisor
