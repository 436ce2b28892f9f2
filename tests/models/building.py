"""Structures and small models for tests of the network's behaviour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase import Atoms
from small_models import structure, tiny_model

from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.tasks.model import MultiTaskModel, Outputs
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Task


def model_for(
    settings: GraphSettings, kind: str = "direct", seed: int = 0, dtype: torch.dtype = torch.float64
) -> MultiTaskModel:
    """A tiny model with one task and scale factors of one."""
    task = Task(name="t", graph=settings, energy=EnergyTarget(), forces=ForcesTarget(kind=kind))  # type: ignore[arg-type]
    return tiny_model(task, seed=seed).to(dtype)


def batch_for(model: MultiTaskModel, structures: Sequence[Structure]) -> Batch:
    """The structures as a batch of the model's only task."""
    return assemble(structures, [0] * len(structures), [(t.name, t.graph) for t in model.tasks])


def evaluate(model: MultiTaskModel, *atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies [B] and forces [N, 3], without gradients of parameters."""
    model.eval()
    out: Outputs = model(batch_for(model, [structure(a) for a in atoms]))
    return out["t"]["energy"].detach(), out["t"]["forces"].detach()
