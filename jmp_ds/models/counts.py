"""Every dense layer of the published network, with its number of rows: what a training step cannot do without.

The list is made from sizes and counts alone (specification sections 2 to 5 and 7), never by looking at our modules, which
may do less: layers stand here as published, on all main edges, with undivided concatenations and up-projections on edges.
The sums over triplets and quadruplets are not dense layers and are not in it. It is what benchmarks measure a step against.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jmp_ds.graphs.batch import Batch
from jmp_ds.models.config import BackboneConfig

#: What a layer's input depends on: `geometry` on positions alone, `embedding` on parameters alone, `features` on both.
Reads = Literal["geometry", "embedding", "features"]
Forces = Literal["direct", "gradient"]

#: Linear layers of a head: all but the last keep the width (specification section 2).
HEAD_LAYERS = 5


class Passes(NamedTuple):
    """How often a training step multiplies by each arrangement of one layer's matrices.

    Attributes:
        forward: [rows, in] times [in, out]: y = x Wᵀ, and in a second derivative u Wᵀ.
        data: [rows, out] times [out, in]: dx = dy W.
        weight: [out, rows] times [rows, in]: dW = dyᵀ x.
    """

    forward: int
    data: int
    weight: int


@dataclass(frozen=True)
class DenseLayer:
    """One dense layer and the rows it is applied to.

    Attributes:
        name: of its weight in the published network, without `.linear.weight` or `.weight`; heads: `TASK.LABEL.index`.
        rows: how many rows it is applied to.
        inputs, outputs: width of its input and output.
        reads: what its input depends on.
        last: whether its output is summed into the result as it is (last layer of a head).
    """

    name: str
    rows: int
    inputs: int
    outputs: int
    reads: Reads = "features"
    last: bool = False

    @property
    def product(self) -> int:
        """Floating-point operations of one product, a multiplication and an addition counting as two."""
        return 2 * self.rows * self.inputs * self.outputs

    def passes(self, forces: Forces) -> Passes:
        """Products of one training step.

        With direct forces: y = x Wᵀ, dW = dyᵀ x, and dx = dy W where x depends on parameters.
        With gradient forces, where x depends on positions, additionally the force pass g_x = g_y W, and its derivative:
        u Wᵀ towards g_y and dW = g_yᵀ u, for u the loss's derivative with respect to g_x. After the last layer g_y is
        constant, so there is no u Wᵀ.
        """
        forward, data, weight = 1, 0 if self.reads == "geometry" else 1, 1
        if forces == "gradient" and self.reads != "embedding":
            forward, data, weight = forward + (0 if self.last else 1), data + 1, weight + 1
        return Passes(forward, data, weight)

    def flops(self, forces: Forces) -> int:
        """Operations of all products of one training step."""
        return self.product * sum(self.passes(forces))


@dataclass(frozen=True)
class HeadRows:
    """One head and the rows it is applied to.

    Attributes:
        name: `TASK.LABEL`.
        on: what its rows are; decides its width.
        rows: their number.
    """

    name: str
    on: Literal["atoms", "edges"]
    rows: int


@dataclass(frozen=True)
class BatchCounts:
    """Sizes of a batch.

    Attributes:
        structures, atoms: B, N.
        main, a2ee2a, qint, a2a: edges of the four graphs (main: after symmetrisation).
        pairs: a2a edges with the periodic images of one pair taken together.
        in_triplets: (d→b, b→a) of the quadruplets, one row of the angular gate each.
        out_pairs: (c→a, b→a) of the quadruplets.
    """

    structures: int
    atoms: int
    main: int
    a2ee2a: int
    qint: int
    a2a: int
    pairs: int
    in_triplets: int
    out_pairs: int

    @classmethod
    def of(cls, batch: Batch) -> BatchCounts:
        """Counts of a batch; reads shapes only."""
        graph = batch.graph
        return cls(
            structures=batch.num_structures,
            atoms=batch.num_atoms,
            main=graph.main.num_edges,
            a2ee2a=graph.a2ee2a.num_edges,
            qint=graph.qint.num_edges,
            a2a=graph.a2a.num_edges,
            pairs=graph.pairs.source.shape[0],
            in_triplets=graph.quadruplets.in_edge.shape[0],
            out_pairs=graph.quadruplets.out_middle.shape[0],
        )


def dense_layers(config: BackboneConfig, counts: BatchCounts, heads: Sequence[HeadRows]) -> list[DenseLayer]:
    """All dense layers of the published network in the order of computation.

    Args:
        config: sizes; `direct_forces` says whether the force branch is there.
        counts: of the batch.
        heads: with the rows they run on.
    """
    c, n = config, counts
    layers = _bases(c, n) + _output_block(c, n, 0)
    for k in range(c.num_blocks):
        layers += _interaction_block(c, n, k) + _output_block(c, n, k + 1)
    layers += _out_mlp("out_mlp_E", c.emb_size_atom, n.atoms, c)
    if c.direct_forces:
        layers += _out_mlp("out_mlp_F", c.emb_size_edge, n.main, c)
    for head in heads:
        layers += _head(head, c.emb_size_atom if head.on == "atoms" else c.emb_size_edge)
    return layers


def step_flops(layers: Iterable[DenseLayer], forces: Forces) -> int:
    """Operations of all dense products of one training step."""
    return sum(layer.flops(forces) for layer in layers)


def forward_flops(layers: Iterable[DenseLayer]) -> int:
    """Operations of the dense products of one evaluation of energies and direct forces."""
    return sum(layer.product for layer in layers)


def _bases(c: BackboneConfig, n: BatchCounts) -> list[DenseLayer]:
    """Shared projections of the radial basis, and the edge embedding (section 4)."""
    rbf, orders = c.emb_size_rbf, c.num_spherical
    tables = (
        *((f"mlp_rbf_{name}", n.main, rbf) for name in ("qint", "tint", "eaint", "h", "out")),
        ("mlp_rbf_aeint", n.a2ee2a, rbf),
        ("mlp_rbf_aint", n.a2a, rbf),
        ("mlp_cbf_tint", n.main, orders * c.emb_size_cbf),
        ("mlp_cbf_aeint", n.main, orders * c.emb_size_cbf),
        ("mlp_cbf_eaint", n.a2ee2a, orders * c.emb_size_cbf),
        ("mlp_cbf_qint", n.qint, orders * c.emb_size_cbf),
        ("mlp_sbf_qint", n.main, orders**2 * c.emb_size_sbf),
    )
    layers = [DenseLayer(f"bases.{name}", rows, c.num_radial, out, "geometry") for name, rows, out in tables]
    width = 2 * c.emb_size_atom + c.num_radial
    return [*layers, DenseLayer("bases.edge_emb.dense", n.main, width, c.emb_size_edge)]


def _interaction_block(c: BackboneConfig, n: BatchCounts, k: int) -> list[DenseLayer]:
    """Section 5.2 to 5.7."""
    edge, atom, name = c.emb_size_edge, c.emb_size_atom, f"int_blocks.{k}"
    # atoms have not seen a position before the first block
    of_atoms: Reads = "embedding" if k == 0 else "features"
    return [
        DenseLayer(f"{name}.dense_ca", n.main, edge, edge),
        *_triplets(f"{name}.trip_interaction", c, n.main, n.main, edge, n.main, ("ca", "ac")),
        *_quadruplets(f"{name}.quad_interaction", c, n),
        *_triplets(f"{name}.atom_edge_interaction", c, n.atoms, n.a2ee2a, atom, n.main, ("ca", "ac"), of_atoms),
        *_triplets(f"{name}.edge_atom_interaction", c, n.main, n.main, edge, n.atoms, ("ca",)),
        DenseLayer(f"{name}.atom_interaction.down_projection", n.atoms, atom, c.emb_size_aint_in, of_atoms),
        DenseLayer(
            f"{name}.atom_interaction.bilinear", n.atoms, c.emb_size_rbf * c.emb_size_aint_in, c.emb_size_aint_out
        ),
        DenseLayer(f"{name}.atom_interaction.up_projection", n.atoms, c.emb_size_aint_out, atom),
        *_residual(f"{name}.layers_before_skip", range(c.num_before_skip), n.main, edge),
        *_residual(f"{name}.layers_after_skip", range(c.num_after_skip), n.main, edge),
        *_residual(f"{name}.atom_emb_layers", range(c.num_atom_emb_layers), n.atoms, atom),
        *_atom_update(f"{name}.atom_update", c, n),
        DenseLayer(f"{name}.concat_layer.dense", n.main, 2 * atom + edge, edge),
        *_residual(f"{name}.residual_m", range(c.num_concat), n.main, edge),
    ]


def _triplets(
    name: str,
    c: BackboneConfig,
    sources: int,
    inputs: int,
    width: int,
    outputs: int,
    up: Sequence[str],
    reads: Reads = "features",
) -> list[DenseLayer]:
    """Triplet interaction from `sources` rows, gated on `inputs` edges, to `outputs` rows (sections 5.2, 5.4, 5.5)."""
    out = c.emb_size_atom if up == ("ca",) else c.emb_size_edge
    return [
        DenseLayer(f"{name}.dense_ba", sources, width, width, reads),
        DenseLayer(f"{name}.mlp_rbf", inputs, c.emb_size_rbf, width),
        DenseLayer(f"{name}.down_projection", inputs, width, c.emb_size_trip_in),
        DenseLayer(f"{name}.mlp_cbf.bilinear", outputs, c.emb_size_cbf * c.emb_size_trip_in, c.emb_size_trip_out),
        *(DenseLayer(f"{name}.up_projection_{way}", outputs, c.emb_size_trip_out, out) for way in up),
    ]


def _quadruplets(name: str, c: BackboneConfig, n: BatchCounts) -> list[DenseLayer]:
    """Section 5.3."""
    edge = c.emb_size_edge
    return [
        DenseLayer(f"{name}.dense_db", n.main, edge, edge),
        DenseLayer(f"{name}.mlp_rbf", n.main, c.emb_size_rbf, edge),
        DenseLayer(f"{name}.down_projection", n.main, edge, c.emb_size_quad_in),
        DenseLayer(f"{name}.mlp_cbf", n.in_triplets, c.emb_size_cbf, c.emb_size_quad_in),
        DenseLayer(f"{name}.mlp_sbf.bilinear", n.main, c.emb_size_sbf * c.emb_size_quad_in, c.emb_size_quad_out),
        *(DenseLayer(f"{name}.up_projection_{way}", n.main, c.emb_size_quad_out, edge) for way in ("ca", "ac")),
    ]


def _atom_update(name: str, c: BackboneConfig, n: BatchCounts) -> list[DenseLayer]:
    """Edges into atoms: gate on edges, layers on atoms (section 5.7)."""
    return [
        DenseLayer(f"{name}.dense_rbf", n.main, c.emb_size_rbf, c.emb_size_edge),
        DenseLayer(f"{name}.layers.0", n.atoms, c.emb_size_edge, c.emb_size_atom),
        *_residual(f"{name}.layers", range(1, c.num_atom + 1), n.atoms, c.emb_size_atom),
    ]


def _output_block(c: BackboneConfig, n: BatchCounts, k: int) -> list[DenseLayer]:
    """Section 5.8."""
    name, edge = f"out_blocks.{k}", c.emb_size_edge
    layers = _atom_update(name, c, n)
    layers += _residual(f"{name}.seq_energy2", range(c.num_output_afteratom), n.atoms, c.emb_size_atom)
    if c.direct_forces:
        layers += _residual(f"{name}.seq_forces", range(c.num_output_afteratom), n.main, edge)
        layers.append(DenseLayer(f"{name}.dense_rbf_F", n.main, c.emb_size_rbf, edge))
    return layers


def _out_mlp(name: str, width: int, rows: int, c: BackboneConfig) -> list[DenseLayer]:
    """Section 5.9."""
    first = DenseLayer(f"{name}.out_mlp.0", rows, (c.num_blocks + 1) * width, width)
    return [first, *_residual(f"{name}.out_mlp", range(1, c.num_global_out_layers + 1), rows, width)]


def _residual(name: str, numbers: range, rows: int, width: int) -> list[DenseLayer]:
    """Residual layers: two dense layers each."""
    return [DenseLayer(f"{name}.{i}.dense_mlp.{j}", rows, width, width) for i in numbers for j in (0, 1)]


def _head(head: HeadRows, width: int) -> list[DenseLayer]:
    """Four layers that keep the width and one to a number; published indices count the activations between."""
    hidden = [DenseLayer(f"{head.name}.{2 * i}", head.rows, width, width) for i in range(HEAD_LAYERS - 1)]
    return [*hidden, DenseLayer(f"{head.name}.{2 * (HEAD_LAYERS - 1)}", head.rows, width, 1, last=True)]
