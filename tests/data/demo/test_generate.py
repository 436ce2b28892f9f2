"""Making the sets: the same at any number of processes, exact sizes, failures counted and replaced."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from jmp_ds.data.demo import generate
from jmp_ds.data.demo.generate import make_demo
from jmp_ds.data.demo.jobs import Job, Outcome
from jmp_ds.data.demo.labelling import DemoFailure
from jmp_ds.data.demo.organics import (
    allowed_in_pretraining,
    assemble_molecule,
    kept_for_properties,
)
from jmp_ds.data.demo.plan import SETS, check_sizes, default_sizes
from jmp_ds.data.demo.reference_molecules import dipeptide, malonaldehyde
from jmp_ds.data.record import make_record
from jmp_ds.data.store import Store, StoreWriter
from jmp_ds.errors import UserError

SIZES = {"slabs": 2, "oxides": 2, "molecules": 5, "paths": 9, "malonaldehyde": 3, "gaps": 4}


@pytest.fixture
def _tblite() -> None:
    pytest.importorskip("tblite.interface", reason="tblite is not installed: metadata name its version")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny demonstration set, by two processes."""
    pytest.importorskip("tblite.interface", reason="tblite is not installed: no set can be made")
    out = tmp_path_factory.mktemp("demo")
    reports = make_demo(out, sizes=SIZES, seed=5, processes=2, progress=False, command="a test")
    assert {name: report.structures for name, report in reports.items()} == SIZES
    return out


def test_same_seed_same_stores_at_any_number_of_processes(made: Path, tmp_path: Path) -> None:
    sizes = {name: SIZES[name] for name in ("molecules", "paths", "malonaldehyde", "gaps", "oxides")}
    make_demo(tmp_path, sizes=sizes, seed=5, processes=1, progress=False)
    for name in sizes:
        assert Store(tmp_path / name).summary.fingerprint == Store(made / name).summary.fingerprint


def test_smaller_sets_are_the_beginning_of_larger_ones_and_seeds_differ(made: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "a", sizes={"gaps": 2}, seed=5, progress=False)
    make_demo(tmp_path / "b", sizes={"gaps": 2}, seed=6, progress=False)
    long, short, other = Store(made / "gaps"), Store(tmp_path / "a" / "gaps"), Store(tmp_path / "b" / "gaps")
    for i in range(2):
        np.testing.assert_array_equal(short[i].pos, long[i].pos)
        assert short[i].labels["gap"] == long[i].labels["gap"]
    assert other[0].info["molecule"] != long[0].info["molecule"]


def test_records_carry_what_the_sets_promise(made: Path) -> None:
    for name in SIZES:
        store = Store(made / name)
        assert store.metadata["command"] == "a test"
        assert "demonstration" in store.metadata["note"]
        assert "xTB" in store.metadata["level_of_theory"]
        assert store.metadata["versions"]["tblite"]
        for record in store:
            assert set(record.labels) == set(SETS[name].labels)
            assert all(np.isfinite(value).all() for value in record.labels.values())
            assert record.group
            assert record.pbc.all() == (name in ("slabs", "oxides"))
    for record in Store(made / "slabs"):
        assert set(record.tags.tolist()) == {0, 1, 2}
        np.testing.assert_array_equal(record.fixed, record.tags == 0)
        assert np.abs(record.labels["forces"][record.fixed]).max() > 0.0
        assert record.pos[record.tags == 2, 2].min() > record.pos[record.tags == 0, 2].max()


def test_paths_keep_together_and_molecules_by_identity(made: Path) -> None:
    paths = list(Store(made / "paths"))
    assert len({record.group for record in paths[:8]}) == 1
    assert paths[8].group != paths[0].group
    for record in Store(made / "molecules"):
        assert record.group == record.info["molecule"]


def test_existing_stores_are_kept(made: Path) -> None:
    with pytest.raises(UserError, match="a store already"):
        make_demo(made, sizes={"gaps": 1}, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": {"slab": 3}}, "no set 'slab'"),
        ({"sizes": {"slabs": -1}}, "0 or more"),
        ({"sizes": {"slabs": 0}}, "nothing to make"),
        ({"seed": -1}, "seed"),
        ({"processes": 0}, "process"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_demo(tmp_path, progress=False, **options)


def test_sizes() -> None:
    assert default_sizes(0.1)["molecules"] == round(0.1 * SETS["molecules"].size)
    assert min(default_sizes(1e-9).values()) == 1
    assert list(check_sizes({"gaps": 1, "slabs": 2, "paths": 0})) == ["slabs", "gaps"]
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="scale"):
            default_sizes(scale)


class _Pool:
    """Gives prepared outcomes in place of worker processes."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes
        self.asked: list[int] = []

    def submit(self, _run: object, job: Job) -> Future[Outcome]:
        self.asked.append(job.number)
        future: Future[Outcome] = Future()
        future.set_result(self.outcomes[job.number % len(self.outcomes)])
        return future


def _outcome(name: str, count: int, unique: str = "", **skipped: int) -> Outcome:
    atoms = molecule("H2O")
    records = tuple(
        make_record(pos=atoms.positions, atomic_numbers=atoms.numbers, id=f"{name}{i}", labels={"energy": 0.0})
        for i in range(count)
    )
    return Outcome(records, unique, Counter(skipped))


def _make(pool: _Pool, size: int, path: Path) -> generate.SetReport:
    return generate._make_set(SETS["molecules"], path, size, 0, pool, 4, generate._bars(False), "")  # type: ignore[arg-type]


@pytest.mark.usefixtures("_tblite")
def test_failures_and_duplicates_are_counted_and_replaced(tmp_path: Path) -> None:
    pool = _Pool(
        [
            _outcome("a", 3, "A"),
            _outcome("b", 0, scf_not_converged=1),
            _outcome("c", 3, "A"),
            _outcome("d", 2, "D", force_too_large=1),
            _outcome("e", 3, "E"),
        ]
    )
    report = _make(pool, 7, tmp_path / "set")
    assert report.skipped == {"duplicate": 3, "force_too_large": 1, "scf_not_converged": 1}
    assert [record.id for record in Store(tmp_path / "set")] == ["a0", "a1", "a2", "d0", "d1", "e0", "e1"]
    assert pool.asked == list(range(5))


@pytest.mark.usefixtures("_tblite")
def test_a_set_that_cannot_be_filled_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gave only 3 of 30"):
        _make(_Pool([_outcome("a", 3, "A")]), 30, tmp_path / "set")


def test_molecules_fall_on_one_side_only() -> None:
    assert not allowed_in_pretraining(malonaldehyde())
    assert not allowed_in_pretraining(dipeptide())
    rng = np.random.default_rng(0)
    sides: Counter[tuple[bool, bool]] = Counter()
    for _ in range(150):
        try:
            atoms = assemble_molecule(rng)
        except DemoFailure:
            continue
        assert atoms.numbers.sum() % 2 == 0  # closed shells
        sides[kept_for_properties(atoms), allowed_in_pretraining(atoms)] += 1
    assert sides[True, True] == 0
    assert min(sides[True, False], sides[False, True]) > 20


@pytest.mark.usefixtures("_tblite")
def test_metadata_of_a_set_are_plain_json(tmp_path: Path) -> None:
    for entry in SETS.values():
        with StoreWriter(tmp_path / entry.name, generate.metadata(entry, 0, 1, "")):
            pass
