"""Published splits: the positions scikit-learn and NumPy give, over the source and not the store; and leaks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from typer.testing import CliRunner

from jmp_ds.cli.app import app
from jmp_ds.data import published
from jmp_ds.data.convert import ConvertOptions, convert
from jmp_ds.data.leaks import Part, content_hash, leaks
from jmp_ds.data.published import PublishedSplit, make, of_store, plain_folds, positions, stratified_folds
from jmp_ds.data.record import make_record
from jmp_ds.data.store import Store, StoreWriter
from jmp_ds.errors import UserError


def frames(folder: Path, count: int = 1100, bad: tuple[int, ...] = ()) -> Store:
    """A trajectory of ethanol, as a store that lacks the bad frames."""
    rng = np.random.default_rng(0)
    ethanol = molecule("CH3CH2OH")
    pos = ethanol.positions + rng.normal(0, 0.05, (count, 9, 3))
    for i in bad:
        pos[i, 1] = pos[i, 0]
    np.savez(folder / "a.npz", z=ethanol.numbers, R=pos, E=np.zeros((count, 1)), F=rng.normal(0, 20, (count, 9, 3)))
    options = ConvertOptions(progress=False, trust_units=True, max_bad=100)
    convert([folder / "a.npz"], folder / "s", "md17", options=options)
    return Store(folder / "s")


def test_the_shuffle_is_numpys(tmp_path: Path) -> None:
    order = np.arange(1100)
    np.random.RandomState(42).shuffle(order)
    parts = of_store(published.published("rmd17"), frames(tmp_path))
    assert {k: len(v) for k, v in parts.items()} == {"train": 950, "val": 50, "test": 100}
    assert parts["train"].tolist() == sorted(order[:950].tolist())
    assert parts["test"].tolist() == sorted(order[1000:].tolist())


def test_positions_are_those_of_the_source(tmp_path: Path) -> None:
    store = frames(tmp_path, bad=(3, 700))
    assert len(store) == 1098
    assert positions(store)[[0, 2, 3, 1097]].tolist() == [0, 2, 4, 1099]
    whole = make(published.published("rmd17"), 1100)
    parts = of_store(published.published("rmd17"), store)
    for name, part in parts.items():
        assert positions(store)[part].tolist() == [p for p in whole[name].tolist() if p not in (3, 700)]


def test_sizes() -> None:
    parts = make(published.published("qm9"), 130_831)
    assert {k: len(v) for k, v in parts.items()} == {"train": 110_831, "val": 10_000, "test": 10_000}
    order = np.arange(130_831)
    np.random.RandomState(42).shuffle(order)
    assert parts["val"].tolist() == sorted(order[110_831:120_831].tolist())
    assert {k: len(v) for k, v in make(published.published("qmof"), 20_375).items()} == {
        "train": 16_300,
        "val": 2_037,
        "test": 2_038,
    }
    with pytest.raises(UserError, match="asks for more"):
        make(published.published("rmd17"), 900)


#: SHA-256 (16 digits) over the folds as text, from scikit-learn 1.9.1: KFold(5, shuffle=True, random_state=18012019).
KFOLD = {23: "1a3a44822a83b67c", 636: "84aabf1aa2145e75", 1265: "02d5bf82eb1db25c"}
#: The same from StratifiedKFold, for the classes that the test makes.
STRATIFIED = {23: "cb9564fb2aa32b47", 636: "8026947c24bfdf0e", 1265: "bc8fb0520cf15520"}


def text_of(owner: np.ndarray) -> str:
    return hashlib.sha256(" ".join(map(str, owner.tolist())).encode()).hexdigest()[:16]


@pytest.mark.parametrize("count", KFOLD)
def test_folds_are_those_of_scikit_learn(count: int) -> None:
    assert text_of(plain_folds(count, 5, 18012019)) == KFOLD[count]


@pytest.mark.parametrize("count", STRATIFIED)
def test_stratified_folds_are_those_of_scikit_learn(count: int) -> None:
    classes = (np.arange(count) * 7919 % 13 < 5).astype(int)
    assert text_of(stratified_folds(classes, 5, 18012019)) == STRATIFIED[count]


def test_every_structure_is_tested_once() -> None:
    how = published.published("matbench")
    folds = [make(how, 636, fold=k) for k in range(5)]
    assert sorted(np.concatenate([f["test"] for f in folds])) == list(range(636))
    for fold in folds:
        assert sorted(np.concatenate(list(fold.values()))) == list(range(636))
        assert len(fold["train"]) == int(0.9 * (636 - len(fold["test"])))
    with pytest.raises(UserError, match="folds 0 to 4"):
        make(how, 636)
    with pytest.raises(UserError, match="classes of label 'y'"):
        make(published.published("matbench-is-metal"), 100, fold=0)


def test_balanced_folds_of_a_store(tmp_path: Path) -> None:
    classes = [int(i % 3 == 0) for i in range(60)]
    with StoreWriter(tmp_path / "s", {}) as writer:
        writer.append(
            make_record(pos=[[0, 0, i]], atomic_numbers=[1], id=f"t#{i}", labels={"y": classes[i]}) for i in range(60)
        )
    parts = of_store(published.published("matbench-is-metal"), Store(tmp_path / "s"), fold=2)
    assert sum(classes[i] for i in parts["test"]) == 4
    assert len(parts["test"]) == 12


def test_every_recipe_can_be_read() -> None:
    import yaml

    names = yaml.safe_load(published.SPLITS.read_text())
    for name in names:
        how = published.published(name)
        assert isinstance(how, PublishedSplit)
        assert how.note
    with pytest.raises(UserError, match="no published split 'nope'; there are "):
        published.published("nope")


def test_stores_of_several_files_and_stores_without_positions(tmp_path: Path) -> None:
    record = {"atomic_numbers": [1], "labels": {"y": 0}}
    with StoreWriter(tmp_path / "two", {}) as writer:
        writer.append(make_record(pos=[[0, 0, i]], id=f"{n}#0", **record) for i, n in enumerate("ab"))
    with pytest.raises(UserError, match="several files"):
        positions(Store(tmp_path / "two"))
    with StoreWriter(tmp_path / "named", {"skipped": {"shape": 1}}) as writer:
        writer.append([make_record(pos=[[0, 0, 0]], id="aspirin", **record)])
    with pytest.raises(UserError, match="does not say where"):
        positions(Store(tmp_path / "named"))


# Leaks ------------------------------------------------------------------------------------------------------------------


def test_content_does_not_depend_on_how_it_is_written() -> None:
    rng = np.random.default_rng(2)
    ethanol = molecule("CH3CH2OH")
    one = make_record(pos=ethanol.positions, atomic_numbers=ethanol.numbers, id="a")
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(9)
    other = make_record(pos=(ethanol.positions @ turn + 5)[order], atomic_numbers=ethanol.numbers[order], id="b")
    assert content_hash(one) == content_hash(other)
    moved = ethanol.positions.copy()
    moved[0, 0] += 0.02
    assert content_hash(make_record(pos=moved, atomic_numbers=ethanol.numbers, id="c")) != content_hash(one)
    swapped = ethanol.numbers.copy()
    swapped[[0, 2]] = swapped[[2, 0]]
    assert content_hash(make_record(pos=ethanol.positions, atomic_numbers=swapped, id="d")) != content_hash(one)
    salt = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    fields = {"atomic_numbers": salt.numbers, "cell": salt.cell.array, "pbc": True}
    crystal = make_record(pos=salt.positions, id="e", **fields)
    wrapped = make_record(pos=salt.positions + salt.cell.array[0] - 1e-7, id="f", **fields)
    assert content_hash(crystal) == content_hash(wrapped)
    assert content_hash(make_record(pos=salt.positions + 0.01, id="g", **fields)) != content_hash(crystal)


def made(path: Path, rows: list[tuple[str, str, float]]) -> Store:
    """(id, group, bond length) of diatomics."""
    with StoreWriter(path, {}) as writer:
        writer.append(
            make_record(pos=[[0, 0, 0], [0, 0, length]], atomic_numbers=[6, 8], id=i, group=g, labels={"y": 0})
            for i, g, length in rows
        )
    return Store(path)


def test_leaks_of_every_kind(tmp_path: Path) -> None:
    store = made(tmp_path / "s", [("a", "m", 1.0), ("b", "m", 1.1), ("c", "", 1.2), ("d", "", 1.0), ("a", "", 1.5)])
    parts = [
        Part("train", store, np.array([0, 2])),
        Part("val", store, np.array([1])),
        Part("test", store, np.array([3, 4])),
    ]
    found = {(x.kind, x.parts): (x.count, x.example) for x in leaks(parts)}
    assert found == {
        ("group", ("train", "val")): (1, ("a", "b")),
        ("structure", ("train", "test")): (1, ("a", "d")),
        ("id", ("train", "test")): (1, ("a", "a")),
    }
    assert leaks([Part("one", store, np.array([0])), Part("two", store, np.array([2]))]) == []


def test_ids_of_two_stores_may_be_alike(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a", [("x#0", "", 1.0)]), made(tmp_path / "b", [("x#0", "", 1.4)])
    assert leaks([Part("a", one, np.array([0])), Part("b", two, np.array([0]))]) == []


def test_the_command_lines(tmp_path: Path) -> None:
    store = frames(tmp_path, 1100)
    run = CliRunner().invoke(app, ["data", "split", str(store.path), str(tmp_path / "o"), "--published", "rmd17"])
    assert run.exit_code == 0, run.output
    assert "no structure, id or group is in two parts" in run.output
    assert len(np.load(tmp_path / "o/train.npy")) == 950
    told = json.loads((tmp_path / "o/split.json").read_text())
    assert told["sizes"] == {"train": 950, "val": 50, "test": 100}
    assert told["leaks"] == []
    assert told["store"] == store.summary.fingerprint
    again = CliRunner().invoke(app, ["data", "split", str(store.path), str(tmp_path / "o"), "--published", "rmd17"])
    assert again.exit_code == 2
    shares = ["--part", "train=0.9", "--part", "test=0.1", "--by", "structure"]
    run = CliRunner().invoke(app, ["data", "split", str(store.path), str(tmp_path / "p"), *shares])
    assert run.exit_code == 0, run.output
    files = [f"{n}={store.path}:{tmp_path / 'o' / n}.npy" for n in ("train", "test")]
    assert CliRunner().invoke(app, ["data", "leaks", *files]).exit_code == 0
    run = CliRunner().invoke(app, ["data", "leaks", files[0], str(store.path)])
    assert run.exit_code == 1
    assert "structure" in run.output
