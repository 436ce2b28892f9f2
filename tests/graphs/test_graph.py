"""What the graph of a batch holds besides the edges."""

from __future__ import annotations

import numpy as np
import torch
from ase.build import bulk, molecule

from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.settings import GraphSettings, published


def skewed() -> Structure:
    atoms = bulk("Cu").repeat((2, 1, 1))
    atoms.set_cell(atoms.cell.array + 0.0123456789, scale_atoms=True)
    return Structure(atoms.positions, atoms.numbers.astype(np.int64), atoms.cell.array, np.ones(3, dtype=bool))


def test_published_offsets_are_rounded_as_published() -> None:
    """Single precision, product by product (specification 3.3): what a batched matrix product of [E, 1, 3] gives."""
    structure = skewed()
    edges = assemble([structure], [0], [("t", published(9.0))]).graph.a2a
    cell = torch.from_numpy(structure.cell).float().expand(edges.num_edges, 3, 3)
    expected = torch.bmm(edges.offset.float()[:, None], cell)[:, 0].double()
    assert torch.equal(edges.shift, expected)
    exact = edges.offset.double() @ torch.from_numpy(structure.cell)
    assert 0 < float((edges.shift - exact).abs().max()) < 1e-5


def test_new_offsets_are_exact() -> None:
    structure = skewed()
    edges = assemble([structure], [0], [("t", GraphSettings(cutoff=9.0))]).graph.a2a
    exact = edges.offset.double() @ torch.from_numpy(structure.cell)
    torch.testing.assert_close(edges.shift, exact, rtol=0, atol=1e-13)


def test_every_edge_has_its_reverse_and_its_twin() -> None:
    structures = [skewed(), Structure(molecule("C6H6").positions, molecule("C6H6").numbers.astype(np.int64))]
    graph = assemble(structures, [0, 0], [("t", GraphSettings(cutoff=6.0, max_neighbors=12))]).graph
    main, back = graph.main, graph.reverse
    assert torch.equal(main.source[back], main.target)
    assert torch.equal(main.offset[back], -main.offset)
    assert torch.equal(back[back], torch.arange(main.num_edges))
    found = graph.twin.found
    other = graph.a2ee2a
    assert bool(found.any())
    assert torch.equal(other.source[graph.twin.index[found]], main.source[found])
    assert torch.equal(other.offset[graph.twin.index[found]], main.offset[found])


def test_images_of_one_pair_are_taken_together() -> None:
    graph = assemble([skewed()], [0], [("t", GraphSettings(cutoff=8.0))]).graph
    pairs = graph.pairs
    assert pairs.source.shape[0] == 4  # two atoms: all ordered pairs, each with many images
    assert torch.equal(pairs.source[pairs.pair], graph.a2a.source)
    assert torch.equal(pairs.by_target.index[pairs.pair], graph.a2a.target)
