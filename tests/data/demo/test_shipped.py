"""The set that comes with the package: whole, small, disjoint, and what its command makes."""

from __future__ import annotations

import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from jmp_ds.data.demo.generate import make_demo
from jmp_ds.data.demo.geometry import molecule_key
from jmp_ds.data.demo.plan import SETS
from jmp_ds.data.demo.reference_molecules import dipeptide, malonaldehyde
from jmp_ds.data.demo.shipped import MANIFEST, demo_manifest, demo_set_path, pack_demo, unpack_demo
from jmp_ds.data.record import validate
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.files import sha256


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The shipped set, unpacked."""
    out = tmp_path_factory.mktemp("shipped")
    start = time.monotonic()
    paths = unpack_demo(out)
    assert time.monotonic() - start < 30.0  # about a second; the bound is for busy machines
    return {name: Store(path) for name, path in paths.items()}


def test_manifest_holds_what_is_there() -> None:
    manifest, folder = demo_manifest(), demo_set_path()
    assert manifest["command"].startswith("jmp-ds data demo")
    assert set(manifest["versions"]) == {"jmp-ds", "tblite", "ase", "numpy"}
    assert list(manifest["sets"]) == sorted(SETS)
    for entry in manifest["sets"].values():
        assert sha256(folder / entry["file"]) == entry["sha256"]
    assert {p.name for p in folder.iterdir()} == {MANIFEST, *(e["file"] for e in manifest["sets"].values())}
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 4 * 2**20


def test_unpacked_stores_are_those_that_were_packed(stores: dict[str, Store]) -> None:
    for name, entry in demo_manifest()["sets"].items():
        assert stores[name].summary.fingerprint == entry["fingerprint"]
        assert len(stores[name]) == entry["structures"]
        assert stores[name].metadata == entry["metadata"]


def test_every_record_is_acceptable(stores: dict[str, Store]) -> None:
    for name, store in stores.items():
        ids = set()
        for record in store:
            validate(record)
            assert set(record.labels) == set(SETS[name].labels)
            ids.add(record.id)
        assert len(ids) == len(store)


def test_fine_tuning_molecules_are_new(stores: dict[str, Store]) -> None:
    """Neither the graph nor, for the dynamics sets, the formula of a fine-tuning molecule occurs in pre-training."""
    seen = {str(r.info["molecule"]) for name in ("molecules", "paths") for r in stores[name]}
    ends = {
        molecule_key(Atoms(r.atomic_numbers, r.pos))
        for r in stores["paths"]
        if r.info["kind"] == "shift" and r.info["position"] == 1.0
    }
    formulas = {str(r.info["formula"]) for name in ("molecules", "paths") for r in stores[name]}
    assert len(seen) > 100
    properties = {str(r.info["molecule"]) for r in stores["gaps"]}
    assert len(properties) == len(stores["gaps"])
    assert not properties & (seen | ends)
    for atoms in (malonaldehyde(), dipeptide()):
        assert atoms.get_chemical_formula() not in formulas
        assert molecule_key(atoms) not in seen | ends


def test_domains_have_enough_groups_to_split(stores: dict[str, Store]) -> None:
    for store in stores.values():
        assert len(np.unique(store.groups)) >= 25


def _require_versions() -> None:
    """Skip where the numbers need not be the same."""
    pytest.importorskip("tblite.interface", reason="tblite is not installed: nothing can be made anew")
    for name in ("tblite", "ase"):
        made, here = demo_manifest()["versions"][name], version(name)
        if made != here:
            pytest.skip(f"the shipped set was made by {name} {made}, here is {here}")


def _compare_beginnings(stores: dict[str, Store], sizes: dict[str, int], out: Path) -> None:
    """The first structures of the shipped sets, made anew."""
    make_demo(out, sizes=sizes, seed=demo_manifest()["seed"], processes=2, progress=False)
    for name, size in sizes.items():
        store = Store(out / name)
        for i in range(size):
            new, old = store[i], stores[name][i]
            assert new.id == old.id
            np.testing.assert_array_equal(new.atomic_numbers, old.atomic_numbers)
            np.testing.assert_allclose(new.pos, old.pos, rtol=0, atol=1e-9)
            for key, value in old.labels.items():
                np.testing.assert_allclose(new.labels[key], value, rtol=0, atol=2e-6 if value.ndim else 1e-6)


def test_first_structures_can_be_made_again(stores: dict[str, Store], tmp_path: Path) -> None:
    _require_versions()
    _compare_beginnings(stores, {"slabs": 1, "oxides": 1, "molecules": 3, "paths": 8, "gaps": 3}, tmp_path)


@pytest.mark.slow
def test_more_structures_can_be_made_again(stores: dict[str, Store], tmp_path: Path) -> None:
    _require_versions()
    sizes = {"slabs": 10, "oxides": 10, "molecules": 30, "paths": 40, "malonaldehyde": 20, "dipeptide": 10, "gaps": 30}
    _compare_beginnings(stores, sizes, tmp_path)


def test_damage_is_told(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_set_path(), copy)
    packed = copy / "gaps.npz"
    packed.write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"gaps\.npz is missing or damaged"):
        unpack_demo(tmp_path / "out", source=copy)
    assert not (tmp_path / "out").exists()
    (copy / MANIFEST).write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        unpack_demo(tmp_path / "out", source=copy)
    with pytest.raises(UserError, match="is missing"):
        unpack_demo(tmp_path / "out", source=tmp_path)


def test_existing_stores_are_replaced_only_on_request(stores: dict[str, Store]) -> None:
    out = stores["gaps"].path.parent
    with pytest.raises(UserError, match="a store already"):
        unpack_demo(out)
    unpack_demo(out, overwrite=True)
    assert len(Store(out / "gaps")) == len(stores["gaps"])


def test_packing_again_gives_the_same_contents(stores: dict[str, Store], tmp_path: Path) -> None:
    """Contents, not bytes: those may depend on the compression library."""
    pack_demo(stores["gaps"].path.parent, tmp_path / "packed", command="again")
    paths = unpack_demo(tmp_path / "out", source=tmp_path / "packed")
    for name, path in paths.items():
        assert Store(path).summary.fingerprint == stores[name].summary.fingerprint


def test_only_stores_of_one_run_are_packed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no stores"):
        pack_demo(tmp_path, tmp_path / "packed", command="none")
