"""Named model sizes."""

from __future__ import annotations

from jmp_ds.models.config import BackboneConfig

#: `jmp-s` and `jmp-l` are the published sizes (specification section 1); `tiny` trains in seconds on a CPU.
#: `jmp-xl` (1.05 billion parameters) and `jmp-xxl` (4.99 billion) are ours and untrained. They go on as from S to L: wider
#: edges and more blocks, wider outputs of triplets. What sums over neighbours carry stays as in L, so that kernels and
#: tables of geometry do not grow.
PRESETS: dict[str, BackboneConfig] = {
    "jmp-s": BackboneConfig(),
    "jmp-l": BackboneConfig(
        num_blocks=6,
        emb_size_edge=1024,
        emb_size_trip_out=128,
        emb_size_quad_in=64,
        emb_size_rbf=32,
        emb_size_sbf=64,
        num_concat=4,
    ),
    "jmp-xl": BackboneConfig(
        num_blocks=8,
        emb_size_atom=512,
        emb_size_edge=1920,
        emb_size_trip_out=256,
        emb_size_quad_in=64,
        emb_size_rbf=32,
        emb_size_sbf=64,
        num_concat=4,
    ),
    "jmp-xxl": BackboneConfig(
        num_blocks=12,
        emb_size_atom=1024,
        emb_size_edge=3456,
        emb_size_trip_out=512,
        emb_size_quad_in=64,
        emb_size_rbf=32,
        emb_size_sbf=64,
        num_concat=4,
    ),
    "tiny": BackboneConfig(
        num_blocks=2,
        num_radial=64,
        emb_size_atom=32,
        emb_size_edge=64,
        emb_size_trip_in=16,
        emb_size_trip_out=16,
        emb_size_quad_in=8,
        emb_size_quad_out=8,
        emb_size_aint_in=16,
        emb_size_aint_out=16,
        emb_size_rbf=8,
        emb_size_cbf=8,
        emb_size_sbf=8,
        num_before_skip=1,
        num_after_skip=1,
        num_atom=1,
        num_output_afteratom=1,
        num_atom_emb_layers=1,
        num_global_out_layers=1,
    ),
}


def preset(name: str) -> BackboneConfig:
    """Sizes by name.

    Raises:
        KeyError: unknown name; the message lists the known ones.
    """
    if name not in PRESETS:
        raise KeyError(f"no model preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
