"""GemNet-OC in linear time: positions and graphs to features of atoms and edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jmp_kernels import Operators
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

    def __init__(self, config: BackboneConfig, dihedral: Dihedral, operators: Operators | None = None) -> None:
        """Build the network with untrained weights and unfitted scale factors.

        Args:
            config: sizes.
            dihedral: the rule for azimuths, the same for all tasks of a model.
            operators: what message passing and dense layers are computed by; the default runs anywhere and
                differentiates twice.
        """
        super().__init__()
        c = config
        self.config = config
        self.operators = operators or Operators()
        self.embedding = nn.Embedding(c.num_elements, c.emb_size_atom)
        self.bases = Bases(c, dihedral, self.operators)
        self.out_blocks = nn.ModuleList()
        self.int_blocks = nn.ModuleList()
        # registered in the order of computation, which is the order in which scale factors are fitted
        self.out_blocks.append(OutputBlock(c, self.operators))
        for _ in range(c.num_blocks):
            self.int_blocks.append(InteractionBlock(c, self.operators))
            self.out_blocks.append(OutputBlock(c, self.operators))
        depths = c.num_blocks + 1
        self.out_mlp_E = OutMLP(self.operators, c.emb_size_atom * depths, c.emb_size_atom, c.num_global_out_layers)
        if c.direct_forces:
            self.out_mlp_F = OutMLP(self.operators, c.emb_size_edge * depths, c.emb_size_edge, c.num_global_out_layers)
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

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters; asking for it does not touch their values."""
        return next(self.embedding.parameters()).dtype

    def units(self) -> list[nn.Module]:
        """Parts whose weights are used only while they run: such weights may be brought and dismissed part by part."""
        parts: list[nn.Module] = [*self.int_blocks, *self.out_blocks, self.out_mlp_E]
        return [*parts, self.out_mlp_F] if self.config.direct_forces else parts

    def forward(self, pos: Tensor, atomic_numbers: Tensor, graph: Graph, edge_dropout: float = 0.0) -> BackboneOutput:
        """Features of a batch.

        Args:
            pos: [N, 3] in Å; differences are taken in its precision.
            atomic_numbers: int64 [N], 1 … num_elements.
            graph: its graphs.
            edge_dropout: share of edges dropped when the graph was made; the output blocks' sums make up for it.
        """
        dtype = _feature_dtype(self.dtype, pos.device.type)
        with torch.autocast(pos.device.type, enabled=False):
            return self._features(pos, atomic_numbers, graph, 1.0 - edge_dropout, dtype)

    def _features(
        self, pos: Tensor, atomic_numbers: Tensor, graph: Graph, kept: float, dtype: torch.dtype
    ) -> BackboneOutput:
        wide = torch.promote_types(self.dtype, torch.float32)
        tables = self.bases(graph, pos, wide)
        h = self.embedding(atomic_numbers - 1).to(wide)
        m = self.bases.edge_emb(h, tables.radial.to(dtype), graph.main)
        of_depths = [self._run(self.out_blocks[0], graph, tables, h, m, kept)]
        for block, out_block in zip(self.int_blocks, self.out_blocks[1:], strict=True):
            h, m = self._run(block, graph, tables, h, m)
            of_depths.append(self._run(out_block, graph, tables, h, m, kept))
        of_atoms, of_edges, gates = zip(*of_depths, strict=True)
        atoms = self.out_mlp_E(of_atoms)
        edges = self.out_mlp_F(of_edges, tables.rad_out, gates) if self.config.direct_forces else None
        return BackboneOutput(atoms=atoms, edges=edges, vectors=tables.vectors)

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a block, keeping only its inputs where activations are to be recomputed."""
        if self.config.recompute and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)


def _feature_dtype(parameters: torch.dtype, device: str) -> torch.dtype:
    """Precision of edge features: that of autocast where it is on, else that of the parameters."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameters


def _divide_by(divisor: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient / divisor
