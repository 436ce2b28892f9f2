"""Conversion: what ends up in the store, what is told, and that nothing half-done ever looks whole."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from rich.console import Console

from jmp_ds.data.conversion import ConversionReport
from jmp_ds.data.convert import ConvertOptions, convert
from jmp_ds.data.layout import StoreIncomplete, is_store
from jmp_ds.data.readers import READERS, reader
from jmp_ds.data.readers.base import ReaderOptions
from jmp_ds.data.store import Store
from jmp_ds.data.units import LabelSpec
from jmp_ds.errors import UserError

QUIET = ConvertOptions(progress=False)


def quiet(**changes: Any) -> ConvertOptions:
    return ConvertOptions(progress=False, **changes)


def told(*labels: str, **options: Any) -> ReaderOptions:
    return ReaderOptions(labels=tuple(LabelSpec.parse(label) for label in labels), **options)


def trajectory(path: Path, count: int = 20, scale: float = 1.0, bad: int = 0) -> Path:
    """Copper clusters that wander, the last `bad` of them with two atoms in one place."""
    rng = np.random.default_rng(0)
    frames = []
    for i in range(count):
        atoms = fcc111("Cu", (2, 2, 1))
        atoms.pbc = False
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        if i >= count - bad:
            atoms.positions[1] = atoms.positions[0]
        atoms.calc = SinglePointCalculator(atoms, energy=energy * scale, forces=forces)
        frames.append(atoms)
    write(path, frames)
    return path


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_store_and_what_it_says(tmp_path: Path) -> None:
    source = trajectory(tmp_path / "cu.extxyz")
    report = convert([source], tmp_path / "store", "ase", options=quiet(describe={"level_of_theory": "EMT"}))
    assert not report.failed
    assert (report.written, report.skipped, report.files) == (20, 0, 1)
    assert report.units["all files"].status == "consistent"
    store = Store(tmp_path / "store")
    assert len(store) == 20
    assert store[3].id == "cu.extxyz#3"
    said = store.metadata
    assert said["level_of_theory"] == "EMT"
    assert "not the free energy" in said["energy"]
    assert said["format"] == "ase"
    assert said["label_units"]["forces"] == "eV/Å"
    assert said["sources"] == [
        {
            "name": "cu.extxyz",
            "bytes": source.stat().st_size,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    ]
    assert "energy changes" in said["unit_check"]
    assert left_behind(tmp_path) == ["cu.extxyz", "store"]


def test_labels_of_the_user_are_in_the_metadata(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.info |= {"E": -1.0, "gap": 2.0}
    write(tmp_path / "a.extxyz", atoms)
    convert(
        [tmp_path / "a.extxyz"], tmp_path / "s", "ase", reader_options=told("energy=E:Ha", "gap=gap:D"), options=QUIET
    )
    said = Store(tmp_path / "s").metadata
    assert said["energy"] == "what the source calls 'E'"
    assert (said["label_units"]["energy"], said["label_units"]["gap"]) == ("eV", "D")


def test_a_folder_is_searched(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    trajectory(tmp_path / "deep/b.traj", 2)
    trajectory(tmp_path / "deep/er/a.extxyz", 3)
    (tmp_path / "deep/readme.md").write_text("no")
    report = convert([tmp_path / "deep"], tmp_path / "s", "ase", options=QUIET)
    assert (report.written, report.files) == (5, 2)
    with pytest.raises(UserError, match=r"holds no file named like \*\.npz"):
        convert([tmp_path / "deep"], tmp_path / "t", "md17", options=QUIET)


@pytest.mark.parametrize(("limit", "failed"), [(0, True), (1, True), (2, False), (0.05, True), (0.1, False)])
def test_how_many_may_be_bad(tmp_path: Path, limit: float, failed: bool) -> None:
    trajectory(tmp_path / "a.extxyz", 20, bad=2)
    report = convert([tmp_path / "a.extxyz"], tmp_path / "s", "ase", options=quiet(max_bad=limit))
    assert report.failed is failed
    assert (report.written, report.skipped) == (18, 2)
    assert report.reasons["coincident_atoms"].count == 2
    assert report.reasons["coincident_atoms"].where == "a.extxyz#18"
    assert left_behind(tmp_path) == (["a.extxyz"] if failed else ["a.extxyz", "s"])
    if failed:
        assert "--max-bad" in report.failure
    else:
        assert Store(tmp_path / "s").metadata["skipped"] == {"coincident_atoms": 2}


def test_the_table_names_reason_count_and_example(tmp_path: Path) -> None:
    trajectory(tmp_path / "a.extxyz", 20, bad=2)
    report = convert([tmp_path / "a.extxyz"], tmp_path / "s", "ase", options=QUIET)
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.table())
    text = console.export_text()
    assert "coincident_atoms" in text
    assert "a.extxyz#18: atoms 0 and 1 lie 0 Å apart" in text
    assert "18 structures taken, 2 left out" in text


def test_structures_without_labels(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.info["E0"] = -1.0
    write(tmp_path / "a.extxyz", atoms)
    report = convert([tmp_path / "a.extxyz"], tmp_path / "s", "ase", options=QUIET)
    assert report.failed
    assert "'E0'" in report.reasons["missing_label"].message
    assert "--label" in report.reasons["missing_label"].message
    taken = convert([tmp_path / "a.extxyz"], tmp_path / "s", "ase", options=quiet(allow_unlabelled=True))
    assert taken.written == 1


def test_forces_under_another_name_are_told(tmp_path: Path) -> None:
    """A store without forces is no accident that shows only in training."""
    atoms = molecule("H2O")
    atoms.info["energy"] = -14.0
    atoms.arrays["dft_forces"] = np.ones((3, 3))
    write(tmp_path / "a.extxyz", [atoms, atoms])
    report = convert([tmp_path / "a.extxyz"], tmp_path / "store", "ase", options=QUIET)
    assert [note for note in report.notes if "dft_forces" in note and "--label" in note]
    assert Store(tmp_path / "store").metadata["not_read"] == "dft_forces"
    taken = told("forces=dft_forces:eV/Å")
    report = convert([tmp_path / "a.extxyz"], tmp_path / "other", "ase", reader_options=taken, options=QUIET)
    assert report.notes == []


def test_required_labels(tmp_path: Path) -> None:
    trajectory(tmp_path / "a.extxyz", 2)
    report = convert([tmp_path / "a.extxyz"], tmp_path / "s", "ase", options=quiet(require=("energy", "stress")))
    assert report.reasons["missing_label"].count == 2
    assert report.failed


def test_wrong_units_are_refused_unless_trusted(tmp_path: Path) -> None:
    source = trajectory(tmp_path / "a.extxyz", scale=23.06)
    with pytest.raises(UserError, match=r"a\.extxyz: .*different units.*--trust-units"):
        convert([source], tmp_path / "s", "ase", options=QUIET)
    assert left_behind(tmp_path) == ["a.extxyz"]
    report = convert([source], tmp_path / "s", "ase", options=quiet(trust_units=True))
    assert report.written == 20
    assert any("taken all the same" in note for note in Store(tmp_path / "s").metadata["notes"])


def test_md17_given_as_qm7x(tmp_path: Path) -> None:
    """The same keys, another unit: the name of the format is wrong, and the check says so."""
    rng = np.random.default_rng(0)
    pos = molecule("CH3CH2OH").positions + rng.normal(0, 0.02, (30, 9, 3))
    z = np.tile(molecule("CH3CH2OH").numbers, (30, 1))
    np.savez(tmp_path / "a.npz", z=z, R=pos, E=np.full((30, 1), -97000.0), F=rng.normal(0, 25, (30, 9, 3)))
    with pytest.raises(UserError, match="Thomas-Fermi"):
        convert([tmp_path / "a.npz"], tmp_path / "s", "qm7x", options=QUIET)


def test_tags_that_switch_everything_off_are_told_once_per_file(tmp_path: Path) -> None:
    frames = []
    for _ in range(3):
        atoms = fcc111("Cu", (1, 1, 3), vacuum=6.0)
        atoms.set_tags(0)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0)
        frames.append(atoms)
    for name in ("a.traj", "b.traj"):
        write(tmp_path / name, frames)
    report = convert([tmp_path], tmp_path / "out/s", "ase", reader_options=told(tags="ocp"), options=QUIET)
    assert len(report.notes) == 2
    assert "3 periodic structures have no atom with tag 1 or 2" in report.notes[0]
    assert not convert([tmp_path / "a.traj"], tmp_path / "out/t", "ase", options=QUIET).notes


def test_an_existing_store_is_safe(tmp_path: Path) -> None:
    good, bad = trajectory(tmp_path / "good.extxyz", 5), trajectory(tmp_path / "bad.extxyz", 5, bad=5)
    convert([good], tmp_path / "s", "ase", options=QUIET)
    with pytest.raises(UserError, match="there is a store already"):
        convert([good], tmp_path / "s", "ase", options=QUIET)
    assert convert([bad], tmp_path / "s", "ase", options=quiet(overwrite=True)).failed
    assert len(Store(tmp_path / "s")) == 5
    assert not convert(
        [trajectory(tmp_path / "new.extxyz", 7)], tmp_path / "s", "ase", options=quiet(overwrite=True)
    ).failed
    assert len(Store(tmp_path / "s")) == 7
    assert left_behind(tmp_path) == ["bad.extxyz", "good.extxyz", "new.extxyz", "s"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds other files"):
        convert([good], tmp_path / "mine", "ase", options=quiet(overwrite=True))


def test_an_error_halfway_leaves_nothing(tmp_path: Path) -> None:
    trajectory(tmp_path / "a.extxyz", 400)
    (tmp_path / "b.extxyz").write_text("3\nbroken\nH 0 0\n")
    with pytest.raises(UserError, match=r"b\.extxyz: structure 0 cannot be read"):
        convert([tmp_path / "a.extxyz", tmp_path / "b.extxyz"], tmp_path / "s", "ase", options=QUIET)
    assert left_behind(tmp_path) == ["a.extxyz", "b.extxyz"]


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits that it is ignored
from pathlib import Path
import jmp_ds.data.readers.ase_any as ase_any
from jmp_ds.data.convert import ConvertOptions, convert
original = ase_any.blocks
def slow(path, options):
    for block in original(path, options):
        yield block
        print("written", flush=True)
        time.sleep(30)
ase_any.blocks = slow
convert([Path(sys.argv[1])], sys.argv[2], "ase", options=ConvertOptions(progress=False))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed(tmp_path: Path, how: signal.Signals) -> None:
    source = trajectory(tmp_path / "a.extxyz", 400)
    command = [sys.executable, "-c", SLOW, str(source), str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        time.sleep(0.3)
        process.send_signal(how)
        assert process.wait(timeout=20) != 0
    assert not (tmp_path / "s").exists()
    assert left_behind(tmp_path) == ["a.extxyz", "s.partial"]
    with pytest.raises(StoreIncomplete):
        Store(tmp_path / "s.partial")
    assert convert([source], tmp_path / "s", "ase", options=QUIET).written == 400
    assert left_behind(tmp_path) == ["a.extxyz", "s"]


def test_a_hopeless_conversion_stops_early(tmp_path: Path) -> None:
    count = 5000
    pos = np.zeros((count, 2, 3))
    np.savez(tmp_path / "a.npz", z=np.array([1, 1]), R=pos, E=np.zeros((count, 1)), F=pos)
    report = convert([tmp_path / "a.npz"], tmp_path / "s", "md17", options=QUIET)
    assert report.failed
    assert 2000 <= report.skipped < 3000


def test_sources_and_formats_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format 'xyzzy'; known are ani1"):
        convert([tmp_path], tmp_path / "s", "xyzzy", options=QUIET)
    with pytest.raises(UserError, match="no such file or folder"):
        convert([tmp_path / "absent"], tmp_path / "s", "ase", options=QUIET)
    with pytest.raises(UserError, match="at least one file"):
        convert([], tmp_path / "s", "ase", options=QUIET)


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_format_says_what_it_is(name: str) -> None:
    about = reader(name).about
    assert about.title
    assert about.units
    assert about.patterns
    assert "energy" not in about.labels or about.energy


def test_small_molecules_are_converted_quickly(tmp_path: Path) -> None:
    count = 3000
    rng = np.random.default_rng(0)
    pos = molecule("CH3CH2OH").positions + rng.normal(0, 0.05, (count, 9, 3))
    arrays = {"E": np.zeros((count, 1)), "F": rng.normal(0, 20, (count, 9, 3))}
    np.savez(tmp_path / "a.npz", z=molecule("CH3CH2OH").numbers, R=pos, **arrays)
    report = convert([tmp_path / "a.npz"], tmp_path / "s", "md17", options=QUIET)
    # Aimed at 2000 a second on a free core; the test leaves room for busy machines.
    assert report.written / report.seconds > 300


# Original files -------------------------------------------------------------------------------------------------------

CONVERSIONS: list[tuple[str, str, int, tuple[str, ...], dict[str, Any]]] = [
    ("ase", "pretrain_oc20/traj", 588, (), {}),
    ("s2ef", "pretrain_oc20/s2ef_extxyz", 588, (), {}),
    ("ase", "pretrain_oxides/oxides.db", 237, (), {}),
    ("ani1", "pretrain_ani/ani_gdb_s01.h5", 9000, (), {}),
    ("ani1x", "pretrain_ani/ani1x_n5.hdf5", 8, (), {}),
    ("ani2x", "pretrain_ani/ani2x_minimal.hdf5", 5706, (), {}),
    ("qm7x", "pretrain_qm7x", 2040, (), {}),
    ("ase", "pretrain_mptrj", 1423, (), {}),
    ("ase", "pretrain_alexandria", 663, (), {}),
    ("ase", "pretrain_mpf_tp", 730, (), {}),
    ("ase", "pretrain_mad", 718, (), {}),
    ("mlearn", "pretrain_metals_mlearn", 456, (), {}),
    ("qdf", "finetune_qm9/QM9under14atoms_atomizationenergy_eV", 1479, ("energy=0:eV",), {}),
    ("qdf", "finetune_qm9/QM9_under14atoms_U0_HOMO_LUMO", 880, (), {}),
    ("ase", "finetune_qm9/qm9.db", 372, ("energy=energy_U0:eV",), {}),
    ("qm9", "finetune_qm9/qm9_reduced_100.xyz", 100, (), {}),
    ("qm9", "finetune_qm9/raw_xyz", 3, (), {}),
    ("qm7", "finetune_qm7/qm7.tar.gz", 4943, (), {}),
    ("md17", "finetune_md17/md17_ethanol.npz", 1400, (), {}),
    ("md17", "finetune_md17/ethanol_ccsd_t-train.npz", 1000, (), {}),
    ("rmd17", "finetune_md17/rmd17_aspirin.npz", 1000, (), {}),
    ("ase", "finetune_flexible", 1000, (), {}),
    ("ase", "finetune_largemol", 64, (), {}),
    ("spice", "finetune_spice", 55, (), {"ignore_charge": True}),
    ("table", "finetune_matbench/matbench-phonons.csv", 908, ("peak=last phdos peak:cm^-1",), {}),
    ("table", "finetune_matbench/matbench_phonons.json.gz", 908, ("peak=last phdos peak:cm^-1",), {}),
    ("table", "finetune_matbench/perov_5_val.csv", 2500, ("e_form=heat_all:eV",), {}),
    ("table", "finetune_matbench/matbench_perovskites.json.gz", 2500, ("e_form=e_form:eV",), {}),
    ("table", "finetune_matbench/dielectric_constant.csv", 762, ("n=n",), {}),
    ("ase", "finetune_mof/qmof_hse06_examples/qmof_hse06.extxyz", 3, ("gap=band_gap_eV:eV",), {}),
    ("ase", "finetune_mof/qmof_hse06_examples/GUTYAW.vasprun.xml.gz", 1, (), {}),
    (
        "cif",
        "finetune_mof/odac_pristine.zip",
        135,
        ("e=Eads_CO2/eV:eV",),
        {"table": "finetune_mof/promising_pristine_MOFs.csv"},
    ),
]


@pytest.mark.parametrize(
    ("format", "source", "count", "labels", "options"), CONVERSIONS, ids=[c[1] for c in CONVERSIONS]
)
def test_every_original_file_converts(
    shared_data: Path,
    tmp_path: Path,
    format: str,
    source: str,
    count: int,
    labels: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    options = {key: shared_data / value if key == "table" else value for key, value in options.items()}
    report: ConversionReport = convert(
        [shared_data / source],
        tmp_path / "s",
        format,
        reader_options=told(*labels, **options),
        options=quiet(max_bad=0),
    )
    assert not report.failed, report
    assert (report.written, report.skipped) == (count, 0)
    assert len(Store(tmp_path / "s")) == count
    assert not is_store(tmp_path / "s.partial")
