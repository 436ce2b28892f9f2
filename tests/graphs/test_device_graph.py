"""The builder in tensor operations against the one on the host: the same graph, index for index, and one transfer."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from device_cases import Case, case, differences, on_host, on_tensors, random_case, rutile, slab, structure
from golden_systems import INDEX, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from jmp_ds.errors import UserError
from jmp_ds.graphs import device_cells, device_graph
from jmp_ds.graphs.assemble import assemble, gather
from jmp_ds.graphs.device_dropout import numbers_to_draw
from jmp_ds.graphs.device_plan import plan_batch
from jmp_ds.graphs.graph import Graph
from jmp_ds.graphs.neighbors import EdgeDropout
from jmp_ds.graphs.settings import FewerNeighbors, GraphSettings, published
from jmp_ds.graphs.unbuilt import BatchDropout

RULES = {"jmp": published(8.0, 12), "invariant": GraphSettings(cutoff=8.0, max_neighbors=12)}
ALL_PAIRS, CELL_LIST = 10**9, 0  # brute_rows that leave no choice


def dropping(count: int, probability: float = 0.3) -> list[EdgeDropout]:
    return [EdgeDropout(probability=probability, seed=3, epoch=1, sample=k) for k in range(count)]


def mixed() -> list[Case]:
    """Both rules, several cutoffs and caps; a slab with tags, a molecule, crystals, a lone atom."""
    tags = np.random.default_rng(0).integers(0, 3, 38)
    return [
        case(slab(0), published(9.0, 20), tags),
        case(molecule("C6H6"), GraphSettings(cutoff=6.0)),
        case(bulk("Cu"), GraphSettings(cutoff=9.0, max_neighbors=16)),
        case(Atoms("H"), published(8.0)),
        case(molecule("CH3CH2OH"), published(8.0, 6), [0, 1, 2, 0, 0, 1, 0, 0, 2]),
        case(rutile(), GraphSettings(cutoff=5.0, qint_tags=())),
    ]


SYSTEMS: dict[str, Any] = {
    "molecule": lambda: molecule("CH3CH2OH"),
    "planar molecule": lambda: molecule("C6H6"),
    "one atom": lambda: Atoms("H"),
    "two atoms in one place": lambda: Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.005]]),
    "chain": lambda: Atoms("C5", positions=[[0, 0, 1.5 * k] for k in range(5)]),
    "periodic chain": lambda: Atoms(
        "C2", positions=[[0, 0, 0], [0, 0, 1.3]], cell=[0, 0, 2.6], pbc=[False, False, True]
    ),
    "slab": lambda: slab(1),
    "slab, perfect": lambda: slab(1, (2, 2, 4), rattle=0.0),
    "fcc": lambda: bulk("Cu", "fcc", a=3.61),
    "fcc with a shell at the cutoff": lambda: bulk("Al", "fcc", a=4.0),
    "fcc, cubic": lambda: bulk("Cu", "fcc", a=4.00015, cubic=True),
    "NaCl": lambda: bulk("NaCl", "rocksalt", a=5.64),
    "rutile": rutile,
    "one atom in a small cell": lambda: Atoms("H", cell=[2.5] * 3, pbc=True),
}


@pytest.mark.parametrize("brute_rows", [ALL_PAIRS, CELL_LIST], ids=["all pairs", "cell list"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SYSTEMS)
def test_equals_the_builder_on_the_host(name, rule, brute_rows):
    cases = [case(SYSTEMS[name](), RULES[rule])]
    assert differences(on_host(cases), on_tensors(cases, brute_rows=brute_rows).graph) == []


@pytest.mark.parametrize("brute_rows", [ALL_PAIRS, CELL_LIST], ids=["all pairs", "cell list"])
@pytest.mark.parametrize("rule", RULES)
def test_fewer_neighbors_of_larger_structures(rule, brute_rows):
    """A batch that mixes sizes: as on the host, and every structure as with its own cap alone."""
    steps = (FewerNeighbors(above=20, max_neighbors=6), FewerNeighbors(above=30, max_neighbors=2))
    made = [molecule("C6H6"), slab(1, (3, 2, 3)), slab(2, (3, 3, 4)), slab(3, (2, 2, 5))]
    assert [len(atoms) for atoms in made] == [12, 20, 38, 22]
    fewer = replace(RULES[rule], fewer_neighbors=steps)
    cases = [case(atoms, fewer) for atoms in made]
    alone = [case(a, replace(RULES[rule], max_neighbors=m)) for a, m in zip(made, (12, 12, 2, 6), strict=True)]
    found = on_tensors(cases, brute_rows=brute_rows).graph
    assert differences(on_host(cases), found) == []
    assert differences(on_host(alone), found) == []
    assert differences(on_host([case(atoms, RULES[rule]) for atoms in made]), found) != []


@pytest.mark.parametrize("rule", RULES)
def test_slab_with_published_cutoff_and_caps(rule):
    chosen = published(12.0) if rule == "jmp" else GraphSettings(cutoff=12.0)
    cases = [case(slab(k, (4, 4, 4)), chosen) for k in range(2)]
    assert differences(on_host(cases), on_tensors(cases).graph) == []


@pytest.mark.parametrize("brute_rows", [ALL_PAIRS, CELL_LIST, 3000], ids=["all pairs", "cell list", "both"])
@pytest.mark.parametrize("dropped", [False, True])
def test_mixed_batch(dropped, brute_rows):
    cases = mixed()
    dropout = dropping(len(cases)) if dropped else None
    built = on_tensors(cases, dropout, brute_rows=brute_rows)
    expected = on_host(cases, dropout)
    assert differences(expected, built.graph) == []
    atoms = np.cumsum([0, *(len(c.pos) for c in cases)])
    assert built.first_edge.tolist() == np.searchsorted(expected.main.target.numpy(), atoms).tolist()


def test_dropout_of_some_structures():
    """A batch may hold samples without dropout; their edges stay."""
    cases = mixed()
    dropout = [d if k % 2 else None for k, d in enumerate(dropping(len(cases)))]
    found = on_tensors(cases, dropout).graph
    assert differences(on_host(cases, dropout), found) == []
    assert found.a2a.num_edges < on_tensors(cases).graph.a2a.num_edges


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 4),
    cutoff=st.floats(0.5, 6.0),
    most=st.integers(1, 40),
    dropped=st.booleans(),
    brute_rows=st.sampled_from([ALL_PAIRS, CELL_LIST, 200]),
)
def test_random_batches(seed, count, cutoff, most, dropped, brute_rows):
    """Skewed, tiny and partly periodic cells, atoms outside the cell, images of an atom itself, any mixture."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        rule = str(rng.choice(["jmp", "invariant"]))
        cases.append(random_case(rng, GraphSettings(cutoff=cutoff, max_neighbors=most, symmetrize=rule)))
    dropout = dropping(count) if dropped else None
    assert differences(on_host(cases, dropout), on_tensors(cases, dropout, brute_rows=brute_rows).graph) == []


@pytest.mark.parametrize("brute_rows", [ALL_PAIRS, CELL_LIST], ids=["all pairs", "cell list"])
@pytest.mark.parametrize("name", [n for n in INDEX["systems"] if not n.startswith("ft_")])
def test_golden_systems(name, brute_rows):
    data, info = recorded(name), INDEX["systems"][name]
    starts = np.concatenate([[0], np.cumsum(info["natoms"])])
    for rule in ("jmp", "invariant"):
        chosen = GraphSettings(cutoff=info["cutoff"], max_neighbors=info["max_neighbors"], symmetrize=rule)
        cases = [
            Case(data["pos"][a:b].astype(float), data["cell"][k], np.full(3, info["pbc"][k]), data["tags"][a:b], chosen)
            for k, (a, b) in enumerate(pairwise(starts))
        ]
        assert differences(on_host(cases), on_tensors(cases, brute_rows=brute_rows).graph) == []


def test_empty_batch():
    assert differences(on_host([]), on_tensors([]).graph) == []


@pytest.mark.parametrize("distance", [50.0, 30000.0])
@pytest.mark.parametrize("brute_rows", [ALL_PAIRS, CELL_LIST], ids=["all pairs", "cell list"])
@pytest.mark.parametrize("pbc", [(False, False, False), (True, False, False)])
def test_fragments_far_apart(pbc, brute_rows, distance):
    pos = molecule("CH3CH2OH").positions
    apart = np.concatenate([pos, pos + distance * ~np.array(pbc)])
    cases = [Case(apart, np.diag([9.0, 7.0, 0.0]), np.array(pbc), np.full(18, 2), GraphSettings(cutoff=6.0))]
    assert differences(on_host(cases), on_tensors(cases, brute_rows=brute_rows).graph) == []


def test_what_has_no_neighbour_list_is_refused():
    one = case(Atoms("H"), GraphSettings())

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            on_tensors([one, Case(**{**vars(one), **changes})])

    refused("NaN", pos=np.full((1, 3), np.nan))
    refused("NaN", pos=np.full((1, 3), np.inf))
    refused("linearly dependent", cell=np.ones((3, 3)), pbc=np.ones(3, bool))
    refused("really in Å", pos=np.array([[0.0, 0, 0], [1e6, 0, 0]]), tags=np.full(2, 2))
    refused("really in Å", cell=1e6 * np.eye(3), pbc=np.ones(3, bool))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="for 4 atoms"):
        on_tensors([case(molecule("NH3"), GraphSettings(), tags=[2] * 3)])


def test_batches_are_assembled_with_it():
    """Labels, rows of every task and the graph are the same whoever builds the graph; none at all is allowed."""
    cases = mixed()
    tasks = [(f"task {k}", c.settings) for k, c in enumerate(cases[:3])]
    task_of, structures = [0, 1, 2, 0, 0, 2], [structure(c) for c in cases]
    labels = [{"energy": float(k)} for k in range(6)]
    for count in (6, 0):
        dropout = BatchDropout(probability=0.3, seed=3, epoch=1, samples=torch.arange(count))
        arguments = (structures[:count], task_of[:count], tasks, labels[:count], dropout)
        expected = assemble(*arguments)
        assert count == 0 or bool(expected.rows["task 2"].edges.any())
        assert differences(expected, assemble(*arguments, build_on="cpu"), "batch") == []
        for number, (name, _) in enumerate(tasks):
            of_edge = expected.task[expected.structure[expected.graph.main.target]]
            assert expected.rows[name].edges.tolist() == [e for e, t in enumerate(of_edge.tolist()) if t == number]


def test_dropout_of_a_batch_is_that_of_its_structures():
    """A batch's seed, epoch and samples decide what goes, on the host as on the device."""
    cases = mixed()
    structures, tasks = [structure(c) for c in cases], [(f"task {k}", c.settings) for k, c in enumerate(cases)]
    dropout = BatchDropout(probability=0.3, seed=3, epoch=1, samples=torch.arange(6))
    batch = gather(structures, range(6), tasks, dropout=dropout)
    expected = on_host(cases, dropping(6))
    assert differences(expected, batch.on_host().graph) == []
    assert differences(expected, batch.to("cpu").graph) == []
    assert differences(expected, batch.prepared().prepared().to("cpu").graph) == []
    for changed in (replace(dropout, seed=4), replace(dropout, epoch=2), replace(dropout, samples=torch.arange(6) + 1)):
        assert differences(expected, replace(batch, dropout=changed).to("cpu").graph) != []


@pytest.mark.parametrize("density", [0.12, 0.002])
def test_numbers_drawn_beforehand(monkeypatch, density):
    """The same edges go, and nothing is drawn any more unless a cell list needs more room than was made for it."""
    cases, brute_rows, draw, counts = mixed(), 3000, EdgeDropout.draw, []
    monkeypatch.setattr(device_cells, "DENSITY", density)
    pbc, cells = np.array([c.pbc for c in cases]), np.array([c.cell for c in cases])
    plan = plan_batch([len(c.pos) for c in cases], cells, pbc, [c.settings for c in cases], brute_rows)
    drawn = BatchDropout(0.3, 3, 1, torch.arange(6)).with_numbers(numbers_to_draw(plan)).of_structures()
    monkeypatch.setattr(EdgeDropout, "draw", lambda self, count: counts.append(count) or draw(self, count))
    found = on_tensors(cases, drawn, brute_rows=brute_rows).graph
    assert bool(counts) == (density < 0.1)
    assert any(plan.large)
    assert differences(on_host(cases, dropping(6)), found) == []


# --- one transfer -----------------------------------------------------------------------------------------------------

#: Operations for which the host waits, or whose result has a size that the host must be told.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::argwhere",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::histc",
}


class Waiting(TorchDispatchMode):
    """Notes every operation that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_mask = name.startswith("aten::index") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)
            for argument in args[1:]
            if isinstance(argument, list | tuple)
            for i in argument
        )
        unsized = func is torch.ops.aten.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None
        to_host = (
            name == "aten::_to_copy" and args[0].device.type != "cpu" and kwargs.get("device") == torch.device("cpu")
        )
        if name in WAITING or by_mask or unsized or to_host:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("operation", "waits"),
    [
        (lambda x: x.sum().item(), True),
        (lambda x: bool(x.any()), True),
        (lambda x: x.nonzero(), True),
        (lambda x: x[x > 1], True),
        (lambda x: x.unique(), True),
        (lambda x: torch.bincount(x), True),
        (lambda x: torch.repeat_interleave(x, x), True),
        (lambda x: torch.repeat_interleave(x, x, output_size=6), False),
        (lambda x: x[x.clamp(max=2)], False),
        (lambda x: torch.searchsorted(x, x), False),
    ],
)
def test_the_list_of_waiting_operations_sees_them(operation, waits):
    with Waiting() as waiting:
        operation(torch.tensor([1, 2, 3]))
    assert bool(waiting.seen) == waits


@pytest.mark.parametrize("brute_rows", [ALL_PAIRS, CELL_LIST], ids=["all pairs", "cell list"])
def test_the_host_waits_once(brute_rows, monkeypatch):
    cases, reads = mixed(), []
    read = device_graph.read_on_host
    monkeypatch.setattr(device_graph, "read_on_host", lambda numbers: reads.append(1) or read(numbers))
    with Waiting() as waiting:
        on_tensors(cases, dropping(len(cases)), brute_rows=brute_rows)
    assert waiting.seen == []
    assert len(reads) == 1


def shapes(value: Any) -> Any:
    """Shape, dtype and device of every tensor in a nest of dataclasses."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if is_dataclass(value):
        return {f.name: shapes(getattr(value, f.name)) for f in fields(value)}
    return {k: shapes(v) for k, v in value.items()} if isinstance(value, dict) else value


def devices(value: Any) -> set[str]:
    """Devices of all tensors in a nest of dataclasses."""
    if isinstance(value, torch.Tensor):
        return {value.device.type}
    parts = list(value.values()) if isinstance(value, dict) else []
    parts += [getattr(value, f.name) for f in fields(value)] if is_dataclass(value) else []
    return set().union(*(devices(part) for part in parts))


@pytest.mark.parametrize("brute_rows", [ALL_PAIRS, CELL_LIST], ids=["all pairs", "cell list"])
def test_everything_stays_on_the_device(brute_rows, monkeypatch):
    """With tensors that have a device but no values, nothing but the one transfer could tell the host a size."""
    cases, read = mixed(), []
    real = device_graph.read_on_host
    monkeypatch.setattr(device_graph, "read_on_host", lambda numbers: read.append(real(numbers)) or read[-1])
    expected: Graph = on_tensors(cases, dropping(len(cases)), brute_rows=brute_rows).graph
    monkeypatch.setattr(device_graph, "read_on_host", lambda numbers: read[-1])
    with Waiting() as waiting:
        found = on_tensors(cases, dropping(len(cases)), device="meta", brute_rows=brute_rows).graph
    assert waiting.seen == []
    assert devices(found) == {"meta"}
    assert shapes(found) == shapes(expected)


def test_a_whole_batch_waits_once(monkeypatch):
    """Rows of every task and the rest of a batch need no transfer besides the graph's."""
    cases, read = mixed(), []
    tasks = [("slabs", cases[0].settings), ("rest", cases[1].settings), ("absent", cases[2].settings)]
    dropout = BatchDropout(probability=0.3, seed=3, epoch=1, samples=torch.arange(6))
    batch = gather([structure(c) for c in cases], [0, 1, 1, 0, 1, 0], tasks, [{"energy": 1.0}] * 6, dropout)
    real = device_graph.read_on_host
    monkeypatch.setattr(device_graph, "read_on_host", lambda numbers: read.append(real(numbers)) or read[-1])
    expected = batch.to("cpu")
    monkeypatch.setattr(device_graph, "read_on_host", lambda numbers: read[-1])
    with Waiting() as waiting:
        found = batch.to("meta")
    assert waiting.seen == []
    assert len(read) == 1
    assert devices(found) == {"meta"}
    assert shapes(found) == shapes(expected)


def test_too_little_room_is_noticed(monkeypatch):
    """Denser than expected: further rounds with as much room as it takes, the same edges."""
    cases, reads = mixed(), []
    monkeypatch.setattr(device_cells, "DENSITY", 0.002)
    read = device_graph.read_on_host
    monkeypatch.setattr(device_graph, "read_on_host", lambda numbers: reads.append(1) or read(numbers))
    found = on_tensors(cases, dropping(len(cases)), brute_rows=CELL_LIST).graph
    assert len(reads) == 3, "pairs of atoms first, then what of them is within reach"
    assert differences(on_host(cases, dropping(len(cases))), found) == []


# --- large structures -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("brute_rows", [ALL_PAIRS, CELL_LIST], ids=["all pairs", "cell list"])
def test_two_thousand_atoms(brute_rows):
    atoms = bulk("Cu", cubic=True).repeat((8, 8, 8))[:2000]
    atoms.rattle(0.05, seed=0)
    cases = [case(atoms, published(12.0))]
    assert differences(on_host(cases), on_tensors(cases, brute_rows=brute_rows).graph) == []
