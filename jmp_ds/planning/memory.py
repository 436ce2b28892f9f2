"""Memory of a training step on one device, from sizes and counts alone: what autograd keeps, and what comes and goes.

Calibrated against what autograd was seen to keep and the peaks seen on a CPU (docs/planning.md; tests/planning).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.counts import HEAD_LAYERS, BatchCounts, Forces, HeadRows, dense_layers

#: Bytes per parameter: the float32 value, its gradient, AdamW's two moments, and a moving average.
TRAINED = 20

#: Gradient forces: how much more features and tables are kept with the pass that makes forces, which is differentiated.
_WITH_FORCE_PASS = (5.0, 3.5)

#: Places of a padded layout per number in it: edges by target atom; out-pairs by atom.
_PADDING, _JOINT_PADDING = 1.4, 2.5

#: Tensors that come and go while one block is computed backwards (seen on a CPU): of all edges' features; of a triplet's
#: sums [E, cbf, trip_in]; of quadruplets' moments [out-pairs, azimuths, quad_in]; of out-pairs' harmonics.
_WORKING, _SUMS, _MOMENTS, _HARMONICS = 6, 8, 1.75, 8.8

#: With recomputation: share of the unpadded tables of geometry that is kept; the others are made within blocks.
_SHARED_TABLES = 0.7

#: Share of the free memory that a plan may use; allocators lose some of it between the pieces.
USABLE = 0.9


def available(device: torch.device) -> int | None:
    """Free bytes of a device's memory, or of the host's; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = meminfo.read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def scaled(counts: BatchCounts, edges: int) -> BatchCounts:
    """A batch like this one, with so many main edges."""
    factor = edges / max(counts.main, 1)
    return BatchCounts(**{name: math.ceil(value * factor) for name, value in asdict(counts).items()})


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs at its peak, estimated.

    Attributes:
        trained: parameters, gradients and the optimiser's state.
        kept: what autograd keeps between forward and backward.
        passing: what is there besides while one block is computed, forward or backward.
    """

    trained: int
    kept: int
    passing: int

    @property
    def total(self) -> int:
        """Everything."""
        return self.trained + self.kept + self.passing


def step_memory(
    config: BackboneConfig,
    counts: BatchCounts,
    heads: Sequence[HeadRows],
    forces: Forces,
    *,
    itemsize: int = 4,
    padded: bool = True,
) -> StepMemory:
    """Memory of a training step.

    Args:
        config: of the network, `recompute` among it.
        counts: of the batch.
        heads: with the rows they run on.
        forces: gradient forces keep what their own derivative needs, too.
        itemsize: bytes per number of edges' features; atoms' features and tables of geometry are float32.
        padded: whether message passing keeps tables in a padded layout (PyTorch does, Triton does not).
    """
    kept = kept_bytes(config, counts, heads, forces, itemsize=itemsize, padded=padded)
    passing = working_bytes(config, counts, forces, itemsize=itemsize, padded=padded)
    return StepMemory(TRAINED * parameter_count(config, heads), kept, passing)


def kept_bytes(
    config: BackboneConfig,
    counts: BatchCounts,
    heads: Sequence[HeadRows],
    forces: Forces,
    *,
    itemsize: int = 4,
    padded: bool = True,
) -> int:
    """What autograd keeps of a forward pass, forces among it."""
    return kept_numbers(_as_kept(config, forces), counts, heads, padded=padded).bytes(forces, itemsize)


def _as_kept(config: BackboneConfig, forces: Forces) -> BackboneConfig:
    """With gradient forces recomputation saves nothing: the pass that makes forces computes everything again, and keeps it
    for its own derivative (seen: 7 to 13 % less kept, the same peak).
    """
    return replace(config, recompute=False) if forces == "gradient" else config


def parameter_count(config: BackboneConfig, heads: Sequence[HeadRows]) -> int:
    """Weights of the published layers and the embedding; biases of the heads (a few thousand numbers) are left out."""
    one = BatchCounts(**dict.fromkeys(BatchCounts.__dataclass_fields__, 1))
    layers = dense_layers(config, one, heads)
    return sum(layer.inputs * layer.outputs for layer in layers) + config.num_elements * config.emb_size_atom


def working_bytes(
    config: BackboneConfig, counts: BatchCounts, forces: Forces, *, itemsize: int = 4, padded: bool = True
) -> int:
    """What is there besides what is kept while one block is computed, forward or backward.

    With recomputation all that this block would have kept is part of it.
    """
    c, n = _as_kept(config, forces), counts
    azimuths = 2 * (c.num_spherical + 1)
    tables: float = n.main * c.emb_size_cbf * c.emb_size_trip_in * _SUMS
    tables += n.out_pairs * (_MOMENTS * azimuths * c.emb_size_quad_in + _HARMONICS * c.num_spherical**2)
    edges, atoms = _WORKING * n.main * c.emb_size_edge, 0
    if c.recompute:
        edges, atoms = edges + _block(c, n), _block_atoms(c, n)
        tables += _tables(c, n, padded=padded) - _SHARED_TABLES * _tables(c, n, padded=False)
    return Numbers(edges, atoms, int(tables)).bytes(forces, itemsize)


@dataclass(frozen=True)
class Numbers:
    """How many numbers autograd keeps of a forward pass.

    Attributes:
        edges, atoms: features of dense layers and heads.
        tables: of geometry, shared by all blocks.
    """

    edges: int
    atoms: int
    tables: int

    def bytes(self, forces: Forces, itemsize: int) -> int:
        """What they take, with what the derivative of gradient forces needs on top."""
        again, tables_again = _WITH_FORCE_PASS if forces == "gradient" else (1.0, 1.0)
        return int(again * (itemsize * self.edges + 4 * self.atoms) + tables_again * 4 * self.tables)


def kept_numbers(
    config: BackboneConfig, counts: BatchCounts, heads: Sequence[HeadRows], *, padded: bool = True
) -> Numbers:
    """What autograd keeps of a forward pass: of dense layers the inputs and pre-activations that are not made again.

    With recomputation only the inputs of blocks, and what lies outside of blocks.
    """
    c, n = config, counts
    depths, wide = c.num_blocks + 1, n.main * c.emb_size_edge
    if c.recompute:
        edges = c.num_blocks * wide + depths * c.direct_forces * wide
        atoms = 2 * (c.num_blocks + depths) * n.atoms * c.emb_size_atom
    else:
        edges = c.num_blocks * _block(c, n) + depths * c.direct_forces * wide * (1 + 2 * c.num_output_afteratom)
        atoms = c.num_blocks * _block_atoms(c, n) + depths * _energy_features(c, n)
    edges += c.direct_forces * wide * (2 + 2 * c.num_global_out_layers)
    for head in heads:
        own = head.rows * (HEAD_LAYERS - 1)
        if head.on == "edges":
            edges += own * c.emb_size_edge
        else:
            atoms += own * c.emb_size_atom
    tables = int(_SHARED_TABLES * _tables(c, n, padded=False)) if c.recompute else _tables(c, n, padded=padded)
    return Numbers(edges, atoms, tables)


def _block(c: BackboneConfig, n: BatchCounts) -> int:
    """Numbers per interaction block on edges: inputs and pre-activations, wide ones and narrow ones."""
    residuals = c.num_before_skip + c.num_after_skip + c.num_concat
    wide = c.emb_size_edge * (n.main * (9 + 2 * residuals) + 2 * min(n.main, n.in_triplets))
    narrow = n.main * (4 * c.emb_size_trip_in + 4 * c.emb_size_trip_out + 3 * c.emb_size_quad_in)
    return wide + narrow + n.a2ee2a * 2 * (c.emb_size_atom + c.emb_size_trip_in)


def _block_atoms(c: BackboneConfig, n: BatchCounts) -> int:
    """Numbers per interaction block on atoms and pairs of atoms."""
    residuals = c.num_atom_emb_layers + c.num_atom
    wide = n.atoms * (c.emb_size_atom * (10 + 2 * residuals) + c.emb_size_edge)
    moments = c.emb_size_trip_in * (c.num_spherical**2 + 2 * c.emb_size_cbf)
    return wide + n.atoms * moments + n.pairs * c.emb_size_aint_in


def _energy_features(c: BackboneConfig, n: BatchCounts) -> int:
    return n.atoms * (c.emb_size_atom * (4 + 2 * (c.num_atom + c.num_output_afteratom)) + c.emb_size_edge)


def _tables(c: BackboneConfig, n: BatchCounts, *, padded: bool) -> int:
    """Numbers of the tables of geometry."""
    orders, harmonics = c.num_spherical, c.num_spherical**2
    main = n.main * (2 * c.num_radial + 2 * harmonics + 2 * c.emb_size_cbf * orders)
    reading = 2 * min(n.main, n.in_triplets) * harmonics * c.emb_size_sbf
    in_triplets = n.in_triplets * (c.emb_size_cbf + 4 * orders + c.emb_size_quad_in)
    a2ee2a = n.a2ee2a * (c.num_radial + harmonics + c.emb_size_cbf * orders)
    total = main + reading + in_triplets + a2ee2a + n.a2a * (c.num_radial + 4) + n.pairs * c.emb_size_rbf
    total += n.out_pairs * 6 * orders
    if padded:
        # both read-outs as they are and padded by target atom; out-pairs joint by atom
        total += int((1 + _PADDING) * 2 * n.main * c.emb_size_cbf * harmonics)
        total += int(_JOINT_PADDING * 2 * n.out_pairs * harmonics)
    return total
