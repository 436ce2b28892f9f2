"""Structures of ASE's atoms, and networks whose scale factors are set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import nn

from jmp_ds.graphs.assemble import Structure
from jmp_ds.models.presets import preset
from jmp_ds.models.scaling import scale_factors
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import Task


def structure(atoms: Atoms, tags: Sequence[int] | None = None, id: str = "") -> Structure:
    """ASE's atoms as a structure."""
    return Structure(
        pos=atoms.get_positions(),
        atomic_numbers=atoms.numbers.astype(np.int64),
        cell=np.asarray(atoms.cell),
        pbc=np.asarray(atoms.pbc),
        tags=None if tags is None else np.asarray(tags),
        id=id,
    )


def tiny_model(*tasks: Task, seed: int = 0) -> MultiTaskModel:
    """A tiny network of random weights with these tasks and scale factors of one."""
    torch.manual_seed(seed)
    model = MultiTaskModel(preset("tiny"), tasks)
    set_scales(model)
    return model


def set_scales(model: nn.Module, value: float = 1.0) -> None:
    """Give every scale factor the same value; 0 means that it is not fitted."""
    for factor in scale_factors(model).values():
        factor.scale_factor.fill_(value)
