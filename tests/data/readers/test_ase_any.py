"""Files ASE reads: labels as stored, whatever constraints, other keys or databases do to them."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.db import connect
from ase.io import read as ase_read
from ase.io import write

from jmp_ds.errors import UserError

HARTREE = 27.211386


def labelled(atoms: Atoms, **results: Any) -> Atoms:
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def slab() -> Atoms:
    """Two layers, the lower one fixed, with forces on every atom."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    forces = np.arange(24, dtype=float).reshape(8, 3) + 1.0
    return labelled(atoms, energy=-3.0, free_energy=-3.5, forces=forces)


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz", "a.db"])
def test_forces_of_fixed_atoms_survive(tmp_path: Path, slab: Atoms, name: str, read: Any) -> None:
    write(tmp_path / name, slab)
    found = read("ase", tmp_path / name)
    assert (ase_read(tmp_path / name).get_forces()[:4] == 0).all(), "the trap is not set"
    np.testing.assert_allclose(found[0].labels["forces"], slab.calc.results["forces"])
    assert found[0].fixed.tolist() == [True] * 4 + [False] * 4


def test_an_atom_held_in_one_direction_is_not_fixed(tmp_path: Path, slab: Atoms, read: Any) -> None:
    slab.set_constraint([FixCartesian([0], mask=(True, True, False)), FixCartesian([1])])
    write(tmp_path / "a.traj", slab)
    assert np.flatnonzero(read("ase", tmp_path / "a.traj")[0].fixed).tolist() == [1]


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz", "a.db"])
def test_energy_is_not_the_free_energy(tmp_path: Path, slab: Atoms, name: str, read: Any) -> None:
    write(tmp_path / name, slab)
    assert read("ase", tmp_path / name)[0].labels["energy"] == -3.0


def test_a_file_with_free_energy_alone_has_no_energy(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "a.traj", labelled(molecule("H2"), free_energy=-1.0, forces=np.zeros((2, 3))))
    assert set(read("ase", tmp_path / "a.traj")[0].labels) == {"forces"}


def test_layer_numbers_are_not_tags(tmp_path: Path, read: Any) -> None:
    write(tmp_path / "a.traj", labelled(fcc111("Cu", (1, 1, 3), vacuum=6.0), energy=0.0))
    found = read("ase", tmp_path / "a.traj")
    assert found[0].tags.tolist() == [2, 2, 2]
    asked = read("ase", tmp_path / "a.traj", tags="ocp")
    assert asked.codes == ["bad_tag"]


def test_tags_are_kept_where_the_user_says_they_are_ocps(tmp_path: Path, read: Any) -> None:
    atoms = labelled(molecule("H2O"), energy=0.0)
    atoms.set_tags([0, 1, 2])
    write(tmp_path / "a.traj", atoms)
    assert read("ase", tmp_path / "a.traj", tags="ocp")[0].tags.tolist() == [0, 1, 2]


def test_ref_keys_are_taken_together_and_never_mixed(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.xyz").write_text(
        '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:REF_forces:R:3:forces:R:3 energy=-1.0 '
        'REF_energy=-7.5 REF_stress="1 6 5 6 2 4 5 4 3" pbc="T T T"\nH 0 0 0 1 2 3 9 9 9\nH 0 0 0.8 -1 -2 -3 9 9 9\n'
        "2\nProperties=species:S:1:pos:R:3:forces:R:3 REF_energy=-7.5\nH 0 0 0 9 9 9\nH 0 0 0.8 9 9 9\n"
    )
    found = read("ase", tmp_path / "a.xyz")
    assert found[0].labels["energy"] == -7.5
    assert found[0].labels["forces"][0].tolist() == [1, 2, 3]
    assert found[0].labels["stress"].tolist() == [1, 2, 3, 4, 5, 6]
    assert set(found[1].labels) == {"energy"}


def test_stress_has_ases_sign_and_order(tmp_path: Path, read: Any) -> None:
    compressed = bulk("Cu", a=3.4, cubic=True)
    compressed.set_cell(compressed.cell @ np.array([[1, 0, 0.01], [0, 1, 0.03], [0, 0, 1]]), scale_atoms=True)
    compressed.calc = EMT()
    stress = compressed.get_stress()
    write(tmp_path / "a.extxyz", compressed)
    label = read("ase", tmp_path / "a.extxyz")[0].labels["stress"]
    np.testing.assert_allclose(label, stress, atol=1e-7)
    assert (label[:3] < 0).all()
    # Numerically: dE/dstrain / V, for xx and for xz.
    for voigt, (i, j) in {0: (0, 0), 4: (0, 2)}.items():
        energies = []
        for h in (1e-4, -1e-4):
            strained = compressed.copy()
            strain = np.zeros((3, 3))
            strain[i, j] += h / 2
            strain[j, i] += h / 2
            strained.set_cell(compressed.cell @ (np.eye(3) + strain), scale_atoms=True)
            strained.calc = EMT()
            energies.append(strained.get_potential_energy())
        np.testing.assert_allclose(
            label[voigt], (energies[0] - energies[1]) / 2e-4 / compressed.get_volume(), rtol=1e-3, atol=1e-6
        )


def test_a_stress_that_is_not_symmetric_is_refused(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.xyz").write_text('1\nProperties=species:S:1:pos:R:3 REF_stress="1 2 0 -2 1 0 0 0 1"\nH 0 0 0\n')
    assert read("ase", tmp_path / "a.xyz").codes == ["shape"]


@pytest.mark.parametrize(
    ("key", "value", "good"), [("charge", 0, True), ("charge", -1, False), ("spin", 1, True), ("spin", 3, False)]
)
def test_charge_and_spin(tmp_path: Path, key: str, value: int, good: bool, read: Any) -> None:
    atoms = labelled(molecule("H2O"), energy=0.0)
    atoms.info[key] = value
    write(tmp_path / "a.extxyz", atoms)
    assert read("ase", tmp_path / "a.extxyz").codes == ([] if good else ["charge_or_spin"])
    assert len(read("ase", tmp_path / "a.extxyz", ignore_charge=True)) == 1


def test_charged_by_its_atoms(tmp_path: Path, read: Any) -> None:
    atoms = labelled(molecule("H2O"), energy=0.0)
    atoms.set_initial_charges([1.0, 0.0, 0.0])
    write(tmp_path / "a.traj", atoms)
    assert read("ase", tmp_path / "a.traj").codes == ["charge_or_spin"]


def test_groups(tmp_path: Path, read: Any) -> None:
    frames = [labelled(molecule("H2O"), energy=0.0) for _ in range(2)]
    for i, frame in enumerate(frames):
        frame.info["batch"] = i
    write(tmp_path / "run.traj", frames)
    write(tmp_path / "run.extxyz", frames)
    assert {r.group for r in read("ase", tmp_path / "run.traj").records} == {"run.traj"}
    assert {r.group for r in read("ase", tmp_path / "run.extxyz").records} == {""}
    assert [r.group for r in read("ase", tmp_path / "run.extxyz", group_key="batch").records] == ["0", "1"]
    assert read("ase", tmp_path / "run.extxyz", group_key="nothing").codes == ["missing_label"] * 2


def test_labels_by_name_and_unit(tmp_path: Path, read: Any) -> None:
    atoms = molecule("H2O")
    atoms.info |= {"E": -76.4, "gap": 500.0}
    atoms.arrays["F"] = np.ones((3, 3))
    write(tmp_path / "a.extxyz", atoms)
    labels = ["energy=E:Ha", "forces=F:Ha/bohr", "gap=gap:meV"]
    found = read("ase", tmp_path / "a.extxyz", labels)[0].labels
    np.testing.assert_allclose(found["energy"], -76.4 * HARTREE, rtol=1e-7)
    np.testing.assert_allclose(found["forces"], HARTREE / 0.52917721, rtol=1e-7)
    assert found["gap"] == 0.5
    missing = read("ase", tmp_path / "a.extxyz", ["gap=Gap:eV"])
    assert missing.codes == ["missing_label"]
    assert "'gap'" in missing.skipped[0].message


def test_gzipped(tmp_path: Path, slab: Atoms, read: Any) -> None:
    write(tmp_path / "a.extxyz", slab)
    (tmp_path / "b.extxyz.gz").write_bytes(gzip.compress((tmp_path / "a.extxyz").read_bytes()))
    assert read("ase", tmp_path / "b.extxyz.gz")[0].labels["energy"] == -3.0


def test_a_name_with_an_at_sign_is_a_name(tmp_path: Path, slab: Atoms, read: Any) -> None:
    write(tmp_path / "a.extxyz", slab)
    (tmp_path / "a.extxyz").rename(tmp_path / "run@0.extxyz")
    assert len(read("ase", tmp_path / "run@0.extxyz")) == 1


def test_a_file_nobody_reads_is_the_users_to_mend(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.xyz").write_text("3\nno\nH 0 0 0\n")
    with pytest.raises(UserError, match=r"a\.xyz: structure 0"):
        read("ase", tmp_path / "a.xyz")
    with pytest.raises(UserError, match="no such file"):
        read("ase", tmp_path / "absent.db")


def base64_row(value: np.ndarray, key: str) -> dict[str, str]:
    text = base64.b64encode(value.tobytes()).decode()
    return {key: text, f"_shape_{key}": str(list(value.shape)), f"_dtype_{key}": str(value.dtype)}


def test_database_with_base64_values(tmp_path: Path, read: Any) -> None:
    forces = np.random.default_rng(0).normal(size=(3, 3))
    data = base64_row(np.array([-2078.5]), "energy_U0") | base64_row(forces, "F")
    with connect(tmp_path / "a.db") as database:
        database.write(molecule("H2O"), data=data)
        database.write(molecule("H2O"), data={**data, "_shape_F": "[4, 3]"})
    found = read("ase", tmp_path / "a.db", ["energy=energy_U0:eV", "forces=F:kcal/mol/Å"])
    assert found[0].labels["energy"] == -2078.5
    assert found[0].labels["energy"].shape == ()
    np.testing.assert_allclose(found[0].labels["forces"], forces / 23.0605478, rtol=1e-6)
    assert found.codes == ["unreadable"]
    unnamed = read("ase", tmp_path / "a.db")[0]
    assert not unnamed.labels
    assert unnamed.info["energy_U0"] == -2078.5


def test_damaged_base64_is_told(tmp_path: Path, read: Any) -> None:
    data = {"E": "AAAA", "_shape_E": "[1]", "_dtype_E": "float64"}
    with connect(tmp_path / "a.db") as database:
        database.write(molecule("H2O"), data=data)
    found = read("ase", tmp_path / "a.db", ["energy=E:eV"])
    assert found.codes == ["unreadable"]
    assert "'E' cannot be decoded" in found.skipped[0].message


@pytest.mark.parametrize(("energy", "word"), [(-0.3, "subtracted already"), (-76.1, "not subtracted")])
def test_database_that_names_its_units(tmp_path: Path, energy: float, word: str, read: Any) -> None:
    with connect(tmp_path / "a.db") as database:
        database.metadata = {
            "_distance_unit": "Bohr",
            "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Bohr"},
            "atomrefs": {"energy": [0.0, -0.5, 0, 0, 0, 0, -37.8, -54.5, -75.0]},
        }
        database.write(molecule("H2O"), data={"energy": np.array([energy]), "forces": np.ones((3, 3))})
    found = read("ase", tmp_path / "a.db")
    np.testing.assert_allclose(found[0].labels["energy"], energy * HARTREE, rtol=1e-7)
    np.testing.assert_allclose(found[0].labels["forces"], HARTREE / 0.52917721, rtol=1e-7)
    np.testing.assert_allclose(found[0].pos, molecule("H2O").positions * 0.52917721, rtol=1e-7)
    assert word in found.facts["atomrefs"]


def test_database_in_unknown_lengths(tmp_path: Path, read: Any) -> None:
    with connect(tmp_path / "a.db") as database:
        database.metadata = {"_distance_unit": "furlong"}
        database.write(molecule("H2O"))
    with pytest.raises(UserError, match="furlong"):
        read("ase", tmp_path / "a.db")


# Original files -------------------------------------------------------------------------------------------------------


def test_oc20_trajectories_keep_the_forces_of_fixed_atoms(shared_data: Path, read: Any) -> None:
    lost = 0.0
    for file in sorted((shared_data / "pretrain_oc20/traj").glob("*.traj")):
        for record, atoms in zip(read("ase", file).records, ase_read(file, ":"), strict=True):
            np.testing.assert_array_equal(record.labels["forces"], atoms.calc.results["forces"])
            assert record.labels["energy"] == atoms.calc.results["energy"]
            assert record.fixed.any()
            assert record.group == file.name
            lost = max(lost, float(np.abs(record.labels["forces"] - atoms.get_forces()).max()))
    assert lost > 2.0


@pytest.mark.parametrize(
    ("file", "count", "groups"),
    [
        ("pretrain_mptrj/mptrj-random-1k.xyz", 699, 698),
        ("pretrain_mptrj/mptrj-highest-stress-1k.xyz", 724, 677),
        ("pretrain_alexandria/alexandria-random-1k.xyz", 663, 663),
        ("pretrain_mpf_tp/mpf-TP.xyz", 730, 730),
        ("pretrain_mad/test_long_range_small.xyz", 718, 1),
        ("finetune_flexible/3BPA_train_mixedT.xyz", 500, 1),
        ("finetune_flexible/acac_train_600K.xyz", 500, 1),
        ("pretrain_oxides/oxides.db", 237, 1),
        ("finetune_mof/qmof_hse06_examples/qmof_hse06.extxyz", 3, 1),
    ],
)
def test_published_files(shared_data: Path, file: str, count: int, groups: int, read: Any) -> None:
    found = read("ase", shared_data / file)
    assert (len(found), found.codes) == (count, [])
    assert len({r.group for r in found.records}) == groups
    raw = ase_read(shared_data / file, ":")
    for record, atoms in zip(found.records, raw, strict=True):
        assert record.labels["energy"] == atoms.calc.results["energy"]
        np.testing.assert_array_equal(record.labels["forces"], atoms.calc.results["forces"])
        assert (record.tags == 2).all()
        if "stress" in atoms.calc.results:
            np.testing.assert_allclose(record.labels["stress"], atoms.calc.results["stress"], atol=1e-12)


def test_compressed_matter_has_negative_stress(shared_data: Path, read: Any) -> None:
    records = read("ase", shared_data / "pretrain_mptrj/mptrj-highest-stress-1k.xyz").records
    pressed = [record.labels["stress"][:3].mean() < 0 for record in records]
    assert np.mean(pressed) > 0.9


def test_large_forces_are_kept(shared_data: Path, read: Any) -> None:
    records = read("ase", shared_data / "pretrain_mad/test_long_range_small.xyz").records
    assert max(np.abs(record.labels["forces"]).max() for record in records) > 20.0


def test_gzipped_vasprun_equals_what_was_extracted_from_it(shared_data: Path, read: Any) -> None:
    folder = shared_data / "finetune_mof/qmof_hse06_examples"
    vasp = read("ase", folder / "GUTYAW.vasprun.xml.gz")[0]
    extracted = next(
        r
        for r in read("ase", folder / "qmof_hse06.extxyz", ["gap=band_gap_eV:eV"]).records
        if r.info["name"] == "GUTYAW"
    )
    np.testing.assert_allclose(vasp.labels["energy"], extracted.labels["energy"], atol=1e-7)
    np.testing.assert_allclose(vasp.labels["forces"], extracted.labels["forces"], atol=1e-7)
    np.testing.assert_allclose(vasp.cell, extracted.cell, atol=1e-7)
    assert extracted.labels["gap"] == pytest.approx(8.361)


def test_qm9_database(shared_data: Path, read: Any) -> None:
    found = read("ase", shared_data / "finetune_qm9/qm9.db", ["energy=energy_U0:eV"])
    assert len(found) == 372
    # Methane, -40.47893 Hartree in the publication.
    assert found[0].labels["energy"] == pytest.approx(-40.47893 * HARTREE, abs=1e-3)


def test_nabladft_database_is_in_hartree(shared_data: Path, read: Any) -> None:
    found = read("ase", shared_data / "finetune_largemol/nabladft_test_database.db")
    row = next(connect(shared_data / "finetune_largemol/nabladft_test_database.db").select(limit=1))
    assert len(found) == 64
    np.testing.assert_allclose(found[0].labels["energy"], row.data["energy"][0] * HARTREE, rtol=1e-7)
    np.testing.assert_allclose(found[0].labels["forces"], np.array(row.data["forces"]) * HARTREE, rtol=1e-7)
    assert "subtracted already" in found.facts["atomrefs"]
    assert len({r.group for r in found.records}) == 64
