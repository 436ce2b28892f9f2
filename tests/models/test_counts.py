"""The list of published dense layers against parameters, and against the products of the enumerated oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_systems import published_tasks
from oracle.network import energy_of, forces_of, head, oracle_forward
from small_models import set_scales
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.neighbors import build_edges
from jmp_ds.graphs.settings import GraphSettings, published
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.counts import BatchCounts, DenseLayer, Forces, HeadRows, dense_layers, forward_flops, step_flops
from jmp_ds.models.presets import preset
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Task

#: All widths and depths differ, so that no two can be confused.
SIZES = BackboneConfig(
    num_blocks=2,
    num_radial=9,
    num_spherical=3,
    emb_size_atom=22,
    emb_size_edge=26,
    emb_size_trip_in=6,
    emb_size_trip_out=7,
    emb_size_quad_in=8,
    emb_size_quad_out=10,
    emb_size_aint_in=11,
    emb_size_aint_out=12,
    emb_size_rbf=4,
    emb_size_cbf=3,
    emb_size_sbf=5,
    num_before_skip=1,
    num_after_skip=2,
    num_concat=3,
    num_atom=4,
    num_output_afteratom=5,
    num_atom_emb_layers=6,
    num_global_out_layers=7,
    num_elements=20,
)
ONE_OF_EACH = BatchCounts(**dict.fromkeys(BatchCounts.__dataclass_fields__, 1))


def heads_of(tasks: tuple[Task, ...]) -> list[HeadRows]:
    energies = [HeadRows(f"{task.name}.energy", "atoms", 1) for task in tasks]
    return energies + [HeadRows(f"{task.name}.forces", "edges", 1) for task in tasks]


@pytest.mark.parametrize(
    ("size", "total"),
    [
        ("jmp-s", 44_131_328),
        ("jmp-l", 234_267_648),
        ("jmp-xl", 1_052_614_144),
        ("jmp-xxl", 4_988_681_728),
        ("tiny", None),
    ],
)
def test_layers_are_the_parameters(size: str, total: int | None) -> None:
    """Every weight matrix of the network is one layer of the right shape, and with embedding and biases that is all."""
    tasks = published_tasks("ethanol")
    with torch.device("meta"):
        model = MultiTaskModel(preset(size), tasks)
    layers = dense_layers(model.config, ONE_OF_EACH, heads_of(tasks))
    found = {layer.name: layer.inputs * layer.outputs for layer in layers}
    held = {plain(name): p for name, p in model.named_parameters()}
    assert len(found) == len(layers)
    assert found == {name: p.numel() for name, p in held.items() if p.dim() > 1 and name != "embedding"}
    if total is not None:
        biases = sum(p.numel() for p in held.values() if p.dim() == 1)
        assert sum(found.values()) + held["embedding"].numel() + biases == total


@pytest.mark.parametrize("size", ["jmp-s", "jmp-l", "jmp-xl", "jmp-xxl", "tiny"])
def test_shapes_are_those_of_linear_layers(size: str) -> None:
    """Inputs and outputs are not swapped anywhere."""
    tasks = published_tasks("ethanol")
    with torch.device("meta"):
        model = MultiTaskModel(preset(size), tasks)
    held = {plain(name): tuple(p.shape) for name, p in model.named_parameters() if p.dim() == 2}
    for layer in dense_layers(model.config, ONE_OF_EACH, heads_of(tasks)):
        if layer.name in held:
            assert held[layer.name] == (layer.outputs, layer.inputs), layer.name


def plain(name: str) -> str:
    """A parameter's name without the parts that layers leave out."""
    name = name.removeprefix("backbone.").removeprefix("heads.")
    return name.removesuffix(".weight").removesuffix(".linear")


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_products_of_a_training_step_are_those_of_the_oracle(forces: Forces) -> None:
    """All matrix products of forward, backward and double backward, counted while the enumerated network runs."""
    structure, settings = small_crystal()
    task = Task(name="t", graph=settings, energy=EnergyTarget(), forces=ForcesTarget(kind=forces))
    model = MultiTaskModel(SIZES, [task]).double()
    set_scales(model)
    batch = assemble([structure], [0], [("t", settings)])
    rows = [HeadRows("t.energy", "atoms", batch.num_atoms)]
    rows += [HeadRows("t.forces", "edges", batch.graph.num_edges)] if forces == "direct" else []
    layers = dense_layers(model.config, BatchCounts.of(batch), rows)
    # the oracle evaluates the shared projections of the radial basis anew in every block
    uses = {plain(name): int(n) for name, n in model.backbone.gradient_divisors().items()}
    with FlopCounterMode(display=False) as counter:
        # the gradient of parameters alone: towards positions there would be products that training does not need
        torch.autograd.grad(loss(model, structure, settings, forces), list(model.parameters()))
    found = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert found == sum(uses.get(layer.name, 1) * layer.flops(forces) for layer in layers)


def small_crystal() -> tuple[Structure, GraphSettings]:
    """Four atoms whose four graphs all have different numbers of edges."""
    cell = 3.6 * np.eye(3)
    scaled = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    pos = scaled @ cell + 0.05 * np.random.default_rng(0).standard_normal((4, 3))
    structure = Structure(pos, np.array([6, 7, 8, 1]), cell, np.ones(3, dtype=bool), np.array([0, 0, 1, 0]))
    return structure, published(5.0, 12)


def loss(model: MultiTaskModel, structure: Structure, settings: GraphSettings, forces: Forces) -> Tensor:
    """Something that depends on energy and forces, by the oracle on the model's parameters."""
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    edges = build_edges(structure.pos, structure.cell, structure.pbc, structure.ocp_tags, settings)
    pos = torch.from_numpy(structure.pos).requires_grad_(forces == "gradient")
    numbers, cell = torch.from_numpy(structure.atomic_numbers), torch.from_numpy(structure.cell)[None]
    owner = torch.zeros(len(pos), dtype=torch.int64)
    found = oracle_forward(state, model.config, edges, numbers, pos, cell, owner)
    energy = energy_of(head(state, "heads.t.energy", found["atoms"]), owner, 1)
    if forces == "gradient":
        (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=True)
        return energy.sin().sum() + gradient.sin().sum()
    target = torch.as_tensor(edges.main).long()[:, 1]
    force = forces_of(head(state, "heads.t.forces", found["edges"]), found["vectors"], target, len(pos))
    return energy.sin().sum() + force.sin().sum()


def test_totals() -> None:
    """Totals are sums over layers; with direct forces constant inputs need no gradient."""
    layers = [DenseLayer("a", 3, 5, 7), DenseLayer("b", 2, 4, 6, "geometry"), DenseLayer("c", 2, 4, 6, "embedding")]
    layers.append(DenseLayer("d", 3, 4, 1, last=True))
    assert forward_flops(layers) == 2 * (105 + 48 + 48 + 12)
    assert step_flops(layers, "direct") == 2 * (3 * 105 + 2 * 48 + 3 * 48 + 3 * 12)
    assert step_flops(layers, "gradient") == 2 * (6 * 105 + 5 * 48 + 3 * 48 + 5 * 12)
