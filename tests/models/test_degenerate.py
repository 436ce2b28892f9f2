"""Few atoms, no edges, straight and flat molecules, tags that leave nothing: finite outputs and gradients, always."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from building import batch_for, model_for
from small_models import structure

from jmp_ds.graphs.settings import GraphSettings, published

CASES: dict[str, tuple[Atoms, list[int] | None]] = {
    "one atom": (Atoms("H"), None),
    "two atoms": (molecule("CO"), None),
    "three atoms": (molecule("H2O"), None),
    "straight, three atoms": (molecule("CO2"), None),
    "straight, four atoms": (molecule("C2H2"), None),
    "flat": (molecule("H2CO"), None),
    "far apart": (Atoms("H2", [[0, 0, 0], [50, 0, 0]]), None),
    "one atom per cell": (bulk("Cu"), None),
    "one atom per cell, nothing in reach": (Atoms("He", cell=[30, 30, 30], pbc=True), None),
    "nothing in the tags": (bulk("Cu").repeat((2, 1, 1)), [0, 0]),
    "periodic along one axis": (
        Atoms("C2", [[0, 0, 0], [0, 0, 1.3]], cell=[0, 0, 2.6], pbc=[False, False, True]),
        None,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["direct", "gradient"])
@pytest.mark.parametrize("rule", ["new", "published"])
@pytest.mark.parametrize("case", list(CASES))
def test_finite(case: str, rule: str, kind: str, dtype: torch.dtype) -> None:
    settings = GraphSettings(cutoff=6.0) if rule == "new" else published(6.0)
    model = model_for(settings, kind, dtype=dtype)
    atoms, tags = CASES[case]
    out = model(batch_for(model, [structure(atoms, tags)]))["t"]
    assert out["energy"].shape == (1,)
    assert out["forces"].shape == (len(atoms), 3)
    (out["energy"].sum() + (out["forces"] - 1.0).square().sum()).backward()
    assert torch.isfinite(out["energy"]).all()
    assert torch.isfinite(out["forces"]).all()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("kind", ["direct", "gradient"])
def test_an_empty_batch_is_a_batch(kind: str) -> None:
    """A rank may have nothing to do; it must still take part with every parameter."""
    model = model_for(GraphSettings(cutoff=6.0), kind)
    out = model(batch_for(model, []))["t"]
    assert out["energy"].shape == (0,)
    assert out["forces"].shape == (0, 3)
    (out["energy"].sum() + out["forces"].sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_small_and_large_in_one_batch() -> None:
    model = model_for(GraphSettings(cutoff=6.0))
    structures = [structure(atoms, tags) for atoms, tags in CASES.values()]
    together = model(batch_for(model, structures))["t"]["energy"]
    alone = torch.cat([model(batch_for(model, [s]))["t"]["energy"] for s in structures])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_forces_of_a_straight_molecule_stay_on_the_line() -> None:
    model = model_for(GraphSettings(cutoff=6.0), "gradient")
    atoms = molecule("C2H2")
    forces = model(batch_for(model, [structure(atoms)]))["t"]["forces"].detach().numpy()
    axis = atoms.positions[1] - atoms.positions[0]
    axis /= np.linalg.norm(axis)
    assert np.abs(forces - (forces @ axis)[:, None] * axis).max() < 1e-12
