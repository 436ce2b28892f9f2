"""Loading: the same batches for any number of workers and from any position; every structure where it belongs."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import Drawn, drawn, whole_run

from jmp_ds.data import workers as workers_module
from jmp_ds.data.loading import EvalLoader, Loading, TrainLoader
from jmp_ds.data.packing import BatchRule, EdgeBudget, StructureCount
from jmp_ds.data.record import make_record
from jmp_ds.data.selection import Selection
from jmp_ds.data.sources import Source, open_source
from jmp_ds.data.store import Store, StoreWriter
from jmp_ds.data.transport import pack, unpack
from jmp_ds.data.workers import WorkerDied
from jmp_ds.errors import UserError
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.graphs.unbuilt import BuiltOn, Unbuilt
from jmp_ds.tasks.losses import count_labels
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Task

TASKS = [
    ("crystals", GraphSettings(cutoff=4.0, max_neighbors=6)),
    ("molecules", GraphSettings(cutoff=5.0, max_neighbors=8)),
    ("unused", GraphSettings()),
]

BUDGET = EdgeBudget(150)


def a_store(path: Path, name: str, count: int, periodic: bool) -> Store:
    rng = np.random.default_rng(count)
    grid = np.stack(np.meshgrid(*[np.arange(3.0) * 1.6] * 3), axis=-1).reshape(-1, 3)
    with StoreWriter(path / name, {}, shard_size=10) as writer:
        for i in range(count):
            n = int(rng.integers(1, 10))
            labels: dict[str, Any] = {"energy": -float(i), "gap": 1.0}
            if i % 4:
                labels["forces"] = rng.normal(size=(n, 3))
            writer.append(
                [
                    make_record(
                        pos=grid[rng.permutation(27)[:n]] + rng.normal(size=(n, 3)) * 0.1,
                        atomic_numbers=rng.integers(1, 9, n),
                        cell=np.eye(3) * 5.0 if periodic else None,
                        pbc=[periodic] * 3,
                        id=f"{name}{i}",
                        labels=labels,
                    )
                ]
            )
    return Store(path / name)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    path = tmp_path_factory.mktemp("stores")
    crystals = a_store(path, "c", 23, periodic=True)
    molecules = a_store(path, "m", 9, periodic=False)
    return [
        open_source("crystals", TASKS[0][1], crystals, ["energy", "forces"], indices=np.arange(3, 23)),
        open_source("molecules", TASKS[1][1], molecules, ["energy"]),
    ]


def a_loader(sources: list[Source], rule: BatchRule = BUDGET, **options: Any) -> TrainLoader:
    own = {k: options.pop(k) for k in list(options) if k in Loading.__dataclass_fields__}
    settings = {"seed": 3, "epochs": 2, "temperature": 2.0, "edge_dropout": 0.2, **options}
    return TrainLoader(sources, TASKS, rule, loading=Loading(**own), **settings)


def tensors(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nest of dataclasses and containers, by path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if dataclasses.is_dataclass(value):
        children: Iterable[tuple[Any, Any]] = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, dict):
        children = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    else:
        return {}
    return {k: v for name, child in children for k, v in tensors(child, f"{path}.{name}").items()}


def assert_same(a: Batch | Unbuilt, b: Batch | Unbuilt, rounded: str = "none") -> None:
    """Equal to the last bit; tensors whose name ends in `rounded` but for rounding."""
    x, y = tensors(a), tensors(b)
    assert x.keys() == y.keys()
    assert len(x) > (60 if isinstance(a, Batch) else 18)
    for name in x:
        assert x[name].dtype == y[name].dtype, name
        same = torch.allclose(x[name], y[name], rtol=1e-14, atol=1e-13) if name.endswith(rounded) else None
        assert torch.equal(x[name], y[name]) if same is None else same, name
    assert type(a) is type(b)
    others = ("ids", "task_names", "edge_dropout", "settings")
    assert all(getattr(a, name, None) == getattr(b, name, None) for name in others)


def ids(loader: TrainLoader) -> list[list[tuple[str, ...]]]:
    return [[b.ids for b in step.batches] for step in loader]


def test_transport_keeps_everything(sources: list[Source]) -> None:
    for step in a_loader(sources):
        for batch in step.batches:
            assert_same(batch, unpack(pack(batch)))
    nest = {"a": [torch.tensor(1.5), torch.zeros(0, 3)], "b": torch.arange(6).reshape(2, 3).T, "c": (None, "x")}
    again = unpack(pack(nest))
    assert again["c"] == (None, "x")
    assert torch.equal(again["b"], nest["b"])  # type: ignore[arg-type]
    assert again["a"][0].shape == ()
    assert again["a"][1].shape == (0, 3)


def test_an_epoch_draws_what_the_mixture_says(sources: list[Source]) -> None:
    loader = a_loader(sources)
    assert loader.epoch_length == 20 + 14  # 9 of 20 at temperature 2: sqrt(9 · 20) rounded up
    drawn: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}
    steps = list(loader)
    for step in steps:
        drawn[step.epoch].update(i for b in step.batches for i in b.ids)
        for batch in step.batches:
            assert batch.edge_dropout == 0.2
            assert batch.task_names == ("crystals", "molecules", "unused")
            assert [batch.task_names[t] for t in batch.task] == [
                {"c": "crystals", "m": "molecules"}[i[0]] for i in batch.ids
            ]
    for counts in drawn.values():
        assert sum(counts.values()) == 34
        assert {k for k in counts if k[0] == "c"} == {f"c{i}" for i in range(3, 23)}
        assert all(counts[f"c{i}"] == 1 for i in range(3, 23))
        assert all(1 <= counts[f"m{i}"] <= 2 for i in range(9))
    assert [s.consumed for s in steps][-1] == loader.total == loader.consumed == 68
    assert [s.last_of_epoch for s in steps].count(True) == 2
    assert sum(s.structures for s in steps) == 68


def test_only_wanted_labels_and_missing_ones_stay_absent(sources: list[Source]) -> None:
    for step in a_loader(sources, StructureCount(34), epochs=1):
        labels = step.batches[0].labels
        assert set(labels) == {"energy", "forces"}
        for id_, energy, force in zip(
            step.batches[0].ids, labels["energy"].values, labels["forces"].present, strict=True
        ):
            assert energy == -float(id_[1:])
            assert bool(force) == (id_[0] == "c" and int(id_[1:]) % 4 != 0)


@pytest.mark.parametrize(("workers", "graphs"), [(0, "host"), (1, "host"), (2, "host"), (0, "device"), (2, "device")])
def test_resume_at_any_step(sources: list[Source], workers: int, graphs: BuiltOn) -> None:
    whole = list(a_loader(sources, accumulation=2, graphs=graphs))
    assert len(whole) > 6
    cuts = range(len(whole) + 1) if workers == 0 else [0, 1, len(whole) // 2 + 1]
    for cut in cuts:
        loader = a_loader(sources, accumulation=2, workers=workers, graphs=graphs)
        if cut:
            for count, _ in enumerate(loader, start=1):
                if count == cut:
                    break
        state = loader.state()
        assert state["step"] == cut
        rest = list(a_loader(sources, accumulation=2, workers=workers, graphs=graphs, state=state))
        assert len(rest) == len(whole) - cut
        for expected, step in zip(whole[cut:], rest, strict=True):
            assert (step.epoch, step.plan, step.consumed) == (expected.epoch, expected.plan, expected.consumed)
            for a, b in zip(expected.batches, step.batches, strict=True):
                assert_same(a, b)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ways_to_start_workers(sources: list[Source], method: str) -> None:
    expected = [b for step in a_loader(sources, epochs=1) for b in step.batches]
    found = [b for step in a_loader(sources, epochs=1, workers=1, start_method=method) for b in step.batches]
    for a, b in zip(expected, found, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize(("workers", "method"), [(0, "fork"), (2, "fork"), (1, "spawn")])
def test_graphs_left_to_the_device(sources: list[Source], workers: int, method: str) -> None:
    """Built there, batches are those with graphs from the host: the same edges dropped, empty batches, absent tasks; and
    what the host must know of a batch it knows before.
    """
    tasks = tuple(
        Task(name=name, graph=graph, energy=EnergyTarget(), forces=ForcesTarget(loss=loss))
        for (name, graph), loss in zip(TASKS, ("structure", "atom", "atom"), strict=True)
    )
    rule, how = StructureCount(6), {"world": 2, "rank": 1, "accumulation": 4}
    expected = [b for step in a_loader(sources, rule, **how) for b in step.batches]
    assert {b.num_structures for b in expected} >= {0, 1}
    left = a_loader(sources, rule, **how, workers=workers, start_method=method, graphs="device")
    for a, b in zip(expected, (b for step in left for b in step.batches), strict=True):
        assert isinstance(b, Unbuilt)
        assert b.dropout is not None
        assert b.dropout.bits is not None, "the worker has not drawn the numbers"
        assert (b.ids, b.num_structures, count_labels(b, tasks)) == (a.ids, a.num_structures, count_labels(a, tasks))
        assert_same(a, b.to("cpu"), rounded="shift")


def test_what_workers_send_does_not_grow_with_the_edges(sources: list[Source]) -> None:
    """Nothing of a graph is sent where the device builds it."""

    def sent(cutoff: float, graphs: BuiltOn) -> int:
        graph = GraphSettings(cutoff=cutoff)
        few = [dataclasses.replace(sources[0], graph=graph)]
        loader = TrainLoader(
            few, [("crystals", graph)], StructureCount(20), seed=0, epochs=1, loading=Loading(graphs=graphs)
        )
        return pack(next(iter(loader)).batches[0]).block.numel()

    assert sent(3.0, "device") == sent(6.0, "device") < sent(3.0, "host") < sent(6.0, "host")


def test_evaluation_leaves_graphs_to_the_device(sources: list[Source]) -> None:
    host, device = (EvalLoader(sources, TASKS, BUDGET, Loading(graphs=graphs)) for graphs in ("host", "device"))
    for a, b in zip(host, device, strict=True):
        assert isinstance(b, Unbuilt)
        assert_same(a, b.to("cpu"), rounded="shift")


def test_ranks_share_out_each_step(sources: list[Source]) -> None:
    one = a_loader(sources, StructureCount(7), accumulation=1)
    two = [a_loader(sources, StructureCount(7), world=2, rank=r, accumulation=2) for r in (0, 1)]
    steps = list(zip(one, *two, strict=True))
    assert len(steps) == 10  # 34 = 4 · 7 + 6, twice
    for alone, first, second in steps:
        assert len(first.batches) == len(second.batches) == 2
        assert first.plan == second.plan
        shared = [i for step in (first, second) for b in step.batches for i in b.ids]
        assert sorted(shared) == sorted(alone.batches[0].ids)


@pytest.mark.parametrize("order", ["random", "local"])
@pytest.mark.parametrize(("rule", "workers"), [(BUDGET, 0), (StructureCount(5), 0), (BUDGET, 1)])
def test_nothing_is_drawn_twice_or_left_out_when_the_ranks_change(
    sources: list[Source], rule: BatchRule, workers: int, order: str
) -> None:
    """1, 2, 3, 1, … ranks, changed after every few steps, in the middle of epochs and at their ends, for five epochs."""

    def loaders(world: int, state: dict[str, Any] | None) -> list[TrainLoader]:
        return [
            a_loader(sources, rule, epochs=5, order=order, world=world, rank=rank, workers=workers, state=state)
            for rank in range(world)
        ]

    state, seen, crossed = None, Counter[Drawn](), set[tuple[int, int]]()
    turns = itertools.cycle([(1, 3), (2, 4), (3, 2), (1, 1), (3, 1), (2, 3), (1, 4)])
    while state is None or state["epoch"] < 5:
        world, steps = next(turns)
        ranks = loaders(world, state)
        for _, together in zip(range(steps), zip(*ranks, strict=True), strict=False):
            for loader, step in zip(ranks, together, strict=True):
                seen.update(drawn(loader, step))
        states = [loader.state() for loader in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
        crossed.add((world, int(state["position"] > 0)))
    (alone,) = loaders(1, None)
    assert seen == Counter(whole_run(alone))
    assert {(1, 1), (2, 1), (3, 1)} <= crossed, "no change in the middle of an epoch"


def test_edges_dropped_do_not_depend_on_ranks_or_partners(sources: list[Source]) -> None:
    """A structure has the same edges in a step of one rank and of two, other ones in the next epoch."""

    def edges(loader: TrainLoader) -> dict[tuple[int, str], list[int]]:
        found: dict[tuple[int, str], list[int]] = {}
        for step in loader:
            for batch in step.batches:
                count = torch.bincount(batch.structure[batch.graph.main.target], minlength=batch.num_structures)
                for i, n in zip(batch.ids, count.tolist(), strict=True):
                    found.setdefault((step.epoch, i), []).append(n)
        return {k: sorted(v) for k, v in found.items()}

    alone = edges(a_loader(sources))
    first = edges(a_loader(sources, StructureCount(5), world=2, rank=0))
    second = edges(a_loader(sources, StructureCount(5), world=2, rank=1))
    together = {k: sorted(first.get(k, []) + second.get(k, [])) for k in {*first, *second}}
    assert together == alone
    crystals = [i for e, i in alone if e == 0 and i[0] == "c"]
    assert sum(alone[0, i] != alone[1, i] for i in crystals) > 5
    repeated = [v for v in alone.values() if len(v) == 2]
    assert any(v[0] != v[1] for v in repeated)  # the second drawing of an epoch loses other edges


def test_no_dropout_matches_the_counted_edges(sources: list[Source]) -> None:
    for step in a_loader(sources, edge_dropout=0.0):
        for batch in step.batches:
            assert batch.graph.main.num_edges <= 150 or batch.num_structures == 1
            counted = sum(int(sources[0 if i[0] == "c" else 1].edges[int(i[1:])]) for i in batch.ids)
            assert counted == batch.graph.main.num_edges


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_each_structure_once(sources: list[Source], world: int, workers: int) -> None:
    loaders = [
        EvalLoader(sources, TASKS, EdgeBudget(150), Loading(rank=r, world=world, workers=workers)) for r in range(world)
    ]
    batches = [list(loader) for loader in loaders]
    assert len({len(b) for b in batches}) == 1
    assert len(batches[0]) == len(loaders[0])
    seen = [i for rank in batches for b in rank for i in b.ids]
    assert sorted(seen) == sorted([f"c{i}" for i in range(3, 23)] + [f"m{i}" for i in range(9)])
    assert loaders[0].structures == 29
    assert all(b.edge_dropout == 0.0 for rank in batches for b in rank)
    assert sum(b.num_structures for b in loaders[0]) == sum(b.num_structures for b in batches[0])  # again


def test_more_ranks_than_structures(sources: list[Source]) -> None:
    few = [dataclasses.replace(sources[0], indices=Selection.of(np.array([4, 5])))]
    batches = [list(EvalLoader(few, TASKS, EdgeBudget(150), Loading(rank=r, world=4))) for r in range(4)]
    assert [len(b) for b in batches] == [1] * 4
    assert sorted(b[0].num_structures for b in batches) == [0, 0, 1, 1]
    steps = [list(a_loader(few, world=4, rank=r, epochs=1)) for r in range(4)]
    assert [len(s) for s in steps] == [1] * 4


def test_the_programs_random_state_is_left_alone(sources: list[Source]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for _ in a_loader(sources, workers=1):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_no_process_is_left_behind(sources: list[Source]) -> None:
    for _ in a_loader(sources, workers=2):
        break
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


def test_workers_do_not_die_of_the_groups_signals(sources: list[Source]) -> None:
    steps = iter(a_loader(sources, epochs=20, workers=2))
    for _ in range(2):  # workers take turns: now both are at work
        next(steps)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGINT)
        os.kill(child.pid or 0, signal.SIGTERM)
    assert len(list(steps)) > 20


def test_a_dead_worker_is_an_error(sources: list[Source]) -> None:
    steps = iter(a_loader(sources, epochs=50, workers=2))
    next(steps)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker") as caught:
        list(steps)
    assert isinstance(caught.value, WorkerDied) or "is killed by signal" in str(caught.value)


def test_a_worker_killed_by_a_store_cut_short_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short in the very moment in which it was read: what is left to see is that the worker died."""
    source = open_source("crystals", TASKS[0][1], a_store(tmp_path, "c", 12, periodic=True), ["energy"])

    def died(parcels: Any) -> None:
        raise WorkerDied("a data worker process died")

    monkeypatch.setattr(workers_module, "_next", died)
    with pytest.raises(WorkerDied):
        list(a_loader([source], workers=1))
    steps = iter(a_loader([source], workers=1))
    os.truncate(tmp_path / "c" / "shard-00001.lmdb", 4096)
    with pytest.raises(UserError, match=r"shard-00001.lmdb has 4096 bytes instead of"):
        list(steps)


def test_a_program_that_fails_ends(sources: list[Source]) -> None:
    """An error elsewhere, with a traceback that refers to the loader, must not leave the program waiting for workers."""
    script = f"""
import sys
from jmp_ds.data.loading import Loading, TrainLoader
from jmp_ds.data.packing import EdgeBudget
from jmp_ds.data.selection import Selection
from jmp_ds.data.sources import open_source
from jmp_ds.data.store import Store
from jmp_ds.graphs.settings import GraphSettings
graph = GraphSettings(cutoff=4.0, max_neighbors=6)
source = open_source("t", graph, Store({str(sources[0].store.path)!r}), ["energy"])
loader = TrainLoader([source], [("t", graph)], EdgeBudget(99), seed=0, epochs=99, loading=Loading(workers=2))
kept = iter(loader)
step = next(kept)
raise RuntimeError("elsewhere")
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError: elsewhere" in done.stderr


def test_an_error_in_a_worker_keeps_its_message(sources: list[Source], tmp_path: Path) -> None:
    store = a_store(tmp_path, "c", 12, periodic=True)
    source = open_source("crystals", TASKS[0][1], store, ["energy"])
    (tmp_path / "c" / "shard-00001.lmdb").write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00001.lmdb"):
        list(a_loader([source], workers=1))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["shortened", "zeroed", "flipped"])
def test_a_store_damaged_while_it_is_read_is_told_in_one_line(tmp_path: Path, how: str, workers: int) -> None:
    """A file cut short is mapped into memory already: to read beyond its end would end the process without a word."""
    source = open_source("crystals", TASKS[0][1], a_store(tmp_path, "c", 40, periodic=True), ["energy"])
    steps = iter(a_loader([source], StructureCount(4), epochs=20, workers=workers))
    next(steps)
    file = tmp_path / "c" / "shard-00002.lmdb"
    content = file.read_bytes()
    with file.open("r+b") as opened:
        if how == "shortened":
            opened.truncate(8192)
        elif how == "zeroed":
            opened.write(bytes(8192))  # what LMDB knows the file by was read before
            opened.write(bytes(len(content) - 8192))
        else:
            opened.write(bytes(byte ^ 0x10 if k > 8192 else byte for k, byte in enumerate(content)))
    with pytest.raises(UserError, match=r"shard-00002.lmdb.*again") as caught:
        list(steps)
    assert "\n" not in str(caught.value)


def test_resuming_something_else_is_refused(sources: list[Source]) -> None:
    state = a_loader(sources).state()
    for other in (
        a_loader(sources[:1]),
        a_loader(sources, seed=4),
        a_loader(sources, temperature=1.0),
        a_loader([dataclasses.replace(sources[0], indices=Selection.of(np.arange(2, 22))), sources[1]]),
    ):
        with pytest.raises(UserError, match="resume"):
            a_loader(sources, state=other.state())
    a_loader(sources, state=state, world=2, rank=1, accumulation=3)


def test_mistakes(sources: list[Source]) -> None:
    store = sources[0].store
    with pytest.raises(UserError, match="carries the label 'dipole'; it has: energy, forces, gap"):
        open_source("crystals", TASKS[0][1], store, ["dipole"])
    with pytest.raises(UserError, match="no structures are left"):
        open_source("crystals", TASKS[0][1], store, ["energy"], indices=np.array([], dtype=np.int64))
    with pytest.raises(UserError, match="index 23"):
        open_source("crystals", TASKS[0][1], store, ["energy"], indices=np.array([23]))
    with pytest.raises(UserError, match="'crystals', but the model's tasks"):
        TrainLoader(sources, TASKS[1:], EdgeBudget(9), seed=0, epochs=1)
    with pytest.raises(UserError, match="other graph settings"):
        EvalLoader([dataclasses.replace(sources[0], graph=GraphSettings())], TASKS, EdgeBudget(9))
    with pytest.raises(UserError, match="no task has"):
        TrainLoader([], TASKS, EdgeBudget(9), seed=0, epochs=1)
    with pytest.raises(UserError, match="accumulation"):
        Loading(accumulation=0)
