"""Readers of published layouts: pickled LMDB and lists, ASE databases in LMDB, QM9 of PyG, QMOF, PDBBind."""

from __future__ import annotations

import os
import pickle
import zlib
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from jmp_ds.data.convert import ConvertOptions, convert
from jmp_ds.data.readers import reader
from jmp_ds.data.readers.base import ReaderOptions
from jmp_ds.data.readers.json_items import items
from jmp_ds.data.readers.pdbbind import pdb_atoms, sdf_atoms
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("oc22", [False, True])
def test_s2ef_records(tmp_path: Path, read, old: bool, oc22: bool) -> None:
    found = read("ocp", layouts.s2ef_lmdb(tmp_path / "data.0000.lmdb", oc22=oc22, old=old))
    assert len(found) == 7
    for i, record in enumerate(found.records):
        wanted = layouts.slab_fields(i, oc22=oc22)
        np.testing.assert_array_equal(record.pos, wanted["pos"].numpy())
        np.testing.assert_array_equal(record.labels["forces"], wanted["force"].numpy())
        assert record.labels["energy"] == wanted["y"]
        assert record.tags.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert record.fixed.tolist() == [True] * 4 + [False] * 8
        assert record.pbc.all()
        np.testing.assert_array_equal(record.cell, wanted["cell"][0].numpy())
        assert (record.id, record.group) == (f"data.0000.lmdb#{i}", str(100 + i // 3))
        assert record.info["fid"] == i


def test_lmdb_without_length_and_in_portions(tmp_path: Path, read) -> None:
    path = layouts.s2ef_lmdb(tmp_path / "a.lmdb", length=False)
    assert reader("ocp").units(path, ReaderOptions()) == (7, 5000)
    assert [r.id for r in read("ocp", path, span=(2, 5)).records] == ["a.lmdb#2", "a.lmdb#3", "a.lmdb#4"]


def test_lmdb_that_claims_or_lacks_records(tmp_path: Path, read) -> None:
    record = pickle.dumps(Data(**layouts.slab_fields(0)))
    path = layouts.write_lmdb(tmp_path / "a.lmdb", {"0": record, "length": pickle.dumps(10**9)})
    with pytest.raises(UserError, match="says 1000000000 records, the file holds 1"):
        read("ocp", path)
    path = layouts.write_lmdb(tmp_path / "b.lmdb", {"0": record, "2": record})
    with pytest.raises(UserError, match="no record 1 of 2"):
        read("ocp", path)


def test_a_payload_in_an_lmdb_stops_the_conversion(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/witness",)

    values = {"0": pickle.dumps(Data(**layouts.slab_fields(0))), "1": pickle.dumps(Payload())}
    layouts.write_lmdb(tmp_path / "a.lmdb", values)
    with pytest.raises(UserError, match=r"a\.lmdb: record 1 names posix\.system"):
        convert([tmp_path / "a.lmdb"], tmp_path / "s", "ocp", options=ConvertOptions(progress=False))
    layouts.write_lmdb(tmp_path / "b.lmdb", {"0": values["0"], "length": pickle.dumps(Payload())})
    with pytest.raises(UserError, match="length"):
        convert([tmp_path / "b.lmdb"], tmp_path / "s", "ocp", options=ConvertOptions(progress=False))
    assert not (tmp_path / "witness").exists()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("how", ["pickle", "zip", "stream"])
def test_lists_of_molecular_records(tmp_path: Path, read, how: str) -> None:
    listed = [Data(**layouts.conformer_fields(i)) for i in range(5)]
    path = tmp_path / ("a.pkl" if how == "pickle" else "a.pt")
    if how == "pickle":
        path.write_bytes(pickle.dumps(listed))
    elif how == "zip":
        torch.save(listed, path)
    else:
        torch.save(listed, path, _use_new_zipfile_serialization=False)
    found = read("ocp", path)
    assert [r.labels["energy"].item() for r in found.records] == [-2080.0 + 0.1 * i for i in range(5)]
    assert [r.group for r in found.records] == ["0", "0", "1", "1", "2"]
    assert not found[0].pbc.any()
    assert (found[0].tags == 2).all()


def test_records_that_make_no_sense_are_left_out(tmp_path: Path, read) -> None:
    good = layouts.conformer_fields(0)
    bad = [
        {**good, "force": torch.zeros(2, 3)},
        {"y": 1.0},
        {**good, "y": float("nan")},
        {**good, "tags": torch.ones(3) * 7},
    ]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([Data(**fields) for fields in [good, *bad]] + [17]))
    found = read("ocp", path)
    assert len(found) == 1
    assert found.codes == ["shape", "unreadable", "not_finite", "bad_tag", "unreadable"]


def test_the_published_frames_of_transition1x(shared_data: Path, read, tmp_path: Path) -> None:
    path = shared_data / "pretrain_transition1x/trans1x_pickle16_val.pkl"
    found = read("ocp", path)
    assert len(found) == 16
    assert found[0].labels["energy"] == pytest.approx(-9873.484569181357)
    assert not any(record.pbc.any() for record in found.records)
    report = convert([path], tmp_path / "s", "ocp", options=ConvertOptions(progress=False))
    assert len(Store(tmp_path / "s")) == report.written == 16


@pytest.mark.parametrize("marked", [False, True])
def test_ase_databases_in_lmdb(tmp_path: Path, read, marked: bool) -> None:
    frames = [layouts.labelled_slab(i) for i in range(5)]
    path = layouts.aselmdb(tmp_path / "a.aselmdb", frames, marked=marked, deleted=(2,))
    found = read("aselmdb", path)
    assert len(found) == 4
    for record, atoms in zip(found.records, [frames[0], *frames[2:]], strict=True):
        np.testing.assert_allclose(record.pos, atoms.positions, atol=1e-12)
        assert record.labels["energy"] == atoms.calc.results["energy"]
        np.testing.assert_allclose(record.labels["forces"], atoms.calc.results["forces"])
        np.testing.assert_allclose(record.labels["stress"], atoms.calc.results["stress"])
        assert record.fixed.tolist() == [True, False, False]
        assert record.group.startswith("s")
    assert reader("aselmdb").units(path, ReaderOptions())[0] == 4
    assert len(read("aselmdb", path, span=(1, 3))) == 2


def test_ase_databases_that_are_none(tmp_path: Path, read) -> None:
    bomb = zlib.compress(b" " * (300 << 20))
    path = layouts.write_lmdb(tmp_path / "a.aselmdb", {"1": b"no zlib", "2": bomb, "3": zlib.compress(b'{"a": 1}')})
    assert read("aselmdb", path).codes == ["unreadable"] * 3
    with pytest.raises(UserError, match="format ocp"):
        read("aselmdb", layouts.s2ef_lmdb(tmp_path / "b.lmdb", length=True))


def test_qm9_of_pyg(tmp_path: Path, read) -> None:
    found = read("qm9-pyg", layouts.qm9_pyg(tmp_path / "qm9_v3.pt"))
    assert len(found) == 5
    assert list(found[0].labels)[:6] == ["mu", "alpha", "eps_HOMO", "eps_LUMO", "delta_eps", "R_2_Abs"]
    assert found[2].labels["U_0"] == 207.0
    assert found[2].labels["C"] == 218.0
    assert (found[2].id, found[2].info["name"]) == ("qm9_v3#2", "gdb_3")
    torch.save({"a": 1}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="format ocp"):
        read("qm9-pyg", tmp_path / "b.pt")


@pytest.mark.parametrize("flat", [False, True])
def test_qmof(tmp_path: Path, read, flat: bool) -> None:
    folder = layouts.qmof(tmp_path / "q", flat=flat)
    found = read("qmof", folder)
    assert [record.labels["gap"].item() for record in found.records] == [1.5, 2.5, 3.5]
    assert found.codes == ["missing_label"]
    assert found[1].info["position"] == 1
    assert found[1].id == "qmof-0000001"
    np.testing.assert_allclose(found[1].pos[1], 9.0 / 4)
    both = read("qmof", folder, labels=["e=outputs.pbe.energy_total:eV"])
    assert [record.labels["e"].item() for record in both.records] == [-100.0, -101.0, -102.0, -103.0]
    (folder / "qmof.json").unlink()
    with pytest.raises(UserError, match=r"holds no qmof\.json"):
        read("qmof", folder)


def test_lists_of_json_are_read_entry_by_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = [{"a": [1, 2, {"b": "]},["}]}, 3, -4.5e3, "ö" * 3_000_000, None, True, [], 123456]
    import json

    for indent in (None, 2):
        path.write_text(json.dumps(values, indent=indent, ensure_ascii=False))
        assert list(items(path)) == values
    for text in ("{}", "", "[1, 2", "[1, }", '["a'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.json"):
            list(items(path))


def test_pdbbind(tmp_path: Path, read) -> None:
    folder = layouts.pdbbind(tmp_path / "p")
    found = read("pdbbind", folder)
    assert found.codes == ["unreadable"]
    assert [record.id for record in found.records] == ["1abc", "2xyz"]
    assert found[0].atomic_numbers.tolist() == [6, 17, 1, 7, 6, 30, 8]
    assert found[0].pos[5].tolist() == [20.0, 12.0, 13.0]
    assert found[1].labels["affinity"] == 5.5
    assert found[0].info["ligand_atoms"] == 3
    assert not found[0].pbc.any()
    assert (found[0].tags == 2).all()
    assert read("pdbbind", folder, level="ligand")[0].natoms == 3
    with pytest.raises(UserError, match="INDEX"):
        read("pdbbind", folder / "1abc")


def test_texts_of_molecules() -> None:
    v3000 = "x\n\n\n  0  0  0     0  0            999 V3000\nM  V30 BEGIN CTAB\nM  V30 BEGIN ATOM\n"
    v3000 += "M  V30 1 Br 1.5 2.5 3.5 0\nM  V30 END ATOM\nM  V30 END CTAB\nM  END\n"
    assert sdf_atoms(v3000) == (["Br"], [[1.5, 2.5, 3.5]])
    for text in ("", "a\nb\nc\n  2  0 V2000\n", "a\nb\nc\nxyz\n"):
        with pytest.raises(ValueError, match="SDF"):
            sdf_atoms(text)
    with pytest.raises(ValueError, match="no atoms"):
        pdb_atoms("END\n")
