"""What is told about a store, and that damage within files is found."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import pytest

from jmp_ds.data.codec import encode
from jmp_ds.data.inspect import Table, check, problem_table, show, show_record
from jmp_ds.data.record import Record, make_record
from jmp_ds.data.references import fit_statistics, save_statistics
from jmp_ds.data.store import Store, StoreWriter
from jmp_ds.errors import UserError


def a_store(path: Path, count: int = 6) -> Store:
    rng = np.random.default_rng(0)
    with StoreWriter(path, {"level_of_theory": "toy", "authors": ["A", "B"]}, shard_size=4) as writer:
        writer.append(
            make_record(
                pos=np.arange(9.0).reshape(3, 3) + rng.normal(size=(3, 3)) * 0.1,
                atomic_numbers=[8, 1, 1],
                id=f"w{i}",
                group="water" if i < 4 else "",
                labels={"energy": -14.0 + i, "forces": rng.normal(size=(3, 3))},
                info={"step": i},
            )
            for i in range(count)
        )
    return Store(path)


def cells(tables: list[Table]) -> dict[str, tuple[str, ...]]:
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    return {row[0]: row[1:] for table in tables for row in table.rows}


def test_show(tmp_path: Path) -> None:
    store = a_store(tmp_path / "s")
    told = cells(show(store))
    assert told["structures"] == ("6",)
    assert told["groups for splits"] == ("1 groups, 2 structures without",)
    assert told["energy"][:3] == ("eV", "6", "?")
    assert told["level_of_theory"] == ("toy",)
    assert told["authors"] == ("A, B",)
    save_statistics(store, fit_statistics(store))
    told = cells(show(store))
    assert told["energy"][-1] == "yes"
    assert told["O"][:2] == ("8", "6")
    assert float(told["O"][2]) < 0


def test_show_one_structure(tmp_path: Path) -> None:
    store = a_store(tmp_path / "s")
    told = cells(show_record(store, 5))
    assert told["id"] == ("w5",)
    assert told["formula"] == ("OH2",)
    assert told["step"] == ("5",)
    assert told["energy"] == ("()", "-9", "eV")
    with pytest.raises(UserError, match="0 to 5"):
        show_record(store, 6)


def test_a_sound_store_has_no_problems(tmp_path: Path) -> None:
    assert check(a_store(tmp_path / "s")) == []
    with StoreWriter(tmp_path / "empty", {}):
        pass
    assert check(Store(tmp_path / "empty")) == []
    show(Store(tmp_path / "empty"))


def test_flipped_byte_is_found(tmp_path: Path) -> None:
    store = a_store(tmp_path / "s")
    shard = tmp_path / "s" / "shard-00001.lmdb"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    assert [(p.code, p.where) for p in check(store, records=False)] == [("checksum", "shard-00001.lmdb")]


def test_wrong_contents_are_found(tmp_path: Path) -> None:
    store = a_store(tmp_path / "s")
    good = store[1]
    nan = Record(**{**good.__dict__, "labels": {"energy": np.array(np.nan)}})
    longer = make_record(pos=np.eye(4, 3) * 3 + np.arange(4)[:, None], atomic_numbers=[1] * 4, id="other", group="x")
    del store
    shard = tmp_path / "s" / "shard-00000.lmdb"
    size = shard.stat().st_size
    environment = lmdb.open(str(shard), subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for i, value in enumerate([encode(nan), encode(longer), b"rubbish"]):
            transaction.put(i.to_bytes(8, "big"), value)
    environment.close()
    marker = tmp_path / "s" / "complete.json"  # a change of size alone would be told when the store is opened
    marker.write_text(marker.read_text().replace(f'"bytes": {size}', f'"bytes": {shard.stat().st_size}', 1))
    natoms = np.load(tmp_path / "s" / "natoms.npy")
    assert len(natoms) == 6
    problems = check(Store(tmp_path / "s"))
    codes = {(p.code, p.where.split(" (")[0]) for p in problems}
    assert codes == {
        ("checksum", "shard-00000.lmdb"),
        ("not_finite", "structure 0"),
        ("natoms", "structure 1"),
        ("groups", "structure 1"),
        ("unreadable", "structure 2"),
    }
    table = problem_table(problems)
    assert len(table.rows) == 5
    assert all(row[1] == "1" for row in table.rows)
    np.save(tmp_path / "s" / "natoms.npy", natoms[:4])
    found = [p for p in check(Store(tmp_path / "s")) if p.code == "array"]
    assert [p.where for p in found] == ["natoms.npy"]
    assert "4" in found[0].message
    (tmp_path / "s" / "groups.npy").write_bytes(b"cut")
    assert [p.where for p in check(Store(tmp_path / "s")) if p.code == "array"] == ["natoms.npy", "groups.npy"]


def test_statistics_of_other_contents_are_found(tmp_path: Path) -> None:
    save_statistics(a_store(tmp_path / "a", 5), fit_statistics(a_store(tmp_path / "b", 5)))
    other = a_store(tmp_path / "c", 6)
    (tmp_path / "c" / "statistics.json").write_text((tmp_path / "a" / "statistics.json").read_text())
    assert [p.code for p in check(other)] == ["statistics"]
