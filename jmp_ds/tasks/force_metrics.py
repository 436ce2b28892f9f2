"""How well forces point, how long they are, and how many structures are right altogether: the measures of OC20.

As OCP's evaluator defines them, over atoms that are not held fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Largest errors of the energy (eV) and of a force component (eV/Å) of a structure that is right, both excluded (OC20).
ENERGY_WITHIN, FORCES_WITHIN = 0.02, 0.03


def cosines(predicted: Tensor, labelled: Tensor) -> Tensor:
    """Cosine of the angle between both forces of every atom, [N] from two [N, 3], float64.

    A force of zero has no direction; its cosine is 0, and it counts (lengths are taken as 1e-8 eV/Å at least).
    """
    return functional.cosine_similarity(predicted.double(), labelled.double(), dim=-1)


def magnitude_errors(predicted: Tensor, labelled: Tensor) -> Tensor:
    """Absolute difference of the lengths of both forces of every atom, [N] from two [N, 3] eV/Å, float64."""
    found: Tensor = torch.linalg.vector_norm(predicted.double(), dim=-1)
    return (found - torch.linalg.vector_norm(labelled.double(), dim=-1)).abs()


def within_thresholds(energy_errors: Tensor, force_errors: Tensor, free: Tensor, structure: Tensor) -> Tensor:
    """Which structures have an energy and forces that are right; false where a number is not finite.

    Args:
        energy_errors: absolute, eV, [B].
        force_errors: absolute, eV/Å, [N, 3].
        free: bool [N], atoms that are judged; of a structure without any the energy alone decides.
        structure: int64 [N], the structure of every atom.

    Returns:
        Bool [B].
    """
    wrong = (~(force_errors < FORCES_WITHIN).all(-1) & free).long()
    wrong_atoms = structure.new_zeros(energy_errors.shape[0]).index_add(0, structure, wrong)
    return (energy_errors < ENERGY_WITHIN) & (wrong_atoms == 0)
