"""The check of units: right units pass, on synthetic and all real sets; wrong ones are caught where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from jmp_ds.data.checks import UnitCheck, UnitVerdict
from jmp_ds.data.readers import reader
from jmp_ds.data.readers.base import ReaderOptions
from jmp_ds.data.record import Record, make_record

WRONG = {
    "energy in kcal/mol": (23.06, 1.0),
    "energy too small": (1 / 23.06, 1.0),
    "energy from Hartree": (27.2, 1.0),
    "forces in kcal/mol": (1.0, 23.06),
    "forces too small": (1.0, 1 / 23.06),
    "forces from Hartree": (1.0, 1 / 27.2),
    "a gradient": (1.0, -1.0),
}


def judge(records: Sequence[Record], energy: float = 1.0, forces: float = 1.0) -> UnitVerdict:
    check = UnitCheck()
    factor = {"energy": energy, "forces": forces}
    check.add([replace(r, labels={k: v * factor.get(k, 1.0) for k, v in r.labels.items()}) for r in records])
    return check.verdict()


def steps(start: float, amplitude: float, periodic: bool, rotate: bool = False) -> list[Record]:
    """Frames that wander about: copper in a cell, or a cluster that also tumbles."""
    rng = np.random.default_rng(1)
    atoms = bulk("Cu", a=start, cubic=True) * (2, 1, 1) if periodic else molecule("CH4")
    atoms.calc = EMT() if periodic else LennardJones(sigma=0.9, epsilon=0.5)
    home = atoms.positions.copy()
    records = []
    for i in range(40):
        atoms.positions[:] = home + rng.normal(0, amplitude, home.shape)
        q = np.linalg.qr(rng.normal(size=(3, 3)))[0] if rotate else np.eye(3)
        q *= np.linalg.det(q)
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces() @ q}
        pos = atoms.positions @ q + (rng.integers(-1, 2, 3) @ atoms.cell if periodic else rng.normal(0, 9, 3))
        records.append(
            make_record(pos=pos, atomic_numbers=atoms.numbers, cell=atoms.cell, pbc=atoms.pbc, labels=labels, id=str(i))
        )
    return records


@pytest.mark.parametrize("records", [steps(3.7, 0.05, True), steps(0, 0.02, False), steps(0, 0.02, False, True)])
def test_frames_near_each_other(records: list[Record]) -> None:
    verdict = judge(records)
    assert verdict.status == "consistent", verdict
    assert verdict.ratio == pytest.approx(1.0, abs=0.2)
    for name, (energy, forces) in WRONG.items():
        assert judge(records, energy, forces).status == "refused", name


def test_both_wrong_alike_cannot_be_seen_unless_they_are_impossible() -> None:
    records = steps(3.7, 0.05, True)
    assert judge(records, 23.06, 23.06).status == "consistent"
    methane = [replace(r, labels={**r.labels, "energy": r.labels["energy"] - 1101.0}) for r in steps(0, 0.02, False)]
    assert judge(methane).status == "consistent"
    assert "Thomas-Fermi" in judge(methane, 23.06, 23.06).message


def test_nothing_to_compare() -> None:
    assert judge([]).status == "inconclusive"
    one = steps(3.7, 0.05, True)[:1]
    assert judge(one).status == "inconclusive"
    assert judge([replace(r, labels={"energy": r.labels["energy"]}) for r in steps(3.7, 0.05, True)]).pairs == 0
    strained = [replace(r, cell=r.cell * (1 + 0.01 * i)) for i, r in enumerate(steps(3.7, 0.05, True))]
    assert judge(strained).pairs == 0, "the stress does work too when the cell changes"


def test_impossible_forces_are_seen_without_energies() -> None:
    hot = [replace(r, labels={"forces": 30.0 * np.sign(r.labels["forces"])}) for r in steps(3.7, 0.05, True)]
    assert judge(hot).status == "refused"


def test_lone_atoms_do_no_work() -> None:
    records = [
        make_record(pos=[[float(i), 0, 0]], atomic_numbers=[6], labels={"energy": 0, "forces": [[0, 0, 0]]}, id="x")
        for i in range(20)
    ]
    assert judge(records).status == "inconclusive"


@pytest.mark.parametrize("jump", [300.0, -300.0])
def test_a_jump_to_another_electronic_state_is_forgiven(jump: float) -> None:
    """Ten frames of a relaxation whose energy jumps once: nothing about units can be said, and nothing is."""
    records = steps(3.7, 0.05, True)[:10]
    for at in range(1, 10):
        jumped = [
            replace(r, labels={**r.labels, "energy": r.labels["energy"] + jump * (i >= at)})
            for i, r in enumerate(records)
        ]
        assert judge(jumped).status != "refused"


def test_memory_is_bounded() -> None:
    check = UnitCheck()
    records = steps(3.7, 0.05, True)
    for _ in range(200):
        check.add(records)
    assert check._count <= 4000
    assert check.verdict().status == "consistent"


# Original files -------------------------------------------------------------------------------------------------------

DYNAMIC = [
    ("md17", "finetune_md17/md17_ethanol.npz"),
    ("md17", "finetune_md17/ethanol_ccsd_t-train.npz"),
    ("rmd17", "finetune_md17/rmd17_aspirin.npz"),
    ("qm7x", "pretrain_qm7x/qm7x_250_small.npz"),
    ("ani2x", "pretrain_ani/ani2x_minimal.hdf5"),
    ("spice", "finetune_spice/SPICE-1.1.4_n2.hdf5"),
    ("ase", "pretrain_mpf_tp/mpf-TP.xyz"),
    ("ase", "finetune_flexible/3BPA_train_mixedT.xyz"),
    ("ase", "finetune_flexible/acac_train_600K.xyz"),
    ("mlearn", "pretrain_metals_mlearn/Mo/training.json"),
    ("mlearn", "pretrain_metals_mlearn/Si/training.json"),
    ("ase", "pretrain_oc20/traj/random1000100.traj"),
    ("ase", "pretrain_oc20/traj/random1000117.traj"),
    ("s2ef", "pretrain_oc20/s2ef_extxyz/0.extxyz.xz"),
]
STATIC = [
    ("ani1", "pretrain_ani/ani_gdb_s01.h5"),
    ("ani1x", "pretrain_ani/ani1x_n5.hdf5"),
    ("ase", "pretrain_oxides/oxides.db"),
    ("ase", "pretrain_mptrj/mptrj-random-1k.xyz"),
    ("ase", "pretrain_mptrj/mptrj-highest-stress-1k.xyz"),
    ("ase", "pretrain_alexandria/alexandria-random-1k.xyz"),
    ("ase", "pretrain_mad/test_long_range_small.xyz"),
    ("ase", "finetune_largemol/nabladft_test_database.db"),
]


@pytest.fixture(scope="module")
def load(shared_data: Path) -> Callable[[str, str], list[Record]]:
    def records(format: str, file: str) -> list[Record]:
        blocks = reader(format).blocks(shared_data / file, ReaderOptions(ignore_charge=True))
        return [record for block in blocks for record in block.records]

    return records


@pytest.mark.parametrize(("format", "file"), DYNAMIC)
def test_real_sets_that_can_be_judged(load: Callable[[str, str], list[Record]], format: str, file: str) -> None:
    records = load(format, file)
    right = judge(records)
    assert right.status != "refused", right
    assert 0.4 < right.ratio < 1.5
    for name, (energy, forces) in WRONG.items():
        assert judge(records, energy, forces).status == "refused", name


@pytest.mark.parametrize(("format", "file"), STATIC)
def test_real_sets_that_cannot_be_judged_pass(load: Callable[[str, str], list[Record]], format: str, file: str) -> None:
    assert judge(load(format, file)).status != "refused"


def test_total_energies_in_kcal_are_seen_without_forces(load: Callable[[str, str], list[Record]]) -> None:
    records = load("ani1", "pretrain_ani/ani_gdb_s01.h5")
    assert judge(records, energy=23.06).status == "refused"
