"""Edge selection against ASE, the golden edges, and the symmetries that the invariant rule promises."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.geometry.cell import complete_cell
from ase.neighborlist import primitive_neighbor_list
from ase.spacegroup import crystal
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from jmp_ds.errors import UserError
from jmp_ds.graphs.neighbors import EdgeDropout, EdgeLists, build_edges
from jmp_ds.graphs.settings import FewerNeighbors, GraphSettings, published

UNCAPPED = 100_000  # M for which no cap acts on the structures here


def rows(edges: np.ndarray) -> set[tuple[int, ...]]:
    found = set(map(tuple, edges.tolist()))
    assert len(found) == len(edges), "an edge is listed twice"
    return found


def lengths(edges: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> np.ndarray:
    edges = edges.astype(int)
    return np.linalg.norm(pos[edges[:, 1]] - pos[edges[:, 0]] - edges[:, 2:] @ cell.astype(float), axis=1)


def reversed_rows(edges: np.ndarray) -> set[tuple[int, ...]]:
    return {(t, s, -a, -b, -c) for s, t, a, b, c in edges.tolist()}


def edges_of(atoms, chosen: GraphSettings, tags=None, **options) -> EdgeLists:
    tags = np.full(len(atoms), 2) if tags is None else np.asarray(tags)
    return build_edges(atoms.positions, atoms.cell.array, atoms.pbc, tags, chosen, **options)


# --- the neighbour list itself ---------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    natoms=st.integers(1, 6),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    size=st.floats(1.5, 9.0),
    cutoff=st.floats(0.5, 8.0),
    rule=st.sampled_from(["jmp", "invariant"]),
    blank=st.booleans(),
)
def test_equals_ase_without_caps(seed, natoms, pbc, size, cutoff, rule, blank):
    """Skewed, tiny and partly periodic cells, atoms outside the cell, cutoffs beyond the cell, empty rows without pbc."""
    rng = default_rng(seed)
    pbc = np.array(pbc)
    cell = rng.normal(size=(3, 3)) * size * rng.choice([0.3, 1.0], size=(3, 1))
    volume = abs(np.linalg.det(cell))
    assume(volume > 1.5 and natoms**2 * 4.2 * cutoff**3 < 8000 * volume)  # ASE is slow on long lists
    assume(np.linalg.norm(np.linalg.inv(cell), axis=0).max() < 1.2)
    pos = rng.uniform(-1.5, 2.5, size=(natoms, 3)) @ cell
    if blank:
        cell[~pbc] = 0.0
    # ASE 3.29 loses pairs if a row is zero and two axes are periodic: it gets a completed cell.
    i, j, offset, distance = primitive_neighbor_list("ijSd", pbc, complete_cell(cell), pos, cutoff)
    assume(not np.any(np.abs(distance - cutoff) < 1e-4) and not np.any(distance < 0.02))
    expected = rows(np.column_stack([j, i, offset]))

    found = build_edges(
        pos, cell, pbc, np.full(natoms, 2), GraphSettings(cutoff=cutoff, max_neighbors=UNCAPPED, symmetrize=rule)
    )

    for edges in found:
        assert rows(edges) == expected


def test_limits_of_the_published_rule():
    """At exactly the cutoff: kept in periodic structures, left out otherwise (specification sections 3.2 and 3.3)."""
    pos = np.array([[0.0, 0, 0], [4.0, 0, 0], [4.0, 0.01, 0]])
    tags = np.full(3, 2)
    free = build_edges(pos, np.zeros((3, 3)), np.zeros(3, bool), tags, published(4.0))
    assert rows(free.a2a) == set()
    periodic = build_edges(pos, 50 * np.eye(3), np.ones(3, bool), tags, published(4.0))
    assert rows(periodic.a2a) == {(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)}, "0.01 Å apart is one place, further is beyond"


@pytest.mark.parametrize("rule", ["jmp", "invariant"])
def test_order_of_rows(rule):
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    for edges in edges_of(atoms, GraphSettings(cutoff=7.0, max_neighbors=12, symmetrize=rule)):
        keys = [
            (t, d)
            for (_, t, *_), d in zip(edges.tolist(), lengths(edges, atoms.positions, atoms.cell.array), strict=True)
        ]
        squeezed = [(t, round(d, 9)) for t, d in keys]
        assert squeezed == sorted(squeezed)
        assert edges.dtype == np.int64


# --- golden edges -----------------------------------------------------------------------------------------------------

INDEX = json.loads((Path(__file__).parents[1] / "golden" / "INDEX.json").read_text())["systems"]
#: Where a cap cuts a pair of equal self-image edges the recorded choice is one of several (specification section 3.4).
TIED = {"co_cu111_slab", "nacl_primitive", "batch_slab_nacl_cap"}


@pytest.mark.parametrize("name", [n for n in INDEX if not n.startswith("ft_")])
def test_golden_edges(name, golden):
    data = np.load(golden / f"{name}.npz")
    info = INDEX[name]
    chosen = published(info["cutoff"], info["max_neighbors"])
    starts = np.concatenate([[0], np.cumsum(info["natoms"])])
    for number, (begin, end) in enumerate(pairwise(starts)):
        pos, cell = data["pos"][begin:end], data["cell"][number]
        found = build_edges(pos, cell, [info["pbc"][number]] * 3, data["tags"][begin:end], chosen)
        recorded = {}
        for graph, key in zip(EdgeLists._fields, ("main_sym", "a2a", "a2ee2a", "qint"), strict=True):
            edges = data[f"edges_{key}"].astype(int)
            edges = edges[(edges[:, 1] >= begin) & (edges[:, 1] < end)]
            recorded[graph] = edges - np.array([begin, begin, 0, 0, 0])
        assert rows(found.a2a) == rows(recorded["a2a"])
        all_lengths = lengths(found.a2a, pos, cell)
        for graph, cap in zip(EdgeLists._fields, chosen.caps_of(end - begin), strict=True):
            differing = np.array(sorted(rows(getattr(found, graph)) ^ rows(recorded[graph])))
            if name not in TIED:
                assert len(differing) == 0, graph
            if len(differing) == 0:
                continue
            if graph == "main":  # the cap acted on the canonical direction, whose target may be either of the two
                assert reversed_rows(differing) == rows(differing)
            at_cap = np.array([np.sort(all_lengths[found.a2a[:, 1] == t])[cap - 1] for t in range(end - begin)])
            gap = np.abs(lengths(differing, pos, cell)[:, None] - at_cap[differing[:, :2]])
            gap = gap.min(axis=1) if graph == "main" else gap[:, 1]
            assert gap.max() < 1e-5, f"{graph}: an edge differs that is not tied at the cap"


# --- caps and symmetry ------------------------------------------------------------------------------------------------


def test_published_rule_by_hand():
    """Four atoms in a row at 0, 1, 2.1 and 3.3 Å, one neighbour each: nearest of 0..3 are 1, 0, 1, 2; only s<t counts."""
    pos = np.array([[0.0, 0, 0], [1.0, 0, 0], [2.1, 0, 0], [3.3, 0, 0]])
    arguments = (pos, np.zeros((3, 3)), np.zeros(3, bool), np.full(4, 2))
    jmp = build_edges(*arguments, published(10.0, 1))
    assert rows(jmp.main[:, :2]) == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}
    assert len(jmp.a2ee2a) == len(jmp.qint) == 0, "20/30 and 8/30 of one neighbour are none"
    flipped = build_edges(pos[::-1].copy(), *arguments[1:], published(10.0, 1))
    assert rows(flipped.main[:, :2]) == {(3, 2), (2, 3)}, "the published rule depends on the order of atoms"
    invariant = build_edges(*arguments, GraphSettings(cutoff=10.0, max_neighbors=1))
    assert rows(invariant.main) == rows(jmp.main)


@pytest.mark.parametrize("rule", ["jmp", "invariant"])
def test_caps_of_the_directed_graphs(rule):
    """Every atom's nearest are present: exactly cap of them (published), or also what has it among its own nearest."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.rattle(0.1, seed=3)
    chosen = GraphSettings(cutoff=6.0, max_neighbors=20, symmetrize=rule)
    every = edges_of(atoms, GraphSettings(cutoff=6.0, max_neighbors=UNCAPPED, symmetrize=rule)).a2a
    distance = lengths(every, atoms.positions, atoms.cell.array)
    found = edges_of(atoms, chosen)
    for graph in ("a2ee2a", "qint") if rule == "jmp" else EdgeLists._fields:
        cap = getattr(chosen.caps_of(len(atoms)), graph)
        nearest = set()
        for t in range(len(atoms)):
            mine = np.flatnonzero(every[:, 1] == t)
            nearest |= rows(every[mine[np.argsort(distance[mine])[:cap]]])
        if rule == "invariant":
            nearest |= reversed_rows(np.array(sorted(nearest)))
        assert rows(getattr(found, graph)) == nearest


FEWER = (FewerNeighbors(above=28, max_neighbors=10), FewerNeighbors(above=30, max_neighbors=5))


def nearest(atoms, cap: int) -> set[tuple[int, ...]]:
    """Of ASE's neighbours within 7 Å, the `cap` nearest of every atom, one atom after the other."""
    i, j, offset, distance = primitive_neighbor_list("ijSd", atoms.pbc, atoms.cell.array, atoms.positions, 7.0)
    found = set()
    for t in range(len(atoms)):
        mine = [n for n in np.argsort(distance) if i[n] == t][:cap]
        found |= {(j[n], t, *offset[n]) for n in mine}
    return found


@pytest.mark.parametrize("rule", ["jmp", "invariant"])
@pytest.mark.parametrize(("natoms", "cap"), [(27, 30), (28, 30), (29, 10), (30, 10), (31, 5), (32, 5)])
def test_fewer_neighbors_of_larger_structures(natoms, cap, rule):
    """Just below and above the sizes, against a plain search; the size itself still belongs to the smaller ones."""
    atoms = (bulk("Cu", cubic=True) * (2, 2, 2))[:natoms]  # no atom's own image within 7 Å: such pairs are tied
    atoms.rattle(0.1, seed=natoms)
    found = edges_of(atoms, GraphSettings(cutoff=7.0, fewer_neighbors=FEWER, symmetrize=rule))
    alike = edges_of(atoms, GraphSettings(cutoff=7.0, max_neighbors=cap, symmetrize=rule))
    for graph, own in {"main": cap, "a2a": 1000 * cap // 30, "a2ee2a": 20 * cap // 30, "qint": 8 * cap // 30}.items():
        edges = getattr(found, graph)
        np.testing.assert_array_equal(edges, getattr(alike, graph))
        expected = nearest(atoms, own)
        if graph == "main" and rule == "jmp":
            expected = {row for row in expected if row[0] < row[1]}
        if graph == "main" or rule == "invariant":
            expected |= reversed_rows(np.array(sorted(expected)))
        assert rows(edges) == expected, graph
    assert len(found.main) < len(nearest(atoms, UNCAPPED)), "the cap should act"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([(300, 5), (200, 10)], r"from small structures to large ones.*\[300, 200\]"),
        ([(200, 10), (200, 5)], r"each `above` a size of its own"),
        ([(0, 10)], "at least 1"),
        ([(200, 30)], "30 neighbours above 200 atoms must be at least 1 and fewer than the 30 of smaller structures"),
        ([(200, 5), (300, 10)], "10 neighbours above 300 atoms .* fewer than the 5"),
        ([(200, 0)], "0 neighbours above 200 atoms"),
    ],
)
def test_fewer_neighbors_that_make_no_sense(steps, message):
    with pytest.raises(ValueError, match=message):
        GraphSettings(fewer_neighbors=tuple(FewerNeighbors(above=a, max_neighbors=m) for a, m in steps))


def test_fewer_neighbors_travel_and_change_no_older_name():
    """Absent from JSON where there are none, so that counts kept for former settings are still theirs."""
    plain, fewer = GraphSettings(), GraphSettings(fewer_neighbors=FEWER)
    assert "fewer_neighbors" not in plain.to_dict()
    assert plain.digest() == "8a1faa665560f9bd" != fewer.digest()
    read = json.loads(json.dumps(fewer.to_dict()))
    assert read["fewer_neighbors"] == [{"above": 28, "max_neighbors": 10}, {"above": 30, "max_neighbors": 5}]
    assert GraphSettings.from_dict(read) == fewer
    assert [fewer.max_neighbors_of(n) for n in (1, 28, 29, 30, 31, 1000)] == [30, 30, 10, 10, 5, 5]
    assert fewer.caps_of(31) == (5, 166, 3, 1)
    assert fewer.neighbors_told == "30 (10 above 28 atoms, 5 above 30)"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rule=st.sampled_from(["jmp", "invariant"]), dropped=st.booleans())
def test_every_main_edge_has_its_reverse_once(seed, rule, dropped):
    rng = default_rng(seed)
    natoms = int(rng.integers(1, 8))
    cell = np.diag(rng.uniform(2.5, 5, 3)) + rng.normal(size=(3, 3)) * 0.3
    chosen = GraphSettings(cutoff=6.0, max_neighbors=int(rng.integers(1, 15)), symmetrize=rule)
    dropout = EdgeDropout(probability=0.3, seed=1, epoch=0, sample=seed) if dropped else None
    pos = rng.uniform(size=(natoms, 3)) @ cell
    found = build_edges(pos, cell, rng.random(3) < 0.7, rng.integers(0, 3, natoms), chosen, dropout=dropout)
    for graph in ("main",) if rule == "jmp" else EdgeLists._fields:
        edges = getattr(found, graph)
        assert rows(edges) == reversed_rows(edges)
        assert not np.any((edges[:, 0] == edges[:, 1]) & (edges[:, 2:] == 0).all(axis=1))


def test_only_tagged_atoms_have_middle_bonds():
    atoms = molecule("CH3CH2OH")
    tags = np.zeros(len(atoms), dtype=int)
    tags[2] = 1
    found = edges_of(atoms, published(8.0), tags)
    assert len(found.a2ee2a) == 72
    assert {tuple(e) for e in found.qint[:, :2]} == {p for k in range(9) if k != 2 for p in ((2, k), (k, 2))}
    assert len(edges_of(atoms, published(8.0), 0 * tags).qint) == 0


# --- what the invariant rule promises ---------------------------------------------------------------------------------


def rutile():
    a, c, u = 4.594, 2.959, 0.305
    return crystal(["Ti", "O"], [(0, 0, 0), (u, u, 0)], spacegroup=136, cellpar=[a, a, c, 90, 90, 90])


CRYSTALS = {
    "fcc": (lambda: bulk("Cu", "fcc", a=3.61), 12.0),
    "fcc with a shell between two points of a grid of 1e-4": (lambda: bulk("Cu", "fcc", a=4.00015, cubic=True), 9.0),
    "fcc with a shell at the cutoff": (lambda: bulk("Al", "fcc", a=4.0), 12.0),
    "rutile": (rutile, 12.0),
    "NaCl": (lambda: bulk("NaCl", "rocksalt", a=5.64), 12.0),
}


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def seen_from_primitive(edges: np.ndarray, natoms: int, repeats: tuple[int, int, int]) -> list[set[tuple[int, ...]]]:
    """For every atom of a repeated cell, its incoming edges in terms of the primitive cell."""
    images = np.array([(i, j, k) for i in range(repeats[0]) for j in range(repeats[1]) for k in range(repeats[2])])
    source, target = edges[:, 0], edges[:, 1]
    offset = images[source // natoms] + edges[:, 2:] * np.array(repeats) - images[target // natoms]
    mapped = np.column_stack([source % natoms, target % natoms, offset])
    return [rows(mapped[target == t]) for t in range(natoms * len(images))]


@pytest.mark.parametrize("max_neighbors", [8, 24, 30])
@pytest.mark.parametrize("name", CRYSTALS)
def test_invariant_rule_in_crystals(name, max_neighbors):
    """Primitive against 2×2×1, rotated, permuted, shifted by lattice vectors, in float32 and float64: the same edges."""
    make, cutoff = CRYSTALS[name]
    primitive = make()
    natoms = len(primitive)
    chosen = GraphSettings(cutoff=cutoff, max_neighbors=max_neighbors)
    reference = edges_of(primitive, chosen)
    shells_cut = 0
    for graph, edges in zip(EdgeLists._fields, reference, strict=True):
        degree = np.bincount(edges[:, 1], minlength=natoms)
        shells_cut += int((degree > getattr(chosen.caps_of(natoms), graph)).any())
    assert shells_cut >= 2, "this case should have caps inside shells"

    for seed, dtype in enumerate((np.float64, np.float32, np.float64, np.float32)):
        turn = rotation(seed)
        atoms = primitive.repeat((2, 2, 1)) if seed >= 2 else primitive.copy()
        repeats = (2, 2, 1) if seed >= 2 else (1, 1, 1)
        cell = (atoms.cell.array @ turn).astype(dtype)
        pos = (atoms.positions @ turn + [0.3, -0.7, 1.1]).astype(dtype)
        order = default_rng(seed).permutation(len(atoms))
        found = build_edges(pos[order], cell, atoms.pbc, np.full(len(atoms), 2), chosen)
        for graph, edges in zip(EdgeLists._fields, found, strict=True):
            back = edges.copy()
            back[:, :2] = order[edges[:, :2]]
            expected = seen_from_primitive(getattr(reference, graph), natoms, (1, 1, 1))
            for t, environment in enumerate(seen_from_primitive(back, natoms, repeats)):
                assert environment == {(s, t % natoms, *o) for s, _, *o in expected[t % natoms]}, (graph, dtype, t)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_invariant_rule_in_random_structures(seed):
    """Order of atoms, orientation and the choice of an equivalent cell do not matter."""
    rng = default_rng(seed)
    natoms = int(rng.integers(2, 10))
    cell = 4 * np.eye(3) + rng.normal(size=(3, 3)) * 0.5
    pos = rng.uniform(size=(natoms, 3)) @ cell
    tags = rng.integers(0, 3, natoms)
    chosen = GraphSettings(cutoff=6.0, max_neighbors=6)
    pbc = np.ones(3, bool)
    reference = build_edges(pos, cell, pbc, tags, chosen)
    order, turn = rng.permutation(natoms), rotation(seed)
    mixing = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]])  # another basis of the same lattice
    found = build_edges((pos @ turn)[order], mixing @ cell @ turn, pbc, tags[order], chosen)
    for expected, edges in zip(reference, found, strict=True):
        back = np.column_stack([order[edges[:, :2]], edges[:, 2:] @ mixing])
        assert rows(back) == rows(expected)


# --- edge dropout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["jmp", "invariant"])
def test_dropout(rule):
    atoms = bulk("Cu", cubic=True) * (2, 2, 1)
    atoms.rattle(0.05, seed=0)
    chosen = GraphSettings(cutoff=9.0, max_neighbors=30, symmetrize=rule)
    full = edges_of(atoms, chosen)

    def dropped(**changes) -> EdgeLists:
        values = {"probability": 0.1, "seed": 7, "epoch": 2, "sample": 41, **changes}
        return edges_of(atoms, chosen, dropout=EdgeDropout(**values))

    first = dropped()
    for graph, other in zip(first, dropped(), strict=True):
        assert np.array_equal(graph, other)
    for change in ({"seed": 8}, {"epoch": 3}, {"sample": 42}):
        assert rows(dropped(**change).a2a) != rows(first.a2a)
    for graph, other in zip(full, dropped(probability=0.0), strict=True):
        assert np.array_equal(graph, other)

    gone = np.mean([1 - len(dropped(sample=k).a2a) / len(full.a2a) for k in range(20)])
    deviation = np.sqrt(0.1 * 0.9 / (20 * len(full.a2a) / 2))
    assert abs(gone - 0.1) < 5 * deviation
    assert rows(first.a2a) < rows(full.a2a)
    assert rows(first.a2ee2a) <= rows(first.a2a)
    assert rows(first.qint) <= rows(first.a2a)
    assert rows(first.main) == reversed_rows(first.main)
    if rule == "invariant":
        assert rows(first.a2a) == reversed_rows(first.a2a)
        assert rows(first.main) <= rows(first.a2a)
    else:
        assert rows(first.a2a) != reversed_rows(first.a2a)
        assert not rows(first.main) <= rows(first.a2a), "symmetrisation brings a dropped reverse back"
        assert np.bincount(first.a2ee2a[:, 1]).tolist() == [20] * len(atoms), "the caps act after the dropout"


def test_dropout_refuses_probabilities_that_leave_nothing():
    with pytest.raises(ValueError, match="probability"):
        EdgeDropout(probability=1.0, seed=0, epoch=0, sample=0)


# --- small, empty and impossible inputs -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["jmp", "invariant"])
@pytest.mark.parametrize("natoms", [0, 1, 2, 3])
@pytest.mark.parametrize("spacing", [1.0, 0.0, 100.0])
def test_few_atoms(rule, natoms, spacing):
    """Also coincident atoms and atoms out of reach: lists may be empty, of the right shape, never an error."""
    pos = spacing * np.arange(natoms)[:, None] * np.array([[1.0, 0, 0]])
    chosen = GraphSettings(cutoff=8.0, symmetrize=rule)
    dropout = EdgeDropout(probability=0.5, seed=0, epoch=0, sample=0)
    found = build_edges(pos, np.zeros((3, 3)), np.zeros(3, bool), np.full(natoms, 2), chosen)
    expected = natoms * (natoms - 1) if spacing == 1.0 else 0
    for edges in found:
        assert edges.shape == (expected, 5)
        assert edges.dtype == np.int64
    thinned = build_edges(pos, np.zeros((3, 3)), np.zeros(3, bool), np.full(natoms, 2), chosen, dropout=dropout)
    assert all(e.shape[1] == 5 and e.dtype == np.int64 for e in thinned)


@pytest.mark.parametrize("rule", ["jmp", "invariant"])
def test_one_atom_in_a_small_cell(rule):
    found = build_edges(
        np.zeros((1, 3)), 2.5 * np.eye(3), np.ones(3, bool), np.array([0]), GraphSettings(cutoff=6.0, symmetrize=rule)
    )
    assert len(found.qint) == 0, "no atom is tagged"
    assert len(found.a2a) == 56  # 6 + 12 + 8 + 6 + 24 lattice vectors up to sqrt(5)·2.5 Å
    assert rows(found.main) == reversed_rows(found.main)
    if rule == "invariant":
        assert len(found.main) == 32, "30 is inside no shell: 26 + 6 whole"


@pytest.mark.parametrize("pbc", [(False, False, False), (True, False, False), (True, True, False)])
@pytest.mark.parametrize("distance", [50.0, 3000.0, 30000.0])
def test_fragments_far_apart(pbc, distance):
    """A fragment that flew off changes no edge, takes no time and does not end the process."""
    pos = molecule("CH3CH2OH").positions
    cell = np.diag([9.0, 7.0, 0.0])
    chosen = GraphSettings(cutoff=6.0)
    alone = build_edges(pos, cell, np.array(pbc), np.full(9, 2), chosen)
    apart = np.concatenate([pos, pos + distance * (~np.array(pbc))])
    both = build_edges(apart, cell, np.array(pbc), np.full(18, 2), chosen)
    for one, two in zip(alone, both, strict=True):
        assert rows(two) == rows(one) | rows(one + np.array([9, 9, 0, 0, 0]))


def test_what_has_no_neighbour_list_is_refused():
    one, yes = np.zeros((1, 3)), np.ones(3, bool)
    with pytest.raises(UserError, match="linearly dependent"):
        build_edges(one, np.ones((3, 3)), yes, np.array([2]), GraphSettings())
    with pytest.raises(UserError, match=r"axes \[0, 2\]"):
        build_edges(one, np.zeros((3, 3)), np.array([True, False, True]), np.array([2]), GraphSettings())
    with pytest.raises(UserError, match="really in Å"):
        build_edges(np.array([[0.0, 0, 0], [1e6, 0, 0]]), np.eye(3), ~yes, np.array([2, 2]), GraphSettings())
    with pytest.raises(UserError, match="NaN"):
        build_edges(one * np.nan, np.eye(3), yes, np.array([2]), GraphSettings())
