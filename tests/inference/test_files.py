"""Jobs over files: predictions, embeddings, errors, relaxation and dynamics, whole or not at all, also after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from inference.using import SMOOTH, bundle_with, task
from small_stores import write_store
from typer.testing import CliRunner

from jmp_ds.bundle import Bundle, save_bundle
from jmp_ds.cli.app import app
from jmp_ds.data.record import make_record
from jmp_ds.data.store import StoreWriter
from jmp_ds.errors import UserError
from jmp_ds.inference.calculator import JMPCalculator
from jmp_ds.inference.evaluate_file import evaluate_file, means, read_rows
from jmp_ds.inference.features_file import features_file, read_features
from jmp_ds.inference.md_file import Dynamics, md_file, read_trajectory
from jmp_ds.inference.predict_file import predict_file
from jmp_ds.inference.predictor import Predictor
from jmp_ds.inference.relax_file import Prepared, Relaxation, relax_file
from jmp_ds.inference.resumable import Resumable
from jmp_ds.inference.sources import Source
from jmp_ds.tasks.specs import ClassTarget, EnergyTarget, ForcesTarget, Normalization, Task

NAMES = ["H2O", "CH3CH2OH", "NH3", "CH4", "H2O", "CH3OH"]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """References of zero: known elements would be those of the references."""
    plain = replace(task(), normalization={})
    return bundle_with(plain, task("direct", kind="direct"), task("energy", kind=None))


def predictor(bundle: Bundle, name: str = "gradient", **options) -> Predictor:
    return Predictor(bundle, name, **{"dtype": "float64", "edge_budget": 100, **options})


def molecules() -> list[Atoms]:
    frames = [molecule(name) for name in NAMES]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=k)
        atoms.info["origin"] = f"number {k}"
    return frames


@pytest.fixture
def file(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "in.extxyz", molecules())
    return tmp_path / "in.extxyz"


class Killed(Exception):
    """Stands for the end of the process: nothing of it is caught."""


Job = Callable[[Bundle, Path, Path], object]


def run_predict(bundle: Bundle, source: Path, out: Path) -> object:
    options = {"dtype": "float64", "edge_budget": 100, "show_progress": False, "interval": 0.0}
    return predict_file(bundle, source, out, "gradient", **options)


def run_features(bundle: Bundle, source: Path, out: Path) -> object:
    return features_file(predictor(bundle), source, out, show_progress=False, interval=0.0)


def run_evaluate(bundle: Bundle, source: Path, out: Path) -> object:
    return evaluate_file(predictor(bundle, "direct"), source, out, show_progress=False, interval=0.0)


def run_relax(bundle: Bundle, source: Path, out: Path) -> object:
    how = Relaxation(fmax=0.3, steps=6)
    return relax_file(predictor(bundle), source, out, how, edge_budget=100, show_progress=False, interval=0.0)


def run_md(bundle: Bundle, source: Path, out: Path) -> object:
    how = Dynamics(steps=6, every=2, friction=5.0)
    return md_file(predictor(bundle), source, out, how, edge_budget=100, show_progress=False, interval=0.0)


JOBS: dict[str, tuple[Job, str]] = {
    "predict": (run_predict, "out.xyz"),
    "features": (run_features, "out.npz"),
    "evaluate": (run_evaluate, "out.jsonl"),
    "relax": (run_relax, "out.xyz"),
    "md": (run_md, "out.xyz"),
}


def labelled(path: Path) -> Path:
    frames = molecules()
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 * len(atoms), forces=0.1 * np.ones((len(atoms), 3)))
    ase.io.write(path, frames)
    return path


@pytest.mark.parametrize("kind", JOBS)
def test_no_structure_twice_or_lost_after_any_kill(bundle: Bundle, tmp_path: Path, kind: str, monkeypatch) -> None:
    """Ended after writes, one after the other; each time it goes on, and the output is the same in the end."""
    job, name = JOBS[kind]
    source = labelled(tmp_path / "in.extxyz")
    job(bundle, source, tmp_path / "whole" / name)
    assert os.listdir(tmp_path / "whole") == [name]
    expected = (tmp_path / "whole" / name).read_bytes()
    out, runs = tmp_path / "broken" / name, 0
    real = Resumable.commit

    def commit(self: Resumable, *args, **options) -> None:
        real(self, *args, **options)
        self.write(b"half a fra", "atoms" if kind == "features" else "")  # what the journal does not know of
        self.part("atoms" if kind == "features" else "")
        monkeypatch.setattr(Resumable, "__exit__", lambda *_: None)
        raise Killed

    while not out.exists():
        runs += 1
        assert runs < 40
        with monkeypatch.context() as patch:
            patch.setattr(Resumable, "commit", commit)
            with pytest.raises(Killed):
                job(bundle, source, out)
        assert not out.exists()
        monkeypatch.undo()
        if runs == 4:
            break
    job(bundle, source, out)
    assert os.listdir(tmp_path / "broken") == [name]
    if kind == "md":
        assert out.read_bytes() == expected
    elif kind == "evaluate":
        for row, other in zip(read_rows(out), read_rows(tmp_path / "whole" / name), strict=True):
            assert row.pop("formula") == other.pop("formula")
            assert row == pytest.approx(other, rel=1e-9)
    elif kind == "features":
        for one, other in zip(read_features(out), read_features(tmp_path / "whole" / name), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)
    else:  # batches are others after a kill, and sums round otherwise
        pairs = zip(ase.io.read(out, ":"), ase.io.read(tmp_path / "whole" / name, ":"), strict=True)
        for (one, other), start in zip(pairs, molecules(), strict=True):
            assert one.info["origin"] == start.info["origin"]
            np.testing.assert_allclose(one.positions, other.positions, atol=1e-9)
            np.testing.assert_allclose(one.get_forces(), other.get_forces(), atol=1e-8)


SLOW_JOB = """
import sys, time
from jmp_ds.inference.predict_file import predict_file
from jmp_ds.inference.predictor import Predictor
real = Predictor.iterate
def slow(self, atoms, first=0):
    for found in real(self, atoms, first):
        time.sleep(0.02)
        yield found
Predictor.iterate = slow
predict_file(*sys.argv[1:4], "gradient", show_progress=False, interval=0.0)
"""


def test_a_killed_process(bundle: Bundle, tmp_path: Path) -> None:
    """Ended by the system, without a chance to close anything."""
    save_bundle(bundle, tmp_path / "bundle")
    frames = [atoms for _ in range(20) for atoms in molecules()]
    for k, atoms in enumerate(frames):
        atoms.info["origin"] = k
    ase.io.write(tmp_path / "in.traj", frames)
    command = [sys.executable, "-c", SLOW_JOB, *(str(tmp_path / name) for name in ("bundle", "in.traj", "out.xyz"))]
    journal = tmp_path / "out.xyz.part.json"
    for wanted in (5, 40):
        process = subprocess.Popen(command)
        started = time.monotonic()
        while not (journal.exists() and json.loads(journal.read_text())["done"] >= wanted):
            assert process.poll() is None
            assert time.monotonic() - started < 120
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (tmp_path / "out.xyz").exists()
    subprocess.run(command, check=True, timeout=240)
    found = ase.io.read(tmp_path / "out.xyz", ":")
    assert [atoms.info["origin"] for atoms in found] == list(range(len(frames)))
    assert sorted(os.listdir(tmp_path)) == ["bundle", "in.traj", "out.xyz"]


def kill_while_writing(out: Path, job: dict, done: int) -> None:
    with contextlib.suppress(Killed), Resumable(out, job) as part:
        part.write(b"x")
        if done:
            part.commit(done)
        raise Killed


def test_another_job_does_not_go_on_with_what_stands_there(bundle: Bundle, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.xyz"
    kill_while_writing(out, {"task": "a"}, done=1)
    assert sorted(os.listdir(tmp_path)) == ["in.extxyz", "out.xyz.part", "out.xyz.part.json"]
    with pytest.raises(
        UserError, match=r"another job stands half done here \(it differs in task\).*out\.xyz\.part\.json"
    ):
        Resumable(out, {"task": "b"})
    (tmp_path / "out.xyz.part").write_bytes(b"")
    with pytest.raises(UserError, match="shorter than its journal says"):
        Resumable(out, {"task": "a"})
    (tmp_path / "out.xyz.part.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Resumable(out, {"task": "a"})


def test_a_job_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    kill_while_writing(tmp_path / "out", {}, done=0)
    assert os.listdir(tmp_path) == []


def test_a_changed_input_is_another_job(bundle: Bundle, file: Path, tmp_path: Path, monkeypatch) -> None:
    real = Predictor.iterate

    def two(self, atoms, first=0):
        for k, found in enumerate(real(self, atoms, first)):
            if k == 2:
                raise Killed
            yield found

    monkeypatch.setattr(Predictor, "iterate", two)
    with pytest.raises(Killed):
        run_predict(bundle, file, tmp_path / "out.xyz")
    monkeypatch.undo()
    ase.io.write(file, molecules()[:4])
    with pytest.raises(UserError, match="it differs in contents"):
        run_predict(bundle, file, tmp_path / "out.xyz")


def test_stores_and_files_alike(bundle: Bundle, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", structures=5)
    given = list(Source(store).read(2))
    assert Source(store).total == 5
    assert len(given) == 3
    assert predict_file(bundle, store, tmp_path / "out.xyz", "gradient", dtype="float64") == 5
    frames = ase.io.read(tmp_path / "out.xyz", ":")
    expected = predictor(bundle).predict([each.atoms for each in Source(store).read()])
    assert [a.info["id"] for a in frames] == [f"s{k}" for k in range(5)]
    assert [a.get_potential_energy() for a in frames] == pytest.approx([p.energy for p in expected], rel=1e-12)
    with pytest.raises(UserError, match="no such file or store"):
        Source(tmp_path / "nowhere")


def test_stress_is_written_where_it_is_real(bundle: Bundle, tmp_path: Path) -> None:
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.1, seed=0)
    ase.io.write(tmp_path / "in.traj", [crystal, molecule("H2O")])
    for name, has in (("gradient", True), ("direct", False)):
        predict_file(bundle, tmp_path / "in.traj", tmp_path / "out.xyz", name, dtype="float64", show_progress=False)
        one, other = ase.io.read(tmp_path / "out.xyz", ":")
        assert ("stress" in one.calc.results) == has
        assert "stress" not in other.calc.results
        if has:
            crystal.calc = JMPCalculator(bundle, name, dtype="float64")
            np.testing.assert_allclose(one.get_stress(), crystal.get_stress(), atol=1e-12)


def test_features_of_atoms_and_structures(bundle: Bundle, file: Path, tmp_path: Path) -> None:
    assert features_file(predictor(bundle), file, tmp_path / "f.npz", show_progress=False) == len(NAMES)
    parts = read_features(tmp_path / "f.npz")
    assert [len(part) for part in parts] == [len(atoms) for atoms in molecules()]
    with np.load(tmp_path / "f.npz") as held:
        np.testing.assert_allclose(held["structures"], predictor(bundle).features(molecules()), atol=1e-8)
        assert held["structures"].dtype == np.float64
    np.testing.assert_allclose(parts[1].mean(axis=0), predictor(bundle).features([molecules()[1]])[0], atol=1e-8)
    with pytest.raises(UserError, match=r"features are written as \.npz"):
        features_file(predictor(bundle), file, tmp_path / "f.xyz")


def test_errors_against_labels(bundle: Bundle, tmp_path: Path) -> None:
    """Forces are compared as they were computed, also on atoms that are held; the safe names win."""
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.1, seed=0)
    found = predictor(bundle).predict([crystal])[0]
    labels = {"energy": found.energy - 2.0, "forces": found.forces + 0.25, "stress": found.stress + 0.002}
    ends, starts = found.forces[1:], labels["forces"][1:]
    longer = [np.sqrt(f @ f) - np.sqrt(g @ g) for f, g in zip(ends, starts, strict=True)]
    angles = [f @ g / np.sqrt((f @ f) * (g @ g)) for f, g in zip(ends, starts, strict=True)]
    crystal.set_constraint(FixAtoms([0]))
    crystal.calc = SinglePointCalculator(crystal, **labels)
    crystal.info["gap"] = found.scalars["gap"] + 1.0
    water = molecule("H2O")
    water.info["REF_energy"] = predictor(bundle).predict([water])[0].energy + 1.0
    water.calc = SinglePointCalculator(water, energy=1e6)
    ase.io.write(tmp_path / "in.traj", [crystal, water])
    metrics = evaluate_file(predictor(bundle), tmp_path / "in.traj", tmp_path / "rows.jsonl", show_progress=False)
    assert metrics == pytest.approx(
        {
            "gradient/energy_mae": 1.5,
            "gradient/energy_mae_per_atom": 1000 * (2 / 4 + 1 / 3) / 2,
            "gradient/forces_mae": 250.0,
            "gradient/forces_mae_free": 250.0,
            "gradient/forces_magnitude_mae_free": float(1000.0 * np.mean(np.abs(longer))),
            "gradient/forces_cosine_free": float(np.mean(angles)),
            "gradient/energy_forces_within_threshold": 0.0,
            "gradient/stress_mae": 2.0,
            "gradient/gap_mae": 1.0,
        }
    )
    rows = list(read_rows(tmp_path / "rows.jsonl"))
    assert [row["number"] for row in rows] == [0, 1]
    assert rows[0]["energy_error"] == pytest.approx(2.0)
    assert (rows[0]["forces_count"], rows[0]["forces_free_count"]) == (12, 9)
    assert rows[0]["within_threshold"] is False
    assert "within_threshold" not in rows[1]
    assert means(rows[1:]).keys() == {"energy_mae", "energy_mae_per_atom"}
    ase.io.write(tmp_path / "bare.xyz", molecule("H2O"))
    with pytest.raises(UserError, match=r"no structure has a label of task gradient \(energy, forces, gap, stress\)"):
        evaluate_file(predictor(bundle), tmp_path / "bare.xyz", tmp_path / "r.jsonl", show_progress=False)


def classified(*targets: ClassTarget) -> Bundle:
    """A task for each kind of class, of the same name as its label."""
    tasks = [
        Task(name=t.label, graph=SMOOTH, energy=EnergyTarget(), forces=ForcesTarget(), classification=t)
        for t in targets
    ]
    return bundle_with(*tasks)


def stored(path: Path, frames: list[Atoms]) -> Path:
    """The structures of a file with their labels as a store."""
    records = []
    for k, atoms in enumerate(frames):
        labels = {**atoms.calc.results, **{n: float(atoms.info[n]) for n in ("metal", "phase") if n in atoms.info}}
        fixed = np.isin(np.arange(len(atoms)), atoms.constraints[0].index if atoms.constraints else [])
        records.append(
            make_record(pos=atoms.positions, atomic_numbers=atoms.numbers, labels=labels, fixed=fixed, id=f"s{k}")
        )
    with StoreWriter(path, {}) as writer:
        writer.append(records)
    return path


@pytest.mark.parametrize("name", ["metal", "phase"])
def test_files_tell_what_stores_tell(tmp_path: Path, name: str) -> None:
    """Of classes as booleans and as numbers, of forces with held atoms and one of zero, near the thresholds or not."""
    model = classified(ClassTarget(label="metal"), ClassTarget(label="phase", classes=3, kind="multi"))
    save_bundle(model, tmp_path / "bundle")
    frames = molecules()
    for k, (atoms, found) in enumerate(zip(frames, predictor(model, name).predict(frames), strict=True)):
        near = 0.01 if k % 2 else 1.0
        forces = found.forces + 2.0 * near * np.sin(np.arange(3 * len(atoms))).reshape(-1, 3)
        forces[0] = 0.0 if k == 3 else forces[0]
        forces[1] += 5.0
        atoms.set_constraint(FixAtoms([1] if k != 3 else [0, 1]))
        atoms.calc = SinglePointCalculator(atoms, energy=found.energy + near, forces=forces)
        if k != 4:
            atoms.info |= {"metal": k % 3 == 0, "phase": (2 * k + 1) % 3}
    ase.io.write(tmp_path / "in.extxyz", frames)
    store = stored(tmp_path / "store", frames)
    told = {}
    for source in (tmp_path / "in.extxyz", store):
        options = ["--task", name, "--report", str(tmp_path / "report"), "--dtype", "float64"]
        done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "bundle"), str(source), *options])
        assert done.exit_code == 0, done.output
        told[source] = json.loads((tmp_path / "report" / "metrics.json").read_text())
    of_file, of_store = told.values()
    assert list(of_file) == list(of_store)
    assert of_file == pytest.approx(of_store, rel=1e-6)
    assert 0.0 < of_file[f"{name}/energy_forces_within_threshold"] < 1.0
    kinds = ["accuracy", "balanced_accuracy", "cross_entropy", *(["roc_auc"] if name == "metal" else [])]
    assert [x for x in of_file if x.startswith(f"{name}/{name}")] == [f"{name}/{name}_{kind}" for kind in kinds]


@pytest.mark.parametrize(
    ("label", "told"),
    [("yes", "'yes'"), (2, "2.0"), (-1, "-1.0"), (0.5, "0.5"), (np.array([0, 1]), r"\[0 1\]")],
)
def test_labels_that_are_no_classes(tmp_path: Path, label: object, told: str) -> None:
    frames = molecules()[:2]
    frames[0].info["metal"] = True
    frames[1].info["metal"] = label
    ase.io.write(tmp_path / "in.extxyz", frames)
    model = predictor(classified(ClassTarget(label="metal")), "metal")
    match = rf"structure 1: label 'metal' is {told}, not the number of a class; 2 classes are numbered 0 to 1"
    with pytest.raises(UserError, match=match):
        evaluate_file(model, tmp_path / "in.extxyz", tmp_path / "rows.jsonl", show_progress=False)


@pytest.mark.parametrize("cell", [False, True])
def test_relaxation_is_that_of_ase(bundle: Bundle, tmp_path: Path, cell: bool) -> None:
    """The same steps as ASE makes alone with the calculator, for every structure of the pool."""
    frames = [bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.0), *molecules()[:3]]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=k)
    frames[2].set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "in.traj", frames)
    how = Relaxation(fmax=0.03, steps=15, cell=cell)
    told = relax_file(
        predictor(bundle), tmp_path / "in.traj", tmp_path / "out.xyz", how, edge_budget=400, show_progress=False
    )
    assert told.structures == len(frames) == told.converged + told.unfinished
    for got, atoms in zip(ase.io.read(tmp_path / "out.xyz", ":"), frames, strict=True):
        atoms.calc = JMPCalculator(bundle, "gradient", dtype="float64", skin=0.0)
        optimizer = FIRE(FrechetCellFilter(atoms) if cell and atoms.pbc.any() else atoms, logfile=None)
        converged = optimizer.run(fmax=0.03, steps=15)
        assert bool(got.info["relax_converged"]) == converged
        assert got.info["relax_steps"] == optimizer.nsteps
        np.testing.assert_allclose(got.positions, atoms.positions, atol=1e-7)
        np.testing.assert_allclose(got.cell.array, atoms.cell.array, atol=1e-7)
        assert got.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-7)


def test_a_structure_that_fails_does_not_stop_the_others(bundle: Bundle, tmp_path: Path) -> None:
    bad = molecule("H2O")
    bad.positions[2] += 40.0
    ase.io.write(tmp_path / "in.traj", [molecules()[0], bad, molecules()[2]])
    strict = predictor(bundle, refuse=frozenset({"far", "unseen"}))
    told = relax_file(strict, tmp_path / "in.traj", tmp_path / "out.xyz", Relaxation(steps=3), show_progress=False)
    assert told.failed == 1
    one, failed, other = ase.io.read(tmp_path / "out.xyz", ":")
    assert failed.info["relax_error"].startswith("structure 1: atom 2 (H) has no neighbour")
    assert failed.calc is None
    assert one.get_forces().any()
    assert other.get_forces().any()


def test_nothing_is_answered_that_was_not_computed() -> None:
    atoms = molecule("H2O")
    atoms.calc = Prepared()
    with pytest.raises(RuntimeError, match="nothing was computed for this geometry"):
        atoms.get_forces()


def test_tasks_that_cannot_move_atoms(bundle: Bundle, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.xyz"
    with pytest.raises(UserError, match="task energy has no energy with forces to relax by"):
        relax_file(predictor(bundle, "energy"), file, out)
    with pytest.raises(UserError, match="a cell is relaxed by stress, which only a task with gradient forces has"):
        relax_file(predictor(bundle, "direct"), file, out, Relaxation(cell=True))
    with pytest.raises(UserError, match="task energy has no energy with forces to move by"):
        md_file(predictor(bundle, "energy"), file, out, Dynamics(steps=1))
    with pytest.raises(UserError, match="no optimiser 'newton'; choose one of fire, bfgs, lbfgs"):
        relax_file(predictor(bundle), file, out, Relaxation(optimizer="newton"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="md: timestep must be positive, got 0"):
        Dynamics(steps=1, timestep=0)


def test_dynamics_are_those_of_ase(bundle: Bundle, tmp_path: Path) -> None:
    """Velocity Verlet from given momenta, for two structures that move together."""
    frames = molecules()[:2]
    for k, atoms in enumerate(frames):
        atoms.set_momenta(np.random.default_rng(k).normal(size=atoms.positions.shape))
    ase.io.write(tmp_path / "in.traj", frames)
    how = Dynamics(steps=20, timestep=0.4, every=8)
    md_file(predictor(bundle), tmp_path / "in.traj", tmp_path / "out.xyz", how, show_progress=False)
    for k, atoms in enumerate(frames):
        path = read_trajectory(tmp_path / "out.xyz", k)
        assert [a.info["step"] for a in path] == [0, 8, 16, 20]
        assert path[-1].info["time"] == pytest.approx(8.0)
        atoms.calc = JMPCalculator(bundle, "gradient", dtype="float64")
        VelocityVerlet(atoms, 0.4 * units.fs).run(20)
        np.testing.assert_allclose(path[-1].positions, atoms.positions, atol=1e-9)
        np.testing.assert_allclose(path[-1].get_momenta(), atoms.get_momenta(), atol=1e-9)
        assert path[-1].info["total_energy"] == pytest.approx(atoms.get_total_energy(), abs=1e-8)


def test_the_thermostat_holds_its_temperature(bundle: Bundle, tmp_path: Path) -> None:
    """Of a soft model, whose potential energy hardly matters: mean kinetic energy of 40 free atoms, and held ones."""
    soft = replace(
        bundle.tasks[0], normalization={k: Normalization(std=1e-6) for k in ("energy", "forces")}, name="gradient"
    )
    soft_bundle = replace(bundle, tasks=(soft, *bundle.tasks[1:]))
    frames = [molecule("CH3CH2OH") for _ in range(5)]
    frames[0].set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / "in.traj", frames)
    how = Dynamics(steps=60, timestep=0.2, temperature=400.0, friction=200.0, every=1)
    far = predictor(soft_bundle, dtype="float32", edge_budget=10_000)
    md_file(far, tmp_path / "in.traj", tmp_path / "out.xyz", how, show_progress=False)
    path = ase.io.read(tmp_path / "out.xyz", ":")
    temperatures = [a.info["temperature"] for a in path if a.info["step"] >= 20]
    assert np.mean(temperatures) == pytest.approx(400.0, rel=0.1)
    held = [a for a in path if a.info["structure"] == 0][-1]
    np.testing.assert_allclose(held.positions[:2], frames[0].positions[:2], atol=1e-12)


def test_other_constraints_are_refused_in_dynamics(bundle: Bundle, tmp_path: Path) -> None:
    water = molecule("H2O")
    water.set_constraint(FixBondLength(0, 1))
    ase.io.write(tmp_path / "in.traj", water)
    with pytest.raises(UserError, match="structure 0: md holds atoms by FixAtoms alone, not by FixBondLength"):
        md_file(predictor(bundle), tmp_path / "in.traj", tmp_path / "out.xyz", Dynamics(steps=1))


def test_dynamics_stop_with_the_step_and_structure(bundle: Bundle, tmp_path: Path) -> None:
    frames = [molecule("H2O"), Atoms("H2", [[0, 0, 0], [0, 0, 0.75]])]
    frames[1].set_momenta([[0, 0, -40.0], [0, 0, 40.0]])
    ase.io.write(tmp_path / "in.traj", frames)
    strict = predictor(bundle, refuse=frozenset({"far"}), edge_budget=10_000)
    with pytest.raises(UserError, match=r"step \d+: structure 1: atom 0 \(H\) has no neighbour within 5 Å"):
        md_file(strict, tmp_path / "in.traj", tmp_path / "out.xyz", Dynamics(steps=100, every=1), show_progress=False)
    journal = json.loads((tmp_path / "out.xyz.part.json").read_text())
    assert journal["state"]["step"] > 0  # what was computed is not lost
    assert not (tmp_path / "out.xyz").exists()
