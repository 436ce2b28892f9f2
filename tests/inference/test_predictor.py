"""Predictions: published numbers through import and prediction, order, units, files."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from golden_systems import INDEX, TINY, recorded
from published_files import averaged, raw_state, write
from small_models import set_scales

import jmp_ds
from jmp_ds.bundle import Bundle, save_bundle
from jmp_ds.errors import UserError
from jmp_ds.graphs import unbuilt
from jmp_ds.graphs.settings import FewerNeighbors, GraphSettings, published
from jmp_ds.inference.import_jmp import bundle_of, published_tasks
from jmp_ds.inference.predict_file import predict_file
from jmp_ds.inference.predictor import Predictor, edge_bound, structure_of
from jmp_ds.models.presets import preset
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, ScalarTarget, Task

DIRECT = Task(
    name="direct",
    graph=GraphSettings(cutoff=6.0, max_neighbors=12),
    energy=EnergyTarget(),
    forces=ForcesTarget(),
    normalization={
        "energy": Normalization(mean=-3.0, std=2.0, references=(0.0, -13.6, *(0.0,) * 4, -1029.5, 0.0, -2041.25)),
        "forces": Normalization(std=0.5),
    },
)
GRADIENT = Task(
    name="gradient",
    graph=GraphSettings(cutoff=5.0),
    energy=EnergyTarget(),
    forces=ForcesTarget(kind="gradient"),
    scalars=(ScalarTarget(label="gap", unit="eV"),),
    normalization={k: Normalization(std=3.0) for k in ("energy", "forces")},
)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    model = MultiTaskModel(preset("tiny"), (DIRECT, GRADIENT))
    set_scales(model)
    return Bundle.of(model, {})


def zoo() -> list[Atoms]:
    """Structures of many kinds, among them none, one, two and three atoms."""
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    frames = [
        molecule("CH3CH2OH"),
        Atoms(),
        Atoms("H"),
        molecule("N2"),
        molecule("H2O"),
        bulk("NaCl", "rocksalt", a=5.6),
    ]
    frames += [
        slab,
        bulk("Cu"),
        Atoms("O", cell=[9, 9, 9], pbc=False),
        Atoms("C2H2", [[0, 0, z] for z in (0, 1.2, -1.1, 2.3)]),
    ]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.03, seed=k)
    return frames


@pytest.mark.parametrize("task", ["direct", "gradient"])
def test_order_shapes_and_independence_of_batches(bundle: Bundle, task: str) -> None:
    together = Predictor(bundle, task, dtype="float64").predict(zoo())
    alone = Predictor(bundle, task, dtype="float64", edge_budget=1).predict(zoo())
    assert len(together) == len(alone) == len(zoo())
    for atoms, one, other in zip(zoo(), together, alone, strict=True):
        assert one.forces is not None
        assert one.forces.shape == (len(atoms), 3)
        assert one.forces.dtype == np.float64
        assert one.energy == pytest.approx(other.energy, rel=1e-10, abs=1e-10)
        np.testing.assert_allclose(one.forces, other.forces, rtol=1e-9, atol=1e-10)
        assert one.scalars.keys() == ({"gap"} if task == "gradient" else set())


def test_fewer_neighbors_of_larger_structures(bundle: Bundle) -> None:
    """Sizes together are answered as each alone, and as by a model whose only cap is that of the size."""
    steps = (FewerNeighbors(above=5, max_neighbors=4),)

    def predictor(graph: GraphSettings, **options) -> Predictor:
        return Predictor(replace(bundle, tasks=(replace(DIRECT, graph=graph), GRADIENT)), "direct", **options)

    fewer = replace(DIRECT.graph, fewer_neighbors=steps)
    together = predictor(fewer, dtype="float64").predict(zoo())
    graphs = (DIRECT.graph, replace(fewer, max_neighbors=4, fewer_neighbors=()))
    small, large = (predictor(graph, dtype="float64").predict(zoo()) for graph in graphs)
    for atoms, one, below, above in zip(zoo(), together, small, large, strict=True):
        assert one.energy == pytest.approx((above if len(atoms) > 5 else below).energy, rel=1e-10, abs=1e-10)
    assert edge_bound(bulk("Cu", cubic=True), fewer) == 4 * 12
    assert edge_bound(bulk("Cu", cubic=True) * (2, 1, 1), fewer) == 8 * 4


@pytest.mark.parametrize("task", ["direct", "gradient"])
def test_graphs_built_on_the_device(bundle: Bundle, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same predictions, without the builder on the host."""
    expected = Predictor(bundle, task, dtype="float64", graphs="host").predict(zoo())
    monkeypatch.delattr(unbuilt, "build_edges")
    found = Predictor(bundle, task, dtype="float64", graphs="device").predict(zoo())
    for one, other in zip(expected, found, strict=True):
        assert one.energy == pytest.approx(other.energy, rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(one.forces, other.forces, rtol=1e-9, atol=1e-12)
        assert one.scalars == pytest.approx(other.scalars, rel=1e-12, abs=1e-12)
    with pytest.raises(NameError, match="build_edges"):
        Predictor(bundle, task, graphs="auto").predict(zoo())  # on a CPU that is the host


def test_units_and_references(bundle: Bundle) -> None:
    water = molecule("H2O")
    predictor = Predictor(bundle, "direct", dtype="float64")
    raw = predictor.model(predictor._batch(next(predictor._parcels([water]))))["direct"]
    got = predictor.predict([water])[0]
    assert got.energy == pytest.approx(float(raw["energy"][0].detach()) * 2.0 - 3.0 - 2 * 13.6 - 2041.25, rel=1e-14)
    np.testing.assert_allclose(got.forces, raw["forces"].detach().numpy() * 0.5, rtol=1e-14)


def test_gradient_forces_are_minus_the_slope_of_the_energy(bundle: Bundle) -> None:
    predictor, atoms, step = Predictor(bundle, "gradient", dtype="float64"), molecule("CH3OH"), 1e-4
    atoms.rattle(0.05, seed=1)
    moved = []
    for sign in (1, -1):
        other = atoms.copy()
        other.positions[2, 1] += sign * step
        moved.append(other)
    result, plus, minus = predictor.predict([atoms, *moved])
    assert result.forces[2, 1] == pytest.approx(-(plus.energy - minus.energy) / (2 * step), rel=1e-6)


def test_float32_is_near_float64(bundle: Bundle) -> None:
    narrow, wide = (Predictor(bundle, "direct", dtype=d).predict(zoo()) for d in ("float32", "float64"))
    for one, other in zip(narrow, wide, strict=True):
        assert one.energy == pytest.approx(other.energy, rel=1e-6, abs=1e-4)


def test_nothing_in_nothing_out(bundle: Bundle) -> None:
    predictor = Predictor(bundle, "direct")
    assert predictor.predict([]) == []
    assert predictor.features([]).shape == (0, 32)


def test_features(bundle: Bundle) -> None:
    predictor = Predictor(bundle, "gradient", dtype="float64")
    frames = [molecule("H2O"), molecule("NH3")]
    mean, total = predictor.features(frames), predictor.features(frames, "sum")
    assert mean.shape == (2, 32)
    np.testing.assert_allclose(total, mean * [[3], [4]])


def test_ten_lines_of_python(bundle: Bundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "final")
    model = jmp_ds.load(str(tmp_path / "final"), "direct", dtype="float64")
    same = Predictor(bundle, "direct", dtype="float64")
    assert model.predict([molecule("H2O")])[0].energy == same.predict([molecule("H2O")])[0].energy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "other"}, "no task 'other' in the bundle; choose one of direct, gradient"),
        ({}, "which task"),
        ({"task": "direct", "dtype": "bfloat16"}, "no precision 'bfloat16'; choose float32 or float64"),
        ({"task": "direct", "device": "abacus"}, "device abacus: cannot be used here"),
        ({"task": "direct", "graphs": "gpu"}, "graphs: must be one of auto, host, device, got 'gpu'"),
    ],
)
def test_bad_options(bundle: Bundle, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Predictor(bundle, **options)


def test_bad_structures_are_named_by_their_number(bundle: Bundle) -> None:
    predictor = Predictor(bundle, "direct", edge_budget=10)
    bad = {
        "atomic numbers": Atoms("XH", [[0, 0, 0], [0, 0, 1]]),
        "not finite": Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]),
        "a cell vector that is zero": Atoms("H", pbc=True),
    }
    for message, atoms in bad.items():
        with pytest.raises(UserError, match=f"structure 2: .*{message}"):
            predictor.predict([molecule("H2O"), molecule("NH3"), atoms])


def test_tags_count_only_where_they_are_said_to_be_those_of_ocp() -> None:
    slab = fcc111("Cu", (1, 1, 3), vacuum=6.0)  # ASE numbers the layers 3, 2, 1
    assert structure_of(slab).ocp_tags.tolist() == [2, 2, 2]
    with pytest.raises(UserError, match="tags are not 0, 1, 2"):
        structure_of(slab, tags="ocp")
    slab.set_tags([0, 1, 2])
    assert structure_of(slab, tags="ocp").ocp_tags.tolist() == [0, 1, 2]


def published_tiny(system: str, tmp_path: Path, weights: str) -> Bundle:
    """The recorded tiny net through a made-up published file, its tasks on the graphs of one recorded system."""
    raw = raw_state()
    if weights == "ema":
        ema = averaged(raw, 0.0)
        raw = {k: x + 1.0 if not (".rbf." in k or k.endswith("scale_factor")) else x for k, x in raw.items()}
    else:
        ema = averaged(raw, 1.0)
    where = INDEX["systems"][system]
    graph = published(float(where["cutoff"]), int(where["max_neighbors"]))
    tasks = tuple(
        Task(name=t.name, graph=graph, energy=t.energy, forces=t.forces, normalization=t.normalization)
        for t in published_tasks()
    )
    bundle, report = bundle_of(write(tmp_path / "jmp.ckpt", raw, ema), TINY, tasks, weights)  # type: ignore[arg-type]
    assert report.unmatched == ()
    return bundle


def atoms_of(system: str) -> list[Atoms]:
    """A recorded system as ASE's atoms."""
    z, frames = recorded(system), []
    for k, periodic in enumerate(INDEX["systems"][system]["pbc"]):
        own = z["batch"] == k
        cell = z["cell"][k] if periodic else None
        frames.append(Atoms(z["Z"][own], z["pos"][own], cell=cell, pbc=periodic, tags=z["tags"][own]))
    return frames


#: Systems whose edges the rules determine: in the others a cap cuts a tie, and any choice is right (specification 3.4).
UNIQUE = ["ethanol", "aspirin", "formaldehyde_planar4", "tio2_rutile", "batch_ethanol_methane", "ethanol_cap6"]


@pytest.mark.parametrize(("system", "weights"), [*((name, "ema") for name in UNIQUE), ("methane", "raw")])
def test_published_numbers_through_file_import_and_prediction(system: str, weights: str, tmp_path: Path) -> None:
    save_bundle(published_tiny(system, tmp_path, weights), tmp_path / "bundle")
    ase.io.write(tmp_path / "in.traj", atoms_of(system))
    source, out, z = tmp_path / "in.traj", tmp_path / "out.extxyz", recorded(system)
    for t, task in enumerate(published_tasks()):
        predict_file(tmp_path / "bundle", source, out, task.name, dtype="float64", tags="ocp", show_progress=False)
        frames = ase.io.read(out, ":")
        energies = np.array([a.get_potential_energy() for a in frames])
        forces = np.concatenate([a.get_forces() for a in frames])
        for got, reference in (
            (energies, z["energy"][:, t] * task.scale("energy")),
            (forces, z["forces"][:, :, t] * task.scale("forces")),
        ):
            assert (np.abs(got - reference) <= 1e-9 * np.maximum(1.0, np.abs(reference))).all()


def test_the_published_tasks() -> None:
    tasks = published_tasks()
    assert [t.name for t in tasks] == ["oc20", "oc22", "ani1x", "transition1x"]
    assert [(t.graph.cutoff, t.graph.max_neighbors, t.graph.symmetrize) for t in tasks] == [
        (12.0, 30, "jmp"),
        (12.0, 30, "jmp"),
        (8.0, 30, "jmp"),
        (8.0, 30, "jmp"),
    ]
    assert [round(t.scale("energy"), 5) for t in tasks] == [24.90147, 25.2296, 2.87007, 1.78747]
    assert [round(t.scale("forces"), 6) for t in tasks] == [0.511153, 0.256789, 2.131423, 0.359142]
    assert [t.forces.weight for t in tasks if t.forces] == [73.0, 80.0, 15.0, 14.0]
    assert all("references that were not published" in t.level_of_theory for t in tasks)


def test_files_keep_every_digit(bundle: Bundle, tmp_path: Path) -> None:
    frames = zoo()
    frames[0].info |= {"name": 'a "quoted" name', "REF_energy": 1 / 3, "step": 7, "good": True}
    frames[0].info |= {"energy": 5.0, "list": [1, 2], "bad key": 1}
    frames[0].calc = SinglePointCalculator(frames[0], energy=99.0, forces=np.ones((len(frames[0]), 3)))
    ase.io.write(tmp_path / "in.traj", frames)
    count = predict_file(bundle, tmp_path / "in.traj", tmp_path / "a" / "out.xyz", "gradient", dtype="float64")
    assert count == len(frames)
    predictions = Predictor(bundle, "gradient", dtype="float64").predict(frames)
    written = ase.io.read(tmp_path / "a" / "out.xyz", ":", format="extxyz")
    for atoms, got, expected in zip(frames, written, predictions, strict=True):
        assert got.get_chemical_symbols() == atoms.get_chemical_symbols()
        assert np.array_equal(got.positions, atoms.positions)
        assert np.array_equal(got.cell, atoms.cell)
        assert np.array_equal(got.pbc, atoms.pbc)
        assert got.get_potential_energy() == expected.energy
        assert np.array_equal(got.get_forces(), expected.forces)
        assert got.info["gap"] == expected.scalars["gap"]
    assert written[0].info["name"] == 'a "quoted" name'
    assert written[0].info["REF_energy"] == 1 / 3
    assert written[0].info["step"] == 7
    assert written[0].info["good"]
    assert "list" not in written[0].info
    assert os.listdir(tmp_path / "a") == ["out.xyz"]


def test_a_failed_prediction_leaves_no_file(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.xyz"
    out.write_text("old")
    ase.io.write(tmp_path / "in.extxyz", [molecule("H2O"), Atoms("X2", [[0, 0, 0], [0, 0, 1]])])
    with pytest.raises(UserError, match="structure 1: atomic numbers"):
        predict_file(bundle, tmp_path / "in.extxyz", out, "direct")
    assert out.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in.extxyz", "out.xyz"]


def test_unreadable_input_and_unwritable_output(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.xyz: no such file"):
        predict_file(bundle, tmp_path / "nowhere.xyz", tmp_path / "out.xyz", "direct")
    (tmp_path / "text.xyz").write_text("hello")
    with pytest.raises(UserError, match=r"text\.xyz: ASE cannot read it"):
        predict_file(bundle, tmp_path / "text.xyz", tmp_path / "out.xyz", "direct")
    ase.io.write(tmp_path / "in.xyz", molecule("H2O"))
    with pytest.raises(UserError, match="cannot be written"):
        predict_file(bundle, tmp_path / "in.xyz", tmp_path / "in.xyz" / "out.xyz", "direct")


def test_frames_can_be_selected(bundle: Bundle, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "in.xyz", [molecule("H2O"), molecule("NH3"), molecule("CH4")])
    assert predict_file(bundle, f"{tmp_path / 'in.xyz'}@1:", tmp_path / "out.xyz", "direct") == 2
    assert [str(a.symbols) for a in ase.io.iread(tmp_path / "out.xyz")] == ["NH3", "CH4"]


def test_tags_without_interaction_are_reported_once(bundle: Bundle, tmp_path: Path, caplog) -> None:
    slab = fcc111("Cu", (1, 1, 2), vacuum=6.0)
    slab.set_tags(0)
    ase.io.write(tmp_path / "in.traj", [slab, slab])
    with caplog.at_level(logging.WARNING):
        predict_file(bundle, tmp_path / "in.traj", tmp_path / "out.xyz", "direct", tags="ocp")
    assert len(caplog.records) == 1
    assert "in 2 periodic structures no atom has a tag" in caplog.text
