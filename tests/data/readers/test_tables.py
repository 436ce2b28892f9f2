"""Tables of crystal structures: every way a cell of a table holds a structure, and the labels beside it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read as ase_read
from ase.io import write

from jmp_ds.data.readers.structures import structure_fields
from jmp_ds.data.record import BadRecord, make_record
from jmp_ds.errors import UserError

ROCKSALT = bulk("NaCl", "rocksalt", a=5.6)


def pymatgen() -> dict[str, Any]:
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": abc.tolist(), "xyz": [9, 9, 9], "label": symbol}
        for symbol, abc in zip(ROCKSALT.get_chemical_symbols(), ROCKSALT.get_scaled_positions(), strict=True)
    ]
    return {"@class": "Structure", "charge": None, "lattice": {"matrix": ROCKSALT.cell.tolist()}, "sites": sites}


def text(format: str) -> str:
    stream = io.BytesIO() if format == "cif" else io.StringIO()
    write(stream, ROCKSALT, format=format)
    value = stream.getvalue()
    return value.decode() if isinstance(value, bytes) else value


PRINTED = """Full Formula (Na1 Cl1)
Reduced Formula: NaCl
abc   :   3.959798   3.959798   3.959798
angles:  60.000000  60.000000  60.000000
Sites (2)
  #  SP       a     b     c    magmom
---  ----  ----  ----  ----  --------
  0  Na+   0     0     0           -0
  1  Cl-   0.5   0.5   0.5          0"""


def distances(fields: dict[str, Any]) -> np.ndarray:
    """What does not depend on the orientation of the cell: nearest distances between unlike atoms, and the volume."""
    record = make_record(**fields, id="x")
    shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ record.cell
    between = np.linalg.norm(record.pos[1] - record.pos[0] + shifts, axis=1)
    return np.array([*np.sort(between)[:8], abs(np.linalg.det(record.cell))])


@pytest.mark.parametrize(
    "value",
    [
        pymatgen(),
        json.dumps(pymatgen()),
        {"structure": pymatgen(), "other": 1},
        text("cif"),
        text("vasp"),
        PRINTED,
        repr({"incar": "A = 1", "poscar": text("vasp"), "structure": "#CIF"}).replace("'poscar'", "u'poscar'"),
    ],
    ids=["dict", "json", "nested", "cif", "poscar", "printed", "python2"],
)
def test_all_ways_give_the_same_structure(value: Any) -> None:
    reference = {"pos": ROCKSALT.positions, "atomic_numbers": [11, 17], "cell": ROCKSALT.cell.array, "pbc": True}
    found = structure_fields(value)
    assert np.asarray(found["atomic_numbers"]).tolist() == [11, 17]
    assert np.all(found["pbc"])
    np.testing.assert_allclose(distances(found), distances(reference), atol=2e-6)


def test_a_literal_is_parsed_but_never_run(tmp_path: Path) -> None:
    sign = tmp_path / "was_run"
    with pytest.raises(BadRecord) as caught:
        structure_fields(f"{{u'poscar': open({str(sign)!r}, 'w')}}")
    assert caught.value.code == "unreadable"
    assert not sign.exists()


def test_symmetry_of_a_cif_is_applied() -> None:
    cif = (
        "data_NaCl\n_cell_length_a 5.6\n_cell_length_b 5.6\n_cell_length_c 5.6\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 90\n_cell_angle_gamma 90\n_symmetry_space_group_name_H-M 'F m -3 m'\n"
        "_symmetry_Int_Tables_number 225\nloop_\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n"
        "_atom_site_fract_z\nNa 0 0 0\nCl 0.5 0.5 0.5\n"
    )
    assert sorted(structure_fields(cif)["atomic_numbers"]) == [11] * 4 + [17] * 4


@pytest.mark.parametrize(
    "value",
    [
        {**pymatgen(), "sites": [{**pymatgen()["sites"][0], "species": [{"element": "Na", "occu": 0.5}]}]},
        PRINTED.replace("Na+ ", "Na:0.5, K:0.5 "),
        text("cif").replace("1.0000\n", "0.5000\n", 1) if "1.0000\n" in text("cif") else "",
    ],
    ids=["dict", "printed", "cif"],
)
def test_partly_occupied_sites_are_refused(value: Any) -> None:
    with pytest.raises(BadRecord) as caught:
        structure_fields(value)
    assert caught.value.code == "disordered"


@pytest.mark.parametrize("value", ["", "{", "nonsense", "data_x\n_cell_length_a 1\n", PRINTED[:-40], {"sites": [{}]}])
def test_what_is_no_structure_is_unreadable(value: Any) -> None:
    with pytest.raises(BadRecord) as caught:
        structure_fields(value)
    assert caught.value.code == "unreadable"


def test_a_molecule_has_no_cell() -> None:
    site = {"species": [{"element": "D", "occu": 1}], "xyz": [0, 0, 1.0]}
    fields = structure_fields({"@class": "Molecule", "sites": [site]})
    assert fields["atomic_numbers"].tolist() == [1]
    assert not any(fields["pbc"])


ROWS = [
    {"structure": pymatgen(), "gap (eV)": 5.0, "kind": "a", "metal": False},
    {"structure": pymatgen(), "gap (eV)": None},
]


@pytest.mark.parametrize("layout", ["rows", "matminer", "columns"])
@pytest.mark.parametrize("packed", [False, True])
def test_json_layouts(tmp_path: Path, layout: str, packed: bool, read: Any) -> None:
    columns = ["structure", "gap (eV)", "kind", "metal"]
    data = [[row.get(key) for key in columns] for row in ROWS]
    value: Any = {
        "rows": ROWS,
        "matminer": {"index": [7, 8], "columns": columns, "data": data},
        "columns": {key: [row[i] for row in data] for i, key in enumerate(columns)},
    }[layout]
    path = tmp_path / ("a.json.gz" if packed else "a.json")
    path.write_bytes(gzip.compress(json.dumps(value).encode()) if packed else json.dumps(value).encode())
    found = read("table", path, ["gap=gap (eV):meV", "metal=metal"], group_key="kind")
    assert len(found) == 1
    assert found[0].labels["gap"] == 0.005
    assert found[0].labels["metal"] == 0.0
    assert found[0].group == "a"
    assert found.codes == ["missing_label"]


def table(*rows: list[str]) -> str:
    """CSV text, quoted as needed."""
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue()


def test_csv_with_comment_and_quoted_newlines(tmp_path: Path, read: Any) -> None:
    cif = text("cif")
    rows = table(["", "id", "cif", "E"], ["0", "x1", cif, "1.5"], ["1", "x2", cif, "nan"], ["1", "x3", "", "2"])
    (tmp_path / "a.csv").write_text("# a reference, with a comma\n" + rows)
    found = read("table", tmp_path / "a.csv", ["energy=E:Ha"], id_key="id")
    assert [r.id for r in found.records] == ["x1"]
    assert found[0].labels["energy"] == pytest.approx(1.5 * 27.211386, rel=1e-7)
    assert found.codes == ["missing_label", "unreadable"]


def test_cells_longer_than_the_csv_modules_limit(tmp_path: Path, read: Any) -> None:
    long = "#" + "x" * 200_000 + "\n" + text("cif")
    (tmp_path / "a.csv").write_text(table(["cif", "E"], [long, "1.5"]))
    assert len(read("table", tmp_path / "a.csv", ["energy=E:eV"])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"name the labels.*'cif', 'E'"),
        ({"labels": ["energy=F:eV"]}, r"no column \['F'\]"),
        ({"labels": ["energy=E:eV"], "structure_key": "x"}, r"no column \['x'\]"),
        ({"labels": ["energy=E:eV"], "group_key": "g"}, r"no column \['g'\]"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, options: dict[str, Any], message: str, read: Any) -> None:
    (tmp_path / "a.csv").write_text(table(["cif", "E"], [text("cif"), "1.5"]))
    with pytest.raises(UserError, match=message):
        read("table", tmp_path / "a.csv", **options)


@pytest.mark.parametrize("content", ["[1, 2]", '{"a": 1}', "{"])
def test_json_that_is_no_table(tmp_path: Path, content: str, read: Any) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read("table", tmp_path / "a.json", ["e=e:eV"])


def test_zip_of_cifs_with_a_table(tmp_path: Path, read: Any) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("pristine/AA.cif", "pristine/BB.cif", "__MACOSX/pristine/._AA.cif"):
            archive.writestr(name, text("cif"))
    (tmp_path / "t.csv").write_text("MOF,Eads/eV\nAA,-0.5\n")
    found = read("cif", tmp_path / "a.zip", ["e=Eads/eV:eV"], table=tmp_path / "t.csv")
    assert [(r.id, r.labels["e"].item()) for r in found.records] == [("AA", -0.5)]
    assert found.codes == ["missing_label"]
    assert [r.id for r in read("cif", tmp_path / "a.zip").records] == ["AA", "BB"]
    with pytest.raises(UserError, match="--table"):
        read("cif", tmp_path / "a.zip", ["e=Eads/eV:eV"])
    with pytest.raises(UserError, match=r"no column \['Eads'\]"):
        read("cif", tmp_path / "a.zip", ["e=Eads:eV"], table=tmp_path / "t.csv")


# Original files -------------------------------------------------------------------------------------------------------


def test_phonons_as_printed_and_as_json_agree(shared_data: Path, read: Any) -> None:
    folder = shared_data / "finetune_matbench"
    label = ["peak=last phdos peak:cm^-1"]
    printed = read("table", folder / "matbench-phonons.csv", label)
    packed = read("table", folder / "matbench_phonons.json.gz", label)
    assert (len(printed), printed.codes, len(packed), packed.codes) == (908, [], 908, [])
    for a, b in zip(printed.records, packed.records, strict=True):
        assert a.labels["peak"] == b.labels["peak"]
        np.testing.assert_array_equal(a.atomic_numbers, b.atomic_numbers)
        np.testing.assert_allclose(a.cell, b.cell, atol=1e-4)
        np.testing.assert_allclose(a.pos, b.pos, atol=1e-4)
    assert printed[0].labels["peak"] == 1138.5856886491724, "wavenumbers stay wavenumbers"


def test_perovskites_as_cif_and_as_json_agree(shared_data: Path, read: Any) -> None:
    folder = shared_data / "finetune_matbench"
    cif = read("table", folder / "perov_5_val.csv", ["e_form=heat_all:eV"], id_key="material_id")
    packed = read("table", folder / "matbench_perovskites.json.gz", ["e_form=e_form:eV"])
    assert (len(cif), cif.codes, len(packed), packed.codes) == (2500, [], 2500, [])
    for a, b in zip(cif.records, packed.records, strict=True):
        assert a.labels["e_form"] == b.labels["e_form"]
        np.testing.assert_array_equal(a.atomic_numbers, b.atomic_numbers)
        images = (a.pos - b.pos) @ np.linalg.inv(b.cell)
        np.testing.assert_allclose(images, np.round(images), atol=1e-6)
    assert cif[0].id == "18517"


def test_dielectric_constants(shared_data: Path, read: Any) -> None:
    path = shared_data / "finetune_matbench/dielectric_constant.csv"
    found = read("table", path, ["n=n", "gap=band_gap:eV"])
    assert (len(found), found.codes) == (762, [])
    assert found[0].labels["n"] == 1.86
    assert found[0].atomic_numbers.tolist() == [37, 37, 52]
    np.testing.assert_allclose(found[0].cell[0], [5.271776, 0, 3.043661])


def test_mof_zip(shared_data: Path, tmp_path: Path, read: Any) -> None:
    folder = shared_data / "finetune_mof"
    label = ["co2=Eads_CO2/eV:eV", "h2o=Eads_H2O/eV:eV"]
    found = read("cif", folder / "odac_pristine.zip", label, table=folder / "promising_pristine_MOFs.csv")
    assert (len(found), found.codes) == (135, [])
    assert all(r.labels["co2"] < -0.5 for r in found.records)
    # The short way through a CIF without symmetry equals ASE's long one.
    smallest = min(found.records, key=lambda r: r.natoms)
    with zipfile.ZipFile(folder / "odac_pristine.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith(f"{smallest.id}.cif"))
        (tmp_path / "a.cif").write_bytes(archive.read(name))
    atoms = ase_read(tmp_path / "a.cif")
    np.testing.assert_array_equal(smallest.atomic_numbers, atoms.numbers)
    difference = np.linalg.solve(atoms.cell.T, (smallest.pos - atoms.positions).T)
    np.testing.assert_allclose(difference, np.round(difference), atol=1e-6)
