"""The store: what goes in comes out, in any process; damage is told."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings

from jmp_ds.data.codec import decode, encode
from jmp_ds.data.record import Record
from jmp_ds.data.store import Store, StoreIncomplete, StoreWriter, group_hash
from jmp_ds.errors import UserError


def a_record(seed: int, natoms: int | None = None, group: str = "") -> Record:
    rng = np.random.default_rng(seed)
    n = natoms or int(rng.integers(1, 9))
    return Record(
        pos=rng.normal(size=(n, 3)),
        atomic_numbers=rng.choice([1, 6, 8, 78], n).astype(np.uint8),
        cell=rng.normal(size=(3, 3)),
        pbc=rng.random(3) < 0.5,
        labels={"energy": np.array(rng.normal()), "forces": rng.normal(size=(n, 3))},
        tags=rng.integers(0, 3, n).astype(np.uint8),
        fixed=rng.random(n) < 0.3,
        id=f"s{seed}",
        group=group,
        info={"step": seed, "note": "ü"},
    )


def assert_same(a: Record, b: Record) -> None:
    for name in ("pos", "atomic_numbers", "cell", "pbc", "tags", "fixed"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        assert np.array_equal(x, y), name
    assert set(a.labels) == set(b.labels)
    for name in a.labels:
        assert np.shape(a.labels[name]) == np.shape(b.labels[name])
        assert np.array_equal(a.labels[name], b.labels[name])
    assert (a.id, a.group, dict(a.info)) == (b.id, b.group, dict(b.info))


def write(path: Path, count: int, shard_size: int = 7, block: int = 5) -> list[Record]:
    records = [a_record(i, group=f"g{i // 3}" if i % 2 else "") for i in range(count)]
    with StoreWriter(path, {"level_of_theory": "toy"}, shard_size=shard_size) as writer:
        for start in range(0, count, block):
            writer.append(records[start : start + block])
    return records


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_codec_is_exact(seed: int) -> None:
    record = a_record(seed)
    out = decode(encode(record))
    assert_same(record, out)
    out.pos[0] = 0.0  # fresh and writable


def test_codec_keeps_defaults_scalars_and_stress() -> None:
    plain = a_record(1)
    record = Record(
        **{
            **plain.__dict__,
            "tags": np.full(plain.natoms, 2, np.uint8),
            "fixed": np.zeros(plain.natoms, bool),
            "labels": {"stress": np.arange(6.0), "gap": np.array(0.1)},
        }
    )
    assert_same(record, decode(encode(record)))


@pytest.mark.parametrize("data", [b"", b"\x00", msgpack.packb([99, "x"]), pickle.dumps({"pos": 1})])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UserError):
        decode(data)


@pytest.mark.parametrize("count", [0, 1, 7, 14, 23])
def test_round_trip_over_shards(tmp_path: Path, count: int) -> None:
    records = write(tmp_path / "s", count)
    store = Store(tmp_path / "s")
    assert len(store) == count
    assert store.natoms.tolist() == [r.natoms for r in records]
    assert store.groups.tolist() == [group_hash(r.group) for r in records]
    assert store.metadata == {"level_of_theory": "toy"}
    assert store.elements == tuple(sorted({int(z) for r in records for z in r.atomic_numbers}))
    assert store.summary.labels == ({"energy": count, "forces": count} if count else {})
    for i in np.random.default_rng(0).permutation(count):
        assert_same(records[i], store[i])
    for a, b in zip(records[2:9], store.range(2, 9), strict=True):
        assert_same(a, b)
    assert [r.id for r in store] == [r.id for r in records]
    with pytest.raises(IndexError):
        store[count]
    with pytest.raises(IndexError):
        store[-1]


def test_map_grows(tmp_path: Path) -> None:
    big = [a_record(i, natoms=40_000) for i in range(20)]  # 40 MB, more than the first map
    with StoreWriter(tmp_path / "s", {}) as writer:
        writer.append(big[:2])
        writer.append(big[2:])
    store = Store(tmp_path / "s")
    assert_same(store[19], big[19])
    assert len(store.summary.shards) == 1


def test_cut_off_while_writing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Record]:
        yield from (a_record(i) for i in range(5))
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), StoreWriter(tmp_path / "s", {}, shard_size=2) as writer:
        writer.append(interrupted())
    with pytest.raises(StoreIncomplete, match="cut off while it was written"):
        Store(tmp_path / "s")
    with pytest.raises(UserError, match="there is a store already"):
        StoreWriter(tmp_path / "s", {})
    with StoreWriter(tmp_path / "s", {}, overwrite=True) as writer:
        writer.append([a_record(9)])
    assert [r.id for r in Store(tmp_path / "s")] == ["s9"]


def test_killed_writer_leaves_an_incomplete_store(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        writer = StoreWriter(tmp_path / "s", {}, shard_size=2)
        writer.append([a_record(i) for i in range(5)])
        os._exit(9)
    os.waitpid(pid, 0)
    with pytest.raises(StoreIncomplete):
        Store(tmp_path / "s")


def test_damage_is_told(tmp_path: Path) -> None:
    write(tmp_path / "s", 20)
    shard = tmp_path / "s" / "shard-00001.lmdb"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreIncomplete, match=r"shard-00001.lmdb has \d+ bytes instead of"):
        Store(tmp_path / "s")
    shard.unlink()
    with pytest.raises(StoreIncomplete, match="missing"):
        Store(tmp_path / "s")


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store here"):
        Store(tmp_path)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="other files"):
        StoreWriter(tmp_path, {}, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(UserError, match="JSON"):
        StoreWriter(tmp_path / "s", {"x": object()})
    write(tmp_path / "t", 1)
    marker = tmp_path / "t" / "complete.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Store(tmp_path / "t")


def test_replacing_a_store_that_is_open(tmp_path: Path) -> None:
    write(tmp_path / "s", 5)
    old = Store(tmp_path / "s")
    assert old[0].id == "s0"
    with StoreWriter(tmp_path / "s", {}, overwrite=True) as writer:
        writer.append([a_record(77)])
    assert Store(tmp_path / "s")[0].id == "s77"


def test_two_stores_on_the_same_files(tmp_path: Path) -> None:
    records = write(tmp_path / "s", 9)
    a, b = Store(tmp_path / "s"), Store(tmp_path / "s")
    assert_same(a[8], records[8])
    assert_same(b[8], records[8])
    c = pickle.loads(pickle.dumps(a))
    del a, b
    assert_same(c[3], records[3])


def _ids(store: Store, order: list[int], queue: multiprocessing.Queue[list[str]]) -> None:
    queue.put([store[i].id for i in order])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_many_processes(tmp_path: Path, method: str) -> None:
    write(tmp_path / "s", 30)
    store = Store(tmp_path / "s")
    assert store[4].id == "s4"  # opened here before the fork
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    order = np.random.default_rng(1).permutation(30).tolist()
    processes = [context.Process(target=_ids, args=(store, order, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert results == [[f"s{i}" for i in order]] * 2
    assert store[29].id == "s29"  # and still usable here


def test_a_flipped_bit_in_a_record_is_told(tmp_path: Path) -> None:
    """Wherever it is in a record: its numbers would otherwise be trained on."""
    with StoreWriter(tmp_path / "store", {"level_of_theory": "made up"}) as writer:
        writer.append([a_record(i) for i in range(3)])
    content = encode(a_record(1))
    rng = np.random.default_rng(0)
    for _ in range(50):
        position, bit = int(rng.integers(len(content))), int(rng.integers(8))
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        with pytest.raises(UserError):
            decode(bytes(changed))
    (file,) = (tmp_path / "store").glob("shard-*")
    path = file if file.is_file() else file / "data.mdb"
    where = path.read_bytes()
    number = a_record(1).pos[0, 0].tobytes()
    assert where.count(number) >= 1
    at = where.rindex(number)
    path.write_bytes(where[:at] + bytes([where[at] ^ 1]) + where[at + 1 :])
    with pytest.raises(UserError, match=r"record \d in shard-00000\S*: it has changed since it was written"):
        list(Store(tmp_path / "store"))


def test_records_of_the_first_layout_are_read() -> None:
    record = a_record(2)
    _, _, content = msgpack.unpackb(encode(record), use_list=False)
    old = msgpack.packb((1, *msgpack.unpackb(content, use_list=False)))
    assert np.array_equal(decode(old).pos, record.pos)
    assert decode(old).id == record.id


@pytest.mark.parametrize("name", ["complete.json", "metadata.json", "natoms.npy", "groups.npy"])
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\x93NUMPY\x01\x00v\x00{'descr'", b"[]"])
def test_a_damaged_file_beside_the_shards_is_told_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    with StoreWriter(tmp_path / "s", {}) as writer:
        writer.append([a_record(1)])
    (tmp_path / "s" / name).write_bytes(content)

    def read() -> int:
        store = Store(tmp_path / "s")
        return len(store.natoms) + len(store.groups)

    with pytest.raises(UserError, match=rf"{name} is damaged or missing") as caught:
        read()
    assert "again" in str(caught.value)
