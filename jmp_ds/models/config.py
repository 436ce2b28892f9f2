"""Sizes of a GemNet-OC backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Sizes of the network (specification section 1). Defaults are JMP-S.

    Attributes:
        num_blocks: interaction blocks.
        num_radial: Gaussians of the radial grid.
        num_spherical: orders of the angular bases.
        emb_size_atom, emb_size_edge: widths of atom and edge embeddings.
        emb_size_trip_in, emb_size_trip_out: triplet messages before and after the bilinear layer.
        emb_size_quad_in, emb_size_quad_out: quadruplet messages.
        emb_size_aint_in, emb_size_aint_out: atom-atom messages.
        emb_size_rbf, emb_size_cbf, emb_size_sbf: down-projected radial, circular and spherical bases.
        num_before_skip, num_after_skip, num_concat: residual layers on edges around the skip connections.
        num_atom, num_output_afteratom, num_atom_emb_layers, num_global_out_layers: residual layers on atoms.
        num_elements: rows of the atom embedding; row Z-1 belongs to atomic number Z.
        direct_forces: whether the force branch exists.
        divide_shared_gradients: published training divides the gradients of the 12 shared basis tensors by the number of
            blocks that use them (specification section 5.10).
        recompute: keep only block inputs and compute the rest again in the backward pass.
    """

    num_blocks: int = 4
    num_radial: int = 128
    num_spherical: int = 7
    emb_size_atom: int = 256
    emb_size_edge: int = 512
    emb_size_trip_in: int = 64
    emb_size_trip_out: int = 64
    emb_size_quad_in: int = 32
    emb_size_quad_out: int = 32
    emb_size_aint_in: int = 64
    emb_size_aint_out: int = 64
    emb_size_rbf: int = 16
    emb_size_cbf: int = 16
    emb_size_sbf: int = 32
    num_before_skip: int = 2
    num_after_skip: int = 2
    num_concat: int = 1
    num_atom: int = 3
    num_output_afteratom: int = 3
    num_atom_emb_layers: int = 2
    num_global_out_layers: int = 2
    num_elements: int = 120
    direct_forces: bool = True
    divide_shared_gradients: bool = False
    recompute: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low = 0 if name.startswith("num_") and name not in ("num_blocks", "num_radial", "num_spherical") else 1
            if not isinstance(value, bool) and value < low:
                raise ValueError(f"model: {name} must be at least {low}, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `BackboneConfig(**values)` reads it back."""
        return asdict(self)
