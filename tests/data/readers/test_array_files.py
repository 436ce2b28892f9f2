"""NumPy and HDF5 formats: units by format and never by key, padding, missing values, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jmp_ds.errors import UserError

KCAL = 1 / 23.0605478
HARTREE = 27.211386
BOHR = 0.52917721
RNG = np.random.default_rng(0)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def water() -> dict[str, np.ndarray]:
    pos = np.array([[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]]) + RNG.normal(0, 0.02, (4, 3, 3))
    return {"z": np.array([8, 1, 1]), "R": pos, "E": RNG.normal(-47000, 1, (4, 1)), "F": RNG.normal(0, 20, (4, 3, 3))}


@pytest.mark.parametrize("format", ["md17", "md22"])
def test_md17_is_in_kcal(tmp_path: Path, format: str, water: dict[str, np.ndarray], read: Any) -> None:
    found = read(format, npz(tmp_path / "water.npz", **water))
    assert len(found) == 4
    np.testing.assert_allclose([r.labels["energy"] for r in found.records], water["E"][:, 0] * KCAL, rtol=1e-7)
    np.testing.assert_allclose(found[2].labels["forces"], water["F"][2] * KCAL, rtol=1e-7)
    np.testing.assert_array_equal(found[2].pos, water["R"][2])
    assert (found[1].id, found[1].group) == ("water#1", "")
    assert found.done[-1] == 1.0


def test_the_same_keys_are_in_ev_as_qm7x(tmp_path: Path, water: dict[str, np.ndarray], read: Any) -> None:
    """One pair of files with equal keys and shapes up to the padding: only the format's name tells the units."""
    padded = {
        "z": np.array([[8, 1, 1, 0, 0]] * 4),
        "R": np.pad(water["R"], ((0, 0), (0, 2), (0, 0))),
        "E": water["E"],
        "F": np.pad(water["F"], ((0, 0), (0, 2), (0, 0))),
    }
    found = read("qm7x", npz(tmp_path / "a.npz", **padded))
    assert found[0].natoms == 3
    assert found[0].group == "H2O"
    np.testing.assert_array_equal(found[3].labels["energy"], water["E"][3, 0])
    np.testing.assert_array_equal(found[3].labels["forces"], water["F"][3])
    with pytest.raises(UserError, match="format qm7x"):
        read("md17", tmp_path / "a.npz")
    with pytest.raises(UserError, match="format md17"):
        read("qm7x", npz(tmp_path / "b.npz", **water))


def test_rmd17_has_its_own_keys(tmp_path: Path, water: dict[str, np.ndarray], read: Any) -> None:
    arrays = {"nuclear_charges": water["z"], "coords": water["R"], "energies": water["E"][:, 0], "forces": water["F"]}
    found = read("rmd17", npz(tmp_path / "a.npz", **arrays))
    np.testing.assert_allclose(found[1].labels["forces"], water["F"][1] * KCAL, rtol=1e-7)
    with pytest.raises(UserError, match=r"lacks .*it has \['coords'"):
        read("md17", tmp_path / "a.npz")


def test_sgdml_may_name_its_units_and_theory(tmp_path: Path, water: dict[str, np.ndarray], read: Any) -> None:
    named = {
        **water,
        "theory": np.array("CCSD(T)"),
        "name": np.array(b"water"),
        "e_unit": np.array("eV"),
        "r_unit": np.array("Ang"),
    }
    found = read("md17", npz(tmp_path / "a.npz", **named))
    np.testing.assert_allclose(found[0].labels["energy"], water["E"][0, 0], rtol=1e-12)
    assert found.facts["level_of_theory"] == "CCSD(T)"
    assert found[0].info["molecule"] == "water"
    with pytest.raises(UserError, match="'parsec'"):
        read("md17", npz(tmp_path / "b.npz", **{**named, "r_unit": np.array("parsec")}))


def test_pickled_arrays_are_not_loaded(tmp_path: Path, water: dict[str, np.ndarray], read: Any) -> None:
    path = npz(tmp_path / "a.npz", **{**water, "E": np.array([object()] * 4)})
    with pytest.raises(UserError, match="not loaded"):
        read("md17", path)
    np.save(tmp_path / "b.npy", water["R"])
    with pytest.raises(UserError, match="single array"):
        read("md17", tmp_path / "b.npy")
    (tmp_path / "c.npz").write_bytes(b"nothing of that kind")
    with pytest.raises(UserError, match="not a NumPy"):
        read("md17", tmp_path / "c.npz")


def test_a_bad_frame_is_left_out_with_its_place(tmp_path: Path, water: dict[str, np.ndarray], read: Any) -> None:
    water["E"][2] = np.nan
    water["R"][1, 2] = water["R"][1, 1]
    found = read("md17", npz(tmp_path / "a.npz", **water))
    assert len(found) == 2
    assert [(s.code, s.where) for s in found.skipped] == [("coincident_atoms", "a#1"), ("not_finite", "a#2")]


@pytest.fixture
def ani1x(tmp_path: Path) -> Path:
    """Three conformers; the second lacks forces, the third everything."""
    path = tmp_path / "ani1x.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("H2O1")
        group["atomic_numbers"] = np.array([8, 1, 1], dtype=np.uint8)
        group["coordinates"] = RNG.normal(0, 1, (3, 3, 3)).astype(np.float32)
        group["wb97x_dz.energy"] = np.array([-76.4, -76.3, np.nan])
        forces = np.ones((3, 3, 3), dtype=np.float32)
        forces[1:] = np.nan
        group["wb97x_dz.forces"] = forces
        group["wb97x_tz.energy"] = np.array([np.nan, -76.5, np.nan])
    return path


def test_ani1x_leaves_out_what_is_nan(ani1x: Path, read: Any) -> None:
    found = read("ani1x", ani1x)
    assert [set(r.labels) for r in found.records] == [{"energy", "forces"}, {"energy"}]
    np.testing.assert_allclose(found[0].labels["energy"], -76.4 * HARTREE, rtol=1e-7)
    np.testing.assert_allclose(found[0].labels["forces"], HARTREE, rtol=1e-7)
    assert found.codes == ["missing_label"]
    assert {r.group for r in found.records} == {"H2O1"}


def test_ani1x_at_another_level(ani1x: Path, read: Any) -> None:
    found = read("ani1x", ani1x, level="wb97x_tz")
    assert [r.id for r in found.records] == ["H2O1#1"]
    assert "wb97x_tz" in found.facts["level_of_theory"]
    with pytest.raises(UserError, match=r"there are \['wb97x_dz', 'wb97x_tz'\]"):
        read("ani1x", ani1x, level="pbe")


def test_ani1_has_no_forces_and_empty_high_energy_arrays(tmp_path: Path, read: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("gdb11_s01/gdb11_s01-2")
        group["species"] = np.array([b"O", b"H", b"H"])
        group["coordinates"] = RNG.normal(0, 1, (2, 3, 3))
        group["energies"] = np.array([-76.4, -76.3])
        group["coordinatesHE"] = np.zeros((0, 3, 3))
        group["energiesHE"] = np.zeros(0)
    found = read("ani1", tmp_path / "a.h5")
    assert [set(r.labels) for r in found.records] == [{"energy"}] * 2
    assert found[0].atomic_numbers.tolist() == [8, 1, 1]
    np.testing.assert_allclose(found[1].labels["energy"], -76.3 * HARTREE, rtol=1e-7)
    with pytest.raises(UserError, match="no group with"):
        read("ani1x", tmp_path / "a.h5")


def test_ani2x_names_molecules_by_composition(tmp_path: Path, read: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("002")
        group["species"] = np.array([[8, 6], [17, 1]])
        group["coordinates"] = np.array([[[0, 0, 0], [0, 0, 1.1]], [[0, 0, 0], [0, 0, 1.3]]])
        group["energies"] = np.array([-113.0, -460.0])
        group["forces"] = np.array([[[0, 0, 1.0], [0, 0, -1.0]], [[0, 0, 0], [0, 0, 0.0]]])
    found = read("ani2x", tmp_path / "a.h5")
    assert [r.group for r in found.records] == ["CO", "ClH"]
    np.testing.assert_allclose(found[0].labels["forces"][0, 2], HARTREE, rtol=1e-7)


def test_qm7x_release_names_molecules(tmp_path: Path, read: Any) -> None:
    with h5py.File(tmp_path / "1000.hdf5", "w") as file:
        for name in ("Geom-m1-i1-c1-opt", "Geom-m1-i1-c1-1"):
            entry = file.create_group(f"1/{name}")
            entry["atNUM"], entry["atXYZ"] = np.array([1, 1]), np.array([[0, 0, 0], [0, 0, 0.74]])
            entry["ePBE0+MBD"], entry["totFOR"] = np.array([-31.7]), np.array([[0, 0, 0.1], [0, 0, -0.1]])
    found = read("qm7x", tmp_path / "1000.hdf5")
    assert [r.id for r in found.records] == ["Geom-m1-i1-c1-1", "Geom-m1-i1-c1-opt"]
    assert {r.group for r in found.records} == {"1"}
    assert found[0].labels["energy"] == -31.7
    assert found[0].labels["forces"][1, 2] == -0.1


def test_transition1x_takes_one_split_and_no_frame_twice(tmp_path: Path, read: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for place, count in {"data/H2/rxn7": 3, "data/H2/rxn7/reactant": 1}.items():
            group = file.create_group(place)
            group["atomic_numbers"] = np.array([1, 1])
            group["positions"] = np.array([[[0, 0, 0], [0, 0, 0.74]]] * count)
            group["wB97x_6-31G(d).energy"] = np.full(count, -31.7)
            group["wB97x_6-31G(d).forces"] = np.zeros((count, 2, 3))
        file["train/H2/rxn7"] = h5py.SoftLink("/data/H2/rxn7")
    for options in ({}, {"level": "train"}):
        found = read("transition1x", tmp_path / "a.h5", **options)
        assert [r.id for r in found.records] == [f"H2/rxn7#{i}" for i in range(3)]
        assert {r.group for r in found.records} == {"H2/rxn7"}
        assert found[0].labels["energy"] == -31.7
    with pytest.raises(UserError, match=r"no split 'val'; there are \['data', 'train'\]"):
        read("transition1x", tmp_path / "a.h5", level="val")


def test_spice_stores_gradients_in_bohr_and_charges_in_smiles(tmp_path: Path, read: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, smiles in {"water": "[O:1]([H:2])[H:3]", "hydronium": "[O+:1]([H:2])[H:3]"}.items():
            group = file.create_group(name)
            group["atomic_numbers"] = np.array([8, 1, 1], dtype=np.int16)
            group["conformations"] = np.array([[[0, 0, 0], [0, 0, 2.0], [0, 2.0, 0]]])
            group["dft_total_energy"] = np.array([-76.0])
            group["formation_energy"] = np.array([-0.3])
            group["dft_total_gradient"] = np.full((1, 3, 3), 0.5)
            group["smiles"] = np.array([smiles.encode()])
    found = read("spice", tmp_path / "a.h5")
    assert [r.group for r in found.records] == ["water"]
    assert found.codes == ["charge_or_spin"]
    np.testing.assert_allclose(found[0].labels["forces"], -0.5 * HARTREE / BOHR, rtol=1e-7)
    np.testing.assert_allclose(found[0].pos[1, 2], 2.0 * BOHR, rtol=1e-7)
    np.testing.assert_allclose(found[0].labels["energy"], -76.0 * HARTREE, rtol=1e-7)
    formation = read("spice", tmp_path / "a.h5", level="formation", ignore_charge=True)
    assert len(formation) == 2
    np.testing.assert_allclose(formation[0].labels["energy"], -0.3 * HARTREE, rtol=1e-7)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("CCO", 0),
        ("[NH4+]", 1),
        ("[O-:3]", -1),
        ("[Ca+2]", 2),
        ("[Fe++]", 2),
        ("[N+:1](=O)[O-:2]", 0),
        ("[13CH3:1][S-2]", -2),
    ],
)
def test_charge_of_smiles(smiles: str, charge: int) -> None:
    from jmp_ds.data.readers.spice import smiles_charge

    assert smiles_charge(smiles) == charge


@pytest.mark.parametrize("format", ["ani1", "ani1x", "ani2x", "spice"])
def test_no_hdf5(tmp_path: Path, format: str, read: Any) -> None:
    (tmp_path / "a.h5").write_text("text")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        read(format, tmp_path / "a.h5")


# Original files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "file", "keys"),
    [
        ("md17", "finetune_md17/md17_ethanol.npz", "zREF"),
        ("md17", "finetune_md17/ethanol_ccsd_t-train.npz", "zREF"),
        ("rmd17", "finetune_md17/rmd17_aspirin.npz", ("nuclear_charges", "coords", "energies", "forces")),
    ],
)
def test_md17_files(shared_data: Path, format: str, file: str, keys: Any, read: Any) -> None:
    raw = np.load(shared_data / file)
    z, pos, energy, forces = (raw[key] for key in keys)
    found = read(format, shared_data / file)
    assert (len(found), found.codes) == (len(energy), [])
    np.testing.assert_allclose([r.labels["energy"] for r in found.records], energy.ravel() * KCAL, rtol=1e-7)
    np.testing.assert_allclose([r.labels["forces"] for r in found.records], forces * KCAL, rtol=1e-6)
    np.testing.assert_array_equal([r.pos for r in found.records], pos)
    np.testing.assert_array_equal(found[-1].atomic_numbers, z)


def test_qm7x_file(shared_data: Path, read: Any) -> None:
    raw = np.load(shared_data / "pretrain_qm7x/qm7x_250_small.npz")
    found = read("qm7x", shared_data / "pretrain_qm7x/qm7x_250_small.npz")
    assert (len(found), found.codes) == (2040, [])
    np.testing.assert_array_equal([r.natoms for r in found.records], (raw["z"] > 0).sum(1))
    np.testing.assert_array_equal([r.labels["energy"] for r in found.records], raw["E"].ravel())
    assert not np.abs(raw["F"][raw["z"] == 0]).any(), "padding should have no forces"


def test_ani_files(shared_data: Path, read: Any) -> None:
    folder = shared_data / "pretrain_ani"
    ani1 = read("ani1", folder / "ani_gdb_s01.h5")
    assert len(ani1) == 9000
    assert ani1[0].labels["energy"] == pytest.approx(-40.48 * HARTREE, abs=2.0)
    ani1x = read("ani1x", folder / "ani1x_n5.hdf5")
    assert (len(ani1x), ani1x.codes) == (8, [])
    assert all(set(r.labels) == {"energy", "forces"} for r in ani1x.records)
    ani2x = read("ani2x", folder / "ani2x_minimal.hdf5")
    assert (len(ani2x), ani2x.codes) == (5706, [])
    with h5py.File(folder / "ani2x_minimal.hdf5") as raw:
        np.testing.assert_allclose(
            [r.labels["energy"] for r in ani2x.records], raw["002/energies"][()] * HARTREE, rtol=1e-7
        )


def test_spice_file_holds_two_cations(shared_data: Path, read: Any) -> None:
    path = shared_data / "finetune_spice/SPICE-1.1.4_n2.hdf5"
    assert read("spice", path).codes == ["charge_or_spin"] * 55
    found = read("spice", path, ignore_charge=True)
    assert len(found) == 55
    with h5py.File(path) as raw:
        gradient = raw["103147721/dft_total_gradient"][0]
    np.testing.assert_allclose(found[0].labels["forces"], -gradient * (HARTREE / BOHR), rtol=1e-5)
