"""Named model sizes."""

from __future__ import annotations

from jmp_ds.models.config import BackboneConfig

#: `jmp-s` and `jmp-l` are the published sizes (specification section 1); `tiny` trains in seconds on a CPU.
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
