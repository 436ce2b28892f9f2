"""Large and interrupted: exactly once over any change of ranks, files that are kept, and memory that does not grow."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jmp_ds.bench import positions, synthetic
from jmp_ds.data.costs import COUNTS, CostModel, cost_table, load_cost_model
from jmp_ds.data.index import COLUMNS, edge_counts
from jmp_ds.data.loading import Loading, TrainLoader
from jmp_ds.data.order import Order
from jmp_ds.data.packing import EdgeBudget
from jmp_ds.data.selection import Selection, keep_selections, kept_selections
from jmp_ds.data.sources import Source
from jmp_ds.data.store import Store
from jmp_ds.data.tables import read_table, write_table
from jmp_ds.errors import UserError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("made_up") / "stores"
    synthetic.make(folder, (900, 300, 50, 120))
    return synthetic.open_all(folder, (900, 300, 50, 120))


@settings(deadline=None, max_examples=25)
@given(
    worlds=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=5),
    order=st.sampled_from(["random", "local"]),
    temperature=st.sampled_from([1.0, 2.0]),
)
def test_exactly_once_whatever_the_ranks(
    small: list[Source], worlds: list[tuple[int, int, int]], order: Order, temperature: float
) -> None:
    """Two epochs by changing numbers of ranks, a few steps each: all ranks together draw every item exactly once."""
    drawn: list[list[tuple[int, int, int]]] = [[], []]
    state = None
    turn = 0
    while True:
        world, accumulation, steps = worlds[turn % len(worlds)] if turn < 12 else (3, 1, 10**6)
        turn += 1
        ends = set()
        for rank in range(world):
            loader = TrainLoader(
                small,
                synthetic.graphs(),
                EdgeBudget(9000),
                seed=3,
                epochs=2,
                temperature=temperature,
                order=order,
                loading=Loading(rank=rank, world=world, accumulation=accumulation),
                state=state,
            )
            length = loader.epoch_length
            plans = [p for _, p in zip(range(steps), loader.plans(), strict=False)]
            for (epoch, _), works in zip(plans, _by_step(loader, accumulation), strict=False):
                assert all(work.epoch == epoch for work in works)
                drawn[epoch] += [sample for work in works for sample in work.samples]
            ends.add((plans[-1][0], plans[-1][1].stop))
        assert len(ends) == 1
        epoch, position = ends.pop()
        if (epoch, position) == (1, length):
            break
        epoch, position = (epoch + 1, 0) if position == length else (epoch, position)
        state = {**loader.state(), "epoch": epoch, "position": position}
    for epoch in drawn:
        assert len(epoch) == len(set(epoch)) == length


def _by_step(loader: TrainLoader, accumulation: int) -> zip:  # type: ignore[type-arg]
    orders = loader.orders()
    return zip(*[orders] * accumulation, strict=True)


def test_twenty_million(tmp_path: Path) -> None:
    """Opening is instant, a late position as cheap as an early one, the state a few numbers.

    Limits are far above what docs/scale.md reports, because tests share the machine.
    """
    sizes = (20_000_000, 800_000)
    synthetic.make(tmp_path / "s", sizes)
    found = positions.measure(tmp_path / "s", sizes, (1, 64), "random")
    assert found["positions_per_epoch"] > 20_000_000
    assert found["open_s"] < 3.0
    assert found["running_mb"]["dirty"] < 150.0
    assert len(str(found["state"])) < 200
    assert all(row["median_ms"] < 20.0 for row in found["batches"])


def test_selections_are_kept_and_compared(tmp_path: Path) -> None:
    chosen = {"train": np.array([1, 4, 9]), "val": np.array([2])}
    keep_selections(tmp_path / "s", chosen, {"seed": 1})
    kept = kept_selections(tmp_path / "s", {"seed": 1})
    assert kept is not None
    assert kept["train"][:].tolist() == [1, 4, 9]
    assert kept["train"][np.array([2, 0])].tolist() == [9, 1]
    assert kept["train"].bounds == (1, 9)
    assert kept["train"].digest == Selection.of(chosen["train"]).digest != Selection.of(chosen["val"]).digest
    assert kept_selections(tmp_path / "s", {"seed": 2}) is None
    (tmp_path / "s" / "note.json").unlink()  # cut off while it was written
    assert kept_selections(tmp_path / "s", {"seed": 1}) is None
    whole = Selection.every(5)
    assert whole[:].tolist() == [0, 1, 2, 3, 4]
    assert whole[np.array([3])].tolist() == [3]


def test_a_table_that_is_cut_off_is_not_there(tmp_path: Path) -> None:
    def breaks() -> object:
        yield np.ones((2, 2), dtype=np.int32)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_table(tmp_path / "t.npy", tmp_path / "t.json", (4, 2), breaks(), {})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    write_table(tmp_path / "t.npy", tmp_path / "t.json", (4, 2), [np.full((2, 2), 3), np.full((2, 2), 5)], {"a": 1})
    assert read_table(tmp_path / "t.npy").tolist() == [[3, 3], [3, 3], [5, 5], [5, 5]]
    assert '"total": [\n    16,\n    16\n  ]' in (tmp_path / "t.json").read_text()


def test_costs_from_counts(small: list[Source], tmp_path: Path) -> None:
    store, graph = small[1].store, small[1].graph
    counts = edge_counts(store, graph)
    model = CostModel({"main": 3e-3, "qint": 1e-3}, per_edge=2e-3)
    table = cost_table(store, graph, model, cache=None)
    assert np.abs(table - 1.5 * counts[:, 0]).max() <= 0.5 + 1e-9  # no middle bonds in these stores; rounded
    model.save(tmp_path / "m.json")
    assert load_cost_model(tmp_path / "m.json") == model
    assert len(COUNTS) == 1 + len(COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "not a cost model"), ('{"format": 1, "coefficients": {"x": 1}, "per_edge": 1}', "no count is called 'x'")],
)
def test_files_that_are_no_cost_model(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_cost_model(tmp_path / "m.json")
    with pytest.raises(UserError, match="not a cost model"):
        load_cost_model(tmp_path / "none.json")


@pytest.mark.slow
def test_the_whole_of_it(tmp_path: Path) -> None:
    """120 million structures with all tables written, to 1,024 ranks (docs/scale.md; about 0.9 GB of disk)."""
    synthetic.make(tmp_path / "s", positions.LARGE)
    found = positions.measure(tmp_path / "s", positions.LARGE, positions.WORLDS, "random", beside=True)
    assert found["open_s"] < 3.0
    assert found["running_mb"]["unshared"] < 150.0
    by_ranks = {row["ranks"]: row["median_ms"] for row in found["batches"]}
    assert by_ranks[64] < 1.0
    assert by_ranks[1024] < 5.0  # below 1 on a machine of one's own


def test_store_of_holes_refuses_to_be_read(small: list[Source]) -> None:
    """A made-up store is for planning alone: reading it says so, instead of giving garbage."""
    store: Store = small[0].store
    with pytest.raises(UserError, match="cannot be read as an LMDB"):
        store[0]
