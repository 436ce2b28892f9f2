"""The linear-time model against the enumerated form on random batches, in float64.

The golden numbers fix the published rules; here the rules of new models, mixed settings within a batch, edge dropout and
other sizes are compared as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from golden_systems import relative
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle.network import oracle_forward
from torch import Tensor

from jmp_ds.graphs.assemble import Structure
from jmp_ds.graphs.graph import collate_graph
from jmp_ds.graphs.neighbors import EdgeDropout, EdgeLists, build_edges
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.backbone import Backbone
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.scaling import scale_factors

#: Relative tolerance of features and of gradients. For collinear bonds the published dihedral is |n1||n2|/1e-9, that is,
#: rounding noise of 1e-16 divided by its clamp of 1e-9, where the model has exactly zero.
TOLERANCE = {"smooth": (1e-11, 1e-10), "jmp": (1e-9, 1e-7)}

SIZES = BackboneConfig(
    num_blocks=2,
    num_radial=9,
    num_spherical=5,
    emb_size_atom=6,
    emb_size_edge=8,
    emb_size_trip_in=4,
    emb_size_trip_out=5,
    emb_size_quad_in=3,
    emb_size_quad_out=4,
    emb_size_aint_in=3,
    emb_size_aint_out=4,
    emb_size_rbf=4,
    emb_size_cbf=3,
    emb_size_sbf=5,
    num_before_skip=1,
    num_after_skip=2,
    num_concat=1,
    num_atom=2,
    num_output_afteratom=1,
    num_atom_emb_layers=1,
    num_global_out_layers=1,
    num_elements=20,
)


def random_structure(rng: np.random.Generator, periodic: bool) -> Structure:
    """A few atoms at least 0.7 Å apart; cells are multiples of 1/1024 Å, so that offsets are exact in single precision."""
    natoms = int(rng.integers(1, 4 if periodic else 8))
    cell = np.diag(rng.uniform(2.5, 4.0, 3)) + rng.uniform(-0.4, 0.4, (3, 3))
    cell = np.round(cell * 1024) / 1024
    pbc = rng.random(3) < 0.7 if periodic else np.zeros(3, dtype=bool)
    side = 3.0 if periodic else 1.3 * natoms ** (1 / 3) + 1.0
    pos = rng.uniform(0, side, (1, 3))
    while len(pos) < natoms:
        candidate = rng.uniform(0, side, 3)
        if np.linalg.norm(pos - candidate, axis=1).min() > 0.7:
            pos = np.vstack([pos, candidate])
    return Structure(pos, rng.integers(1, 20, natoms), cell, pbc, rng.integers(0, 3, natoms))


def random_settings(rng: np.random.Generator, dihedral: str) -> GraphSettings:
    return GraphSettings(
        cutoff=float(rng.uniform(2.5, 4.5)),
        max_neighbors=int(rng.integers(2, 9)),
        symmetrize=str(rng.choice(["jmp", "invariant"])),  # type: ignore[arg-type]
        envelope=str(rng.choice(["jmp", "cutoff"])),  # type: ignore[arg-type]
        dihedral=dihedral,  # type: ignore[arg-type]
    )


def both_forms(
    model: Backbone, structures: Sequence[Structure], chosen: Sequence[GraphSettings], pos: Tensor, dropout: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results of the model and of the oracle with the model's own parameters."""
    edges = [
        build_edges(
            s.pos, s.cell, s.pbc, s.ocp_tags, c, dropout=EdgeDropout(probability=dropout, seed=0, epoch=0, sample=k)
        )
        for k, (s, c) in enumerate(zip(structures, chosen, strict=True))
    ]
    natoms = [s.natoms for s in structures]
    numbers = torch.from_numpy(np.concatenate([s.atomic_numbers for s in structures]))
    graph = collate_graph(edges, natoms, [s.cell for s in structures], chosen)
    output = model(pos, numbers, graph, dropout)
    assert output.edges is not None
    first = np.concatenate([[0], np.cumsum(natoms)])
    whole = EdgeLists(
        *(
            np.concatenate([e + np.array([n, n, 0, 0, 0]) for e, n in zip(each, first[:-1], strict=True)])
            for each in zip(*edges, strict=True)
        )
    )
    oracle = oracle_forward(
        dict(model.named_parameters()) | dict(model.named_buffers()),
        model.config,
        whole,
        numbers,
        pos,
        torch.from_numpy(np.stack([s.cell for s in structures])),
        torch.repeat_interleave(torch.arange(len(natoms)), torch.tensor(natoms)),
        dihedral=chosen[0].dihedral,
        envelope_end=[c.envelope_end for c in chosen],
        edge_dropout=dropout,
    )
    return {"atoms": output.atoms, "edges": output.edges, "vectors": output.vectors}, oracle


def backbone(dihedral: str, seed: int) -> Backbone:
    torch.manual_seed(seed)
    model = Backbone(SIZES, dihedral).double()  # type: ignore[arg-type]
    for factor in scale_factors(model).values():
        factor.scale_factor.fill_(float(torch.rand(()) + 0.5))
    return model


def scalar(result: dict[str, Tensor]) -> Tensor:
    """A sum over all outputs with weights that differ from row to row and column to column."""
    total = result["atoms"].new_zeros(())
    for key in ("atoms", "edges"):
        x = result[key]
        total = total + (x * torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view_as(x)).sum()
    return total


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dihedral=st.sampled_from(["jmp", "smooth"]),
    periodic=st.lists(st.booleans(), min_size=1, max_size=3),
    dropout=st.sampled_from([0.0, 0.2]),
)
def test_random_batches(seed: int, dihedral: str, periodic: list[bool], dropout: float) -> None:
    """Features, and the derivatives with respect to parameters and positions.

    The published dihedral's derivative with respect to positions is an artefact where bonds are collinear, as they always
    are in periodic structures: there it is compared under the smooth rule only.
    """
    rng = np.random.default_rng(seed)
    structures = [random_structure(rng, p) for p in periodic]
    chosen = [random_settings(rng, dihedral) for _ in structures]
    model = backbone(dihedral, seed % 1000)
    pos = torch.from_numpy(np.concatenate([s.pos for s in structures])).requires_grad_()

    ours, oracle = both_forms(model, structures, chosen, pos, dropout)

    of_features, of_gradients = TOLERANCE[dihedral]
    for key, value in ours.items():
        if value.numel():
            assert relative(value, oracle[key].detach()) <= of_features, key
    parameters = dict(model.named_parameters())
    inputs = [*parameters.values(), pos]
    got, expected = (
        torch.autograd.grad(scalar(result), inputs, allow_unused=True, materialize_grads=True)
        for result in (ours, oracle)
    )
    smooth_here = dihedral == "smooth" or not any(s.pbc.any() for s in structures)
    largest = max(float(g.abs().max()) for g in expected[:-1])
    for name, a, b in zip([*parameters, "pos"], got, expected, strict=True):
        if name != "pos":
            assert float((a - b).abs().max()) <= of_gradients * (float(b.abs().max()) + 1e-3 * largest), name
        elif smooth_here:
            assert float((a - b).abs().max()) <= 10 * of_gradients * (float(b.abs().max()) + 1e-3), name


@pytest.mark.parametrize("dihedral", ["jmp", "smooth"])
def test_straight_chains(dihedral: str) -> None:
    """All atoms on a line: every azimuth is undefined, and both forms agree on what that means."""
    rng = np.random.default_rng(0)
    pos = np.array([[0.0, 0, 0], [1.25, 0, 0], [2.5, 0, 0], [3.625, 0, 0], [4.75, 0, 0]])
    chain = Structure(pos, rng.integers(1, 20, 5))
    chosen = [GraphSettings(cutoff=8.0, max_neighbors=30, dihedral=dihedral)]  # type: ignore[arg-type]
    model = backbone(dihedral, 3)
    ours, oracle = both_forms(model, [chain], chosen, torch.from_numpy(pos))
    assert relative(ours["atoms"], oracle["atoms"].detach()) <= 1e-11
    assert relative(ours["edges"], oracle["edges"].detach()) <= 1e-11


def test_second_derivatives_under_the_smooth_rule() -> None:
    """What a loss of gradient forces needs."""
    rng = np.random.default_rng(5)
    structures = [random_structure(rng, p) for p in (False, True)]
    chosen = [random_settings(rng, "smooth") for _ in structures]
    model = backbone("smooth", 5)
    pos = torch.from_numpy(np.concatenate([s.pos for s in structures])).requires_grad_()
    parameters = list(model.parameters())
    results = []
    for result in both_forms(model, structures, chosen, pos):
        force = torch.autograd.grad(scalar(result), pos, create_graph=True)[0]
        weighted = (force * torch.cos(torch.arange(force.numel(), dtype=force.dtype)).view_as(force)).sum()
        results.append(torch.autograd.grad(weighted, parameters, allow_unused=True, materialize_grads=True))
    largest = max(float(g.abs().max()) for g in results[1])
    assert largest > 0
    for a, b in zip(*results, strict=True):
        assert float((a - b).abs().max()) <= 1e-9 * (float(b.abs().max()) + 1e-3 * largest)
