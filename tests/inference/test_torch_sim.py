"""The model class for TorchSim, where that package is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from inference.using import bundle_with, task

from jmp_ds.errors import UserError
from jmp_ds.inference.predictor import Predictor

ts = pytest.importorskip("torch_sim", reason="the package torch-sim-atomistic is not installed (extra `torchsim`)")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from jmp_ds.inference.torch_sim import JMPTorchSim  # noqa: E402


def crystals():
    frames = [bulk("Cu", cubic=True), bulk("Cu").repeat((2, 1, 1))]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=k)
    return frames


def test_its_own_validation() -> None:
    model = JMPTorchSim(bundle_with(), allow_unseen=True, dtype="float64", device="cpu")
    validate_model_outputs(model, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("kind", ["gradient", "direct"])
def test_the_same_numbers(kind: str) -> None:
    bundle = bundle_with(task(kind=kind))
    state = ts.io.atoms_to_state(crystals(), torch.device("cpu"), torch.float64)
    found = JMPTorchSim(bundle, dtype="float64", device="cpu")(state)
    expected = Predictor(bundle, dtype="float64").predict(crystals())
    np.testing.assert_allclose(found["energy"], [p.energy for p in expected], rtol=1e-12)
    np.testing.assert_allclose(found["forces"], np.concatenate([p.forces for p in expected]), atol=1e-10)
    assert ("stress" in found) == (kind == "gradient")
    if kind == "gradient":
        for own, p in zip(found["stress"].numpy(), expected, strict=True):
            np.testing.assert_allclose(own[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], p.stress, atol=1e-10)


def test_dynamics() -> None:
    """TorchSim's own integrator runs on it."""
    model = JMPTorchSim(bundle_with(), dtype="float64", device="cpu")
    state = ts.io.atoms_to_state(crystals(), torch.device("cpu"), torch.float64)
    final = ts.integrate(system=state, model=model, integrator=ts.nve, n_steps=5, temperature=50, timestep=0.0005)
    assert torch.isfinite(final.positions).all()
    assert not torch.equal(final.positions, state.positions)


def test_refusals() -> None:
    state = ts.io.atoms_to_state([bulk("Au")], torch.device("cpu"), torch.float64)
    with pytest.raises(UserError, match="structure 0: Au: not among the elements"):
        JMPTorchSim(bundle_with(), device="cpu")(state)
    with pytest.raises(UserError, match="has no energy with forces"):
        JMPTorchSim(bundle_with(task(kind=None)), device="cpu")
