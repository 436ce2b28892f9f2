"""The shipped batches are the ones described, and files of the user's are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from jmp_ds.bench.batches import MOLECULES, NAMED, SLABS, load_batch, read_structures, save_structures
from jmp_ds.bench.making import make
from jmp_ds.errors import UserError


@pytest.mark.parametrize("name", list(NAMED))
def test_shipped_files_are_what_the_recipes_make(name: str, tmp_path: Path) -> None:
    structures, task_of = make(name)
    shipped = load_batch(name)
    assert shipped.task_of == tuple(task_of)
    for made, held in zip(structures, shipped.structures, strict=True):
        assert np.abs(made.pos - held.pos).max() <= 1e-6
        assert np.abs(made.cell - held.cell).max() <= 1e-6
        assert np.array_equal(made.atomic_numbers, held.atomic_numbers)
        assert np.array_equal(made.ocp_tags, held.ocp_tags)
        assert np.array_equal(made.pbc, held.pbc)


def test_slab98() -> None:
    """Cu(111) 4×4×6 with CO on top: tags 2 for CO, 1 for the top layer; 12 Å, 30 neighbours, published rules."""
    batch = load_batch("slab98")
    (slab,) = batch.structures
    assert slab.natoms == 98
    assert slab.pbc.all()
    assert np.bincount(slab.ocp_tags).tolist() == [80, 16, 2]
    assert slab.atomic_numbers[slab.ocp_tags == 2].tolist() == [6, 8]
    top = slab.pos[slab.ocp_tags == 1, 2].min()
    assert top > slab.pos[slab.ocp_tags == 0, 2].max()
    graph = batch.graphs["slabs"]
    assert (graph.cutoff, graph.max_neighbors) == (12.0, 30)
    assert (graph.symmetrize, graph.envelope, graph.dihedral) == ("jmp", "jmp", "jmp")


def test_sizes() -> None:
    """Numbers of structures, and of atoms where the name says so."""
    assert [s.natoms for s in load_batch("aspirin4").structures] == [21] * 4
    assert [s.natoms for s in load_batch("slab225x4").structures] == [225] * 4
    assert len(load_batch("oc20x8").structures) == 8
    assert len(load_batch("ani64").structures) == 64
    assert sorted(set(load_batch("mixed").task_of)) == [SLABS, MOLECULES]
    assert load_batch("aspirin").graphs["molecules"].max_neighbors == 100


def test_no_two_atoms_collide() -> None:
    for name in NAMED:
        for structure in load_batch(name).structures:
            distance = np.linalg.norm(structure.pos[:, None] - structure.pos[None], axis=-1)
            assert distance[np.triu_indices(structure.natoms, 1)].min() > 0.7, structure.id


def test_tasks_of_the_model() -> None:
    """Direct forces: all four heads, most of them without rows; gradient forces: those of the batch."""
    batch = load_batch("aspirin4")
    assert [task.name for task in batch.tasks("direct")] == ["slabs", "oxides", "molecules", "reactions"]
    rows = batch.assemble("direct").rows
    assert {name: len(own.atoms) for name, own in rows.items()} == {
        "slabs": 0,
        "oxides": 0,
        "molecules": 84,
        "reactions": 0,
    }
    (task,) = batch.tasks("gradient")
    assert task.name == "molecules"
    assert task.gradient_forces
    assert len(batch.assemble("gradient").rows["molecules"].atoms) == 84


def test_files(tmp_path: Path) -> None:
    """A file as we write it and a file of ASE's give the same structures; caps can be chosen."""
    water, ammonia = molecule("H2O"), molecule("NH3")
    water.write(tmp_path / "water.xyz")
    batch = load_batch(str(tmp_path / "water.xyz"), cutoff=5.0, max_neighbors=7)
    assert batch.graphs["slabs"].caps_of(1).main == 7
    assert batch.graphs["slabs"].cutoff == 5.0
    save_structures(tmp_path / "own.npz", batch.structures, batch.task_of)
    (again,) = load_batch(str(tmp_path / "own.npz")).structures
    assert np.allclose(again.pos, water.positions, atol=1e-6)
    assert again.atomic_numbers.tolist() == [8, 1, 1]
    assert len(ammonia) == 4


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no batch or file 'slab99'; batches are slab98"):
        load_batch("slab99")
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a file of structures"):
        read_structures(tmp_path / "x.npz")
    with pytest.raises(UserError, match="cutoff must be between"):
        load_batch("slab98", cutoff=-1.0)
