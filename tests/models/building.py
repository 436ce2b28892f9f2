"""Structures and small models for tests of the network's behaviour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms

from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.models.presets import preset
from jmp_ds.models.scaling import scale_factors
from jmp_ds.tasks.model import MultiTaskModel, Outputs
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Task


def structure(atoms: Atoms, tags: Sequence[int] | None = None) -> Structure:
    """ASE's atoms as a structure."""
    return Structure(
        pos=atoms.get_positions(),
        atomic_numbers=atoms.numbers.astype(np.int64),
        cell=np.asarray(atoms.cell),
        pbc=np.asarray(atoms.pbc),
        tags=None if tags is None else np.asarray(tags),
    )


def model_for(
    settings: GraphSettings, kind: str = "direct", seed: int = 0, dtype: torch.dtype = torch.float64
) -> MultiTaskModel:
    """A tiny model with one task and scale factors of one."""
    torch.manual_seed(seed)
    task = Task(name="t", graph=settings, energy=EnergyTarget(), forces=ForcesTarget(kind=kind))  # type: ignore[arg-type]
    model = MultiTaskModel(preset("tiny"), (task,)).to(dtype)
    for factor in scale_factors(model).values():
        factor.scale_factor.fill_(1.0)
    return model


def batch_for(model: MultiTaskModel, structures: Sequence[Structure]) -> Batch:
    """The structures as a batch of the model's only task."""
    return assemble(structures, [0] * len(structures), [(t.name, t.graph) for t in model.tasks])


def evaluate(model: MultiTaskModel, *atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies [B] and forces [N, 3], without gradients of parameters."""
    model.eval()
    out: Outputs = model(batch_for(model, [structure(a) for a in atoms]))
    return out["t"]["energy"].detach(), out["t"]["forces"].detach()
