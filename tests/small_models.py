"""Structures of ASE's atoms, and networks whose scale factors are set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from torch import nn

from jmp_ds.graphs.assemble import Structure
from jmp_ds.models.scaling import scale_factors


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


def set_scales(model: nn.Module, value: float = 1.0) -> None:
    """Give every scale factor the same value; 0 means that it is not fitted."""
    for factor in scale_factors(model).values():
        factor.scale_factor.fill_(value)
