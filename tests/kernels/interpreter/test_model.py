"""The whole network on the Triton operators against the same weights on PyTorch: outputs, gradients, training steps."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from checks import assert_close
from jmp_kernels import TorchMessages, messages_for, trilinear
from torch import Tensor

from jmp_ds.bench.step import set_scales
from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.presets import preset
from jmp_ds.tasks.losses import loss_sums
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForceKind, ForcesTarget, Task

#: Relative RMS of outputs and of gradients from PyTorch's in float64. PyTorch's own float32 is 1e-4 away from it in the
#: quadruplets' gradients: a middle bond with few neighbours subtracts almost all that it has summed.
LIMITS = {torch.float64: (1e-13, 1e-11), torch.float32: (5e-6, 3e-4)}
GRAPH = GraphSettings(cutoff=4.5, max_neighbors=10)
#: Bent and not symmetric, so that no gradient vanishes; the cell is so small that atoms see their own images.
WATER = Structure(
    pos=np.array([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.1, -0.7, -0.45]]), atomic_numbers=np.array([8, 1, 1])
)
CELL = Structure(
    pos=np.array([[0.0, 0.1, 0.0], [2.0, 1.9, 2.1]]),
    atomic_numbers=np.array([11, 17]),
    cell=np.array([[4.1, 0.0, 0.1], [0.2, 3.9, 0.0], [0.0, 0.3, 4.2]]),
    pbc=np.ones(3, dtype=bool),
)
SMALL = replace(
    preset("tiny"), num_blocks=1, num_radial=16, num_spherical=4, emb_size_atom=16, emb_size_edge=24, num_concat=1
)
KINDS: list[ForceKind] = ["direct", "gradient"]


@dataclass(frozen=True)
class Found:
    """What one evaluation gave: outputs of the task, and the gradient of every parameter."""

    outputs: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _model(kind: ForceKind, dtype: torch.dtype, backend: str, device: torch.device, **sizes: int) -> MultiTaskModel:
    torch.manual_seed(0)
    task = Task(name="t", graph=GRAPH, energy=EnergyTarget(), forces=ForcesTarget(kind=kind))
    messages = messages_for(backend, device)  # type: ignore[arg-type]
    model = MultiTaskModel(replace(SMALL, **sizes), (task,), messages)
    set_scales(model)
    return model.to(device=device, dtype=dtype)


def _batch(device: torch.device, *structures: Structure) -> Batch:
    labels: list[dict] = [{"energy": 1.0, "forces": np.ones((s.natoms, 3))} for s in structures]
    return assemble(structures, [0] * len(structures), [("t", GRAPH)], labels).to(device)


def _found(model: MultiTaskModel, batch: Batch) -> Found:
    """Of a loss in which every output counts."""
    model.zero_grad()
    outputs = model(batch)["t"]
    energy, forces = outputs["energy"], outputs["forces"]
    weights = torch.linspace(-1.0, 2.0, forces.numel(), device=forces.device, dtype=forces.dtype).view_as(forces)
    (energy.square().sum() + (forces * weights).sum() + forces.square().sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return Found({name: x.detach() for name, x in outputs.items()}, gradients)


@pytest.fixture(scope="module")
def batch(device: torch.device) -> Batch:
    return _batch(device, WATER, CELL)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("direct", torch.float64),
        ("direct", torch.float32),
        ("gradient", torch.float64),
        pytest.param("gradient", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_outputs_and_every_gradient(kind: ForceKind, dtype: torch.dtype, batch: Batch, device: torch.device) -> None:
    assert batch.graph.quadruplets.in_edge.numel() > 20
    expected = _found(_model(kind, torch.float64, "torch", device), batch)
    result = _found(_model(kind, dtype, "triton", device), batch)
    limits = LIMITS[dtype]
    for label, value in expected.outputs.items():
        assert_close(label, result.outputs[label], value, limits[0])
    assert set(result.gradients) == set(expected.gradients)
    for name, gradient in expected.gradients.items():
        assert_close(f"gradient of {name}", result.gradients[name], gradient, limits[1])


@pytest.fixture
def no_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every PyTorch form of message passing raises when it is called."""

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a PyTorch twin was called")

    for name, _ in inspect.getmembers(trilinear, inspect.isfunction):
        monkeypatch.setattr(trilinear, name, refuse)
    for name, _ in inspect.getmembers(TorchMessages, inspect.isfunction):
        monkeypatch.setattr(TorchMessages, name, staticmethod(refuse))


@pytest.mark.usefixtures("no_twins")
@pytest.mark.parametrize("kind", KINDS)
def test_training_needs_no_twin(kind: ForceKind, batch: Batch, device: torch.device) -> None:
    """Forward, training's loss, backward (through the forces where they are gradients) and an update."""
    model = _model(kind, torch.float32, "triton", device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-20)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.stack(list(loss_sums(model(batch), batch, model.tasks).values())).sum().backward()
    optimiser.step()
    unmoved = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert unmoved == []
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.usefixtures("no_twins")
def test_the_stubs_are_in_the_way_of_pytorch(batch: Batch, device: torch.device) -> None:
    with pytest.raises(AssertionError, match="twin was called"):
        _model("direct", torch.float32, "torch", device)(batch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_nothing(kind: ForceKind, device: torch.device) -> None:
    found = _found(_model(kind, torch.float32, "triton", device), _batch(device))
    assert found.outputs["energy"].shape == (0,)
    assert found.outputs["forces"].shape == (0, 3)
    assert all(not bool(gradient.any()) for gradient in found.gradients.values())


@pytest.mark.parametrize("kind", ["direct", pytest.param("gradient", marks=pytest.mark.slow)])
def test_runs_are_the_same_bit_by_bit(kind: ForceKind, batch: Batch, device: torch.device) -> None:
    model = _model(kind, torch.float32, "triton", device)
    first, second = _found(model, batch), _found(model, batch)
    assert all(torch.equal(first.outputs[name], second.outputs[name]) for name in first.outputs)
    assert all(torch.equal(first.gradients[name], second.gradients[name]) for name in first.gradients)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_blocks_at_the_published_orders_recomputed(kind: ForceKind, device: torch.device) -> None:
    """Seven orders, blocks that keep only their inputs, and a structure without any edge in the batch."""
    alone = Structure(pos=np.zeros((1, 3)), atomic_numbers=np.array([2]))
    batch = _batch(device, WATER, alone, CELL)
    sizes = {"num_blocks": 2, "num_spherical": 7}
    expected = _found(_model(kind, torch.float64, "torch", device, **sizes), batch)
    result = _found(_model(kind, torch.float64, "triton", device, **sizes, recompute=True), batch)
    for label, value in expected.outputs.items():
        assert_close(label, result.outputs[label], value, 1e-13)
    for name, gradient in expected.gradients.items():
        assert_close(f"gradient of {name}", result.gradients[name], gradient, 1e-11)
