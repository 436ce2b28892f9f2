"""Text formats: S2EF, QM9, QM7, molecules in text blocks, mlearn."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from jmp_ds.errors import UserError

HARTREE = 27.211386
KCAL = 1 / 23.0605478


def s2ef(folder: Path, lines: str, frames: list[Atoms], columns: list[str]) -> Path:
    """A pair of files as published."""
    text = io.StringIO()
    write(text, frames, format="extxyz", columns=columns)
    (folder / "0.extxyz.xz").write_bytes(lzma.compress(text.getvalue().encode()))
    (folder / "0.txt.xz").write_bytes(lzma.compress(lines.encode()))
    return folder / "0.extxyz.xz"


def relaxation(count: int = 2) -> list[Atoms]:
    frames = []
    for i in range(count):
        atoms = fcc111("Cu", (1, 1, 3), vacuum=6.0)
        atoms.set_tags([0, 1, 2])
        atoms.set_constraint(FixAtoms([0]))
        forces = np.full((3, 3), i + 1.0)
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - i, free_energy=-20.0, forces=forces)
        frames.append(atoms)
    return frames


WITH_TAGS = ["symbols", "positions", "move_mask", "tags", "forces"]


def test_s2ef_subtracts_the_reference_and_keeps_tags(tmp_path: Path, read: Any) -> None:
    path = s2ef(tmp_path, "random7,frame0,-8.5\nrandom7,frame12,-8.5\n", relaxation(), WITH_TAGS)
    found = read("s2ef", path)
    assert [r.labels["energy"].item() for r in found.records] == [-1.5, -2.5]
    assert [r.id for r in found.records] == ["random7_frame0", "random7_frame12"]
    assert {r.group for r in found.records} == {"random7"}
    assert found[0].tags.tolist() == [0, 1, 2]
    assert found[0].fixed.tolist() == [True, False, False]
    np.testing.assert_array_equal(found[1].labels["forces"], np.full((3, 3), 2.0))
    assert found[0].info["ref_energy"] == -8.5
    assert "minus the reference" in found.facts["energy"]
    total = read("s2ef", path, level="total")
    assert total[0].labels["energy"] == -10.0
    assert total.facts["energy"] == "total energy"


def test_s2ef_without_tags_or_references(tmp_path: Path, read: Any) -> None:
    columns = ["symbols", "positions", "move_mask", "forces"]
    path = s2ef(tmp_path, "a,frame0,0.0\na,frame1,0.0\n", relaxation(), columns)
    found = read("s2ef", path)
    assert found[0].tags.tolist() == [2, 2, 2]
    assert found[0].labels["energy"] == -10.0
    assert found.facts["energy"] == "total energy"


@pytest.mark.parametrize(
    ("lines", "message"),
    [("a,frame0,0.0\n", "more entries"), ("a,f,0\na,f,0\na,f,0\n", "more entries"), ("a,frame0\n", "line 1: expected")],
)
def test_s2ef_whose_files_do_not_fit(tmp_path: Path, lines: str, message: str, read: Any) -> None:
    with pytest.raises(UserError, match=message):
        read("s2ef", s2ef(tmp_path, lines, relaxation(), WITH_TAGS))


def test_s2ef_alone(tmp_path: Path, read: Any) -> None:
    path = s2ef(tmp_path, "a,f,0\na,f,0\n", relaxation(), WITH_TAGS)
    (tmp_path / "0.txt.xz").unlink()
    with pytest.raises(UserError, match=r"0\.txt\.xz, is not beside"):
        read("s2ef", path)


METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\
\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 2.1*^-4\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def archives(folder: Path, name: str, files: dict[str, str]) -> Path:
    """The same files as a folder, a zip or a packed tar."""
    path = folder / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__MACOSX/._junk.xyz", "junk")
            for key, text in files.items():
                archive.writestr(key, text)
    elif ".tar" in name:
        with tarfile.open(path, "w:bz2" if name.endswith("bz2") else "w:gz") as tar:
            for key, text in files.items():
                info = tarfile.TarInfo(key)
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
    else:
        for key, text in files.items():
            (path / key).parent.mkdir(parents=True, exist_ok=True)
            (path / key).write_text(text)
    return path


@pytest.mark.parametrize("name", ["folder", "a.zip", "a.tar.bz2", "a.tar.gz"])
def test_qm9_as_published(tmp_path: Path, name: str, read: Any) -> None:
    path = archives(
        tmp_path, name, {"dsgdb9nsd_000001.xyz": METHANE, "dsgdb9nsd_000002.xyz": METHANE.replace("gdb 1", "gdb 2")}
    )
    found = read("qm9", path)
    assert [r.id for r in found.records] == ["dsgdb9nsd_000001", "dsgdb9nsd_000002"]
    labels = found[0].labels
    assert len(labels) == 15
    assert "energy" not in labels
    assert labels["U_0"] == pytest.approx(-40.47893 * HARTREE, rel=1e-7)
    assert labels["delta_eps"] == pytest.approx(labels["eps_LUMO"] - labels["eps_HOMO"], rel=1e-12)
    assert (labels["A"], labels["alpha"], labels["c_v"], labels["R_2_Abs"]) == (157.7118, 13.21, 6.469, 35.3641)
    assert found[0].pos[2, 2] == 2.1e-4, "numbers are written as 2.1*^-4 in these files"


def test_qm9_that_is_damaged(tmp_path: Path, read: Any) -> None:
    lines = METHANE.splitlines()
    short = "\n".join([lines[0], lines[1].rsplit("\t", 2)[0], *lines[2:]])
    path = archives(tmp_path, "folder", {"a.xyz": short, "b.xyz": "\n".join(lines[:4]), "c.xyz": METHANE})
    found = read("qm9", path)
    assert found.codes == ["unreadable"] * 2
    assert len(found) == 1


def test_archives_without_anything_of_the_kind(tmp_path: Path, read: Any) -> None:
    with pytest.raises(UserError, match=r"holds no file named \*\.xyz"):
        read("qm9", archives(tmp_path, "a.zip", {"readme.txt": "hello"}))
    with pytest.raises(UserError, match="no such file"):
        read("qm9", tmp_path / "absent")


def test_qm7_table_is_in_kcal(tmp_path: Path, read: Any) -> None:
    xyz = "2\ncharge = {}\nH 0 0 0\nH 0 0 0.74\n"
    files = {"hof_qm7.txt": "0001.xyz -104.5 -110.0\n0002.xyz 1 2\n", "qm7/0001.xyz": xyz.format(0)}
    files |= {"qm7/0002.xyz": xyz.format(1), "qm7/0003.xyz": xyz.format(0)}
    found = read("qm7", archives(tmp_path, "qm7.tar.gz", files))
    assert [r.id for r in found.records] == ["0001"]
    assert found[0].labels["energy"] == pytest.approx(-104.5 * KCAL, rel=1e-7)
    assert found[0].labels["energy_dftb"] == pytest.approx(-110.0 * KCAL, rel=1e-7)
    assert found.codes == ["charge_or_spin", "missing_label"]


BLOCKS = "m1\nO 0 0 0\nH 0 0 0.96\nH 0.92 0 -0.24\n-9.5 2.0\n\nm2\nH 0 0 0\nH 0 0 x\n-4.5 1.0\n"


def test_text_blocks_with_and_without_a_first_line(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.txt").write_text(BLOCKS)
    found = read("qdf", tmp_path / "a.txt", ["energy=0:kcal/mol", "gap=1:eV"])
    assert [r.id for r in found.records] == ["m1"]
    assert found[0].labels["energy"] == pytest.approx(-9.5 * KCAL, rel=1e-7)
    assert found[0].labels["gap"] == 2.0
    assert found.codes == ["unreadable"]
    with pytest.raises(UserError, match="name them by position"):
        read("qdf", tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("U0(kcalmol^-1) HOMO(eV)\n\n" + BLOCKS)
    named = read("qdf", tmp_path / "b.txt")
    assert named[0].labels["U0"] == pytest.approx(-9.5 * KCAL, rel=1e-7)
    assert named.facts == {"unit:U0": "eV", "unit:HOMO": "eV"}
    assert set(read("qdf", tmp_path / "b.txt", ["homo=HOMO:eV"])[0].labels) == {"homo"}
    with pytest.raises(UserError, match="neither a position"):
        read("qdf", tmp_path / "b.txt", ["homo=LUMO:eV"])


def test_mlearn(tmp_path: Path, read: Any) -> None:
    site = {"species": [{"element": "Mo", "occu": 1}], "abc": [0, 0, 0], "xyz": [0, 0, 0]}
    structure = {"lattice": {"matrix": [[3, 0, 0], [0, 3, 0], [0, 0, 3]]}, "sites": [site], "charge": None}
    outputs = {"energy": -10.0, "forces": [[0, 0, 1.0]], "virial_stress": [1, 2, 3, 4, 5, 6]}
    entries = [
        {"structure": structure, "outputs": outputs, "group": "Elastic"},
        {"structure": structure, "outputs": {}},
    ]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    found = read("mlearn", tmp_path / "a.json")
    assert set(found[0].labels) == {"energy", "forces"}
    assert found[0].info["group"] == "Elastic"
    assert found.codes == ["missing_label"]
    for text, message in (("{", "no JSON"), ("{}", "expected a list")):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read("mlearn", tmp_path / "b.json")


# Original files -------------------------------------------------------------------------------------------------------


def test_s2ef_file_equals_the_trajectories(shared_data: Path, read: Any) -> None:
    found = read("s2ef", shared_data / "pretrain_oc20/s2ef_extxyz/0.extxyz.xz")
    assert (len(found), found.codes, len({r.group for r in found.records})) == (588, [], 21)
    assert found.facts["energy"] == "total energy", "all references in this file are 0.0"
    trajectory = read("ase", shared_data / "pretrain_oc20/traj/random1000100.traj")
    for a, b in zip([r for r in found.records if r.group == "random1000100"], trajectory.records, strict=True):
        assert a.labels["energy"] == pytest.approx(b.labels["energy"].item(), abs=1e-7)
        np.testing.assert_allclose(a.labels["forces"], b.labels["forces"], atol=1e-7)
        np.testing.assert_array_equal(a.fixed, b.fixed)


def test_qm9_files(shared_data: Path, read: Any) -> None:
    folder = shared_data / "finetune_qm9"
    raw = read("qm9", folder / "raw_xyz")
    assert (len(raw), raw.codes) == (3, [])
    extended = read("qm9", folder / "qm9_reduced_100.xyz")
    assert (len(extended), extended.codes) == (100, [])
    assert extended[0].labels["U_0"] == pytest.approx(-40.47893 * HARTREE, rel=1e-7)
    # Molecule 5 is in both.
    for label, value in raw[0].labels.items():
        assert extended[4].labels[label] == pytest.approx(value.item(), rel=1e-9), label


def test_text_block_files(shared_data: Path, read: Any) -> None:
    folder = shared_data / "finetune_qm9"
    one = read("qdf", folder / "QM9under14atoms_atomizationenergy_eV/val.txt", ["energy=0:eV"])
    three = read("qdf", folder / "QM9_under14atoms_U0_HOMO_LUMO/data_test.txt")
    assert (len(one), one.codes, len(three), three.codes) == (1479, [], 880, [])
    assert one[0].labels["energy"] == -12.005860159799962
    # Where a molecule is in both, eV and kcal/mol agree.
    by_index = {int(r.id.split("_")[1]): r.labels["energy"] for r in one.records}
    both = [(by_index[i], r.labels["U0"]) for r in three.records if (i := int(r.id.split("_")[1])) in by_index]
    assert len(both) > 20
    np.testing.assert_allclose(*np.array(both).T, rtol=2e-4)


def test_qm7_file(shared_data: Path, read: Any) -> None:
    found = read("qm7", shared_data / "finetune_qm7/qm7.tar.gz")
    assert (len(found), found.codes) == (4943, [])
    assert found[0].labels["energy"] == pytest.approx(-417.031 * KCAL, rel=1e-7)
    assert found[0].atomic_numbers.tolist() == [6, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("file", "count"), [("Mo/training", 194), ("Mo/test", 23), ("Si/training", 214), ("Si/test", 25)]
)
def test_mlearn_files(shared_data: Path, file: str, count: int, read: Any) -> None:
    path = shared_data / f"pretrain_metals_mlearn/{file}.json"
    found = read("mlearn", path)
    assert (len(found), found.codes) == (count, [])
    for record, entry in zip(found.records, json.loads(path.read_text()), strict=True):
        assert record.labels["energy"] == entry["outputs"]["energy"]
        np.testing.assert_array_equal(record.labels["forces"], entry["outputs"]["forces"])
        np.testing.assert_allclose(record.pos[0], entry["structure"]["sites"][0]["xyz"], atol=1e-5)


def test_mlearn_shears_are_in_different_orders(shared_data: Path) -> None:
    """Why the stress is left out: the sixth number is yz for Mo and zx for Si."""

    def answers_to(element: str, i: int, j: int) -> int:
        """Index of the shear stress that answers to a strain that tilts axis i towards j."""
        strengths = np.zeros(6)
        for entry in json.loads((shared_data / f"pretrain_metals_mlearn/{element}/training.json").read_text()):
            cell = np.array(entry["structure"]["lattice"]["matrix"])
            tilt = np.abs(cell - np.diag(np.diag(cell)))
            if (
                entry["group"] == "Elastic"
                and tilt.max() > 0.05
                and np.unravel_index(tilt.argmax(), (3, 3)) in ((i, j), (j, i))
            ):
                strengths += np.abs(entry["outputs"]["virial_stress"])
        return int(strengths[3:].argmax()) + 3

    assert (answers_to("Mo", 1, 2), answers_to("Mo", 0, 2)) == (5, 4)
    assert (answers_to("Si", 1, 2), answers_to("Si", 0, 2)) == (4, 5)


def test_gzipped_json_is_read(tmp_path: Path, shared_data: Path, read: Any) -> None:
    source = shared_data / "pretrain_metals_mlearn/Mo/test.json"
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(source.read_bytes()))
    assert len(read("mlearn", tmp_path / "a.json.gz")) == 23
