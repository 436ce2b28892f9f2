"""Edge counts beside the store: right, kept, and derived again when they must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jmp_ds.data.index import COLUMNS, GRAPHS, edge_counts, summed_up
from jmp_ds.data.record import make_record
from jmp_ds.data.store import Store, StoreWriter
from jmp_ds.errors import UserError
from jmp_ds.graphs.neighbors import build_edges
from jmp_ds.graphs.settings import FewerNeighbors, GraphSettings

SETTINGS = GraphSettings(cutoff=4.0, max_neighbors=4)


def a_store(path: Path, count: int, seed: int = 0, overwrite: bool = False) -> Store:
    rng = np.random.default_rng(seed)
    with StoreWriter(path, {}, overwrite=overwrite) as writer:
        for i in range(count):
            n = int(rng.integers(1, 12))
            grid = np.stack(np.meshgrid(*[np.arange(3.0) * 1.7] * 3), axis=-1).reshape(-1, 3)
            pos = grid[rng.permutation(27)[:n]] + rng.normal(size=(n, 3)) * 0.1
            cell, pbc = (np.eye(3) * 5.1, [True, True, False]) if i % 2 else (None, None)
            writer.append([make_record(pos=pos, atomic_numbers=[6] * n, cell=cell, pbc=pbc, id=str(i))])
    return Store(path)


def test_counts_are_those_of_the_graphs(tmp_path: Path) -> None:
    store = a_store(tmp_path / "s", 30)
    counts = edge_counts(store, SETTINGS)
    assert counts.shape == (30, 6)
    assert counts.dtype == np.int32
    for i, record in enumerate(store):
        s = record.structure()
        edges = build_edges(s.pos, s.cell, s.pbc, s.ocp_tags, SETTINGS)
        assert counts[i, :4].tolist() == [len(getattr(edges, name)) for name in GRAPHS]
        into = [[(e[:, 1] == a).sum() for a in range(len(s.pos))] for e in (edges.main, edges.qint)]
        assert counts[i, 4] == sum(into[0][b] for b in edges.qint[:, 0])
        assert counts[i, 5] == sum(into[1][a] for a in edges.main[:, 1])
    totals = summed_up(store, SETTINGS)
    assert totals == {name: (counts[:, k].max(), counts[:, k].sum()) for k, name in enumerate(COLUMNS)}
    assert len(set(counts[:, 0].tolist())) > 5


def test_counts_with_fewer_neighbors_of_larger_structures(tmp_path: Path) -> None:
    """Every structure is counted with the cap of its size, and under a name of its own."""
    store = a_store(tmp_path / "s", 30)
    steps = (FewerNeighbors(above=6, max_neighbors=1),)
    counts = np.array(edge_counts(store, replace(SETTINGS, fewer_neighbors=steps)))
    small, large = edge_counts(store, SETTINGS), edge_counts(store, replace(SETTINGS, max_neighbors=1))
    sizes = np.array([record.natoms for record in store])
    assert {6, 7} <= set(sizes.tolist())
    assert np.array_equal(counts, np.where(sizes[:, None] > 6, large, small))
    assert not np.array_equal(counts, small)


def test_kept_and_derived_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = a_store(tmp_path / "s", 10)
    first = np.array(edge_counts(store, SETTINGS))
    with monkeypatch.context() as patch:
        patch.setattr("jmp_ds.graphs.neighbors.build_edges", None)  # nothing is counted again
        assert np.array_equal(edge_counts(Store(tmp_path / "s"), SETTINGS), first)
        same_edges = GraphSettings(cutoff=4.0, max_neighbors=4, envelope="jmp", dihedral="jmp")
        assert np.array_equal(edge_counts(store, same_edges), first)
    assert not np.array_equal(edge_counts(store, GraphSettings(cutoff=3.0, max_neighbors=4)), first)
    marker = sorted((tmp_path / "s" / "index").glob("*.json"))
    assert len(marker) == 2
    other = a_store(tmp_path / "t", 12, seed=1)
    (tmp_path / "s" / "index").rename(tmp_path / "t" / "index")
    assert len(edge_counts(other, SETTINGS)) == 12  # counts of other contents are not believed


def test_cut_off_while_written(tmp_path: Path) -> None:
    store = a_store(tmp_path / "s", 5)
    expected = np.array(edge_counts(store, SETTINGS))
    array = next((tmp_path / "s" / "index").glob("*.npy"))
    array.with_suffix(".json").unlink()
    array.write_bytes(array.read_bytes()[:150])
    assert np.array_equal(edge_counts(store, SETTINGS), expected)


def test_elsewhere_and_unwritable(tmp_path: Path) -> None:
    store = a_store(tmp_path / "s", 3)
    edge_counts(store, SETTINGS, cache=tmp_path / "c")
    assert not (tmp_path / "s" / "index").exists()
    assert len(list((tmp_path / "c").iterdir())) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept"):
        edge_counts(store, SETTINGS, cache=tmp_path / "file" / "c")


def test_several_processes_and_empty_stores(tmp_path: Path) -> None:
    store = a_store(tmp_path / "s", 40)
    alone = edge_counts(store, SETTINGS, cache=tmp_path / "a")
    together = edge_counts(store, SETTINGS, cache=tmp_path / "b", workers=2, progress=True)
    assert np.array_equal(alone, together)
    assert edge_counts(a_store(tmp_path / "e", 0), SETTINGS).shape == (0, 6)
