"""Between the model's numbers and the labels' units: value = std · x + mean + sum of element references.

All arithmetic is float64, because total energies reach −10⁴ eV, where float32 resolves 1 meV.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jmp_ds.graphs.batch import StructureRows, Structures
from jmp_ds.tasks.classes import chosen, probabilities
from jmp_ds.tasks.specs import Normalization, Task

_PER_ATOM = ("forces",)


def normalized_target(task: Task, label: str, batch: Structures, dtype: torch.dtype) -> Tensor:
    """What the model should output for one label on the task's rows.

    Args:
        task: the task.
        label: one of its labels; must be in `batch.labels`.
        batch: the batch; rows whose label is absent give finite, meaningless numbers (see `present`).
        dtype: of the result, the one of the outputs.

    Returns:
        [B_t], [N_t, 3] for forces, [B_t, 3] for a dipole that is a vector, [B_t, 6] for stress.
    """
    rows = batch.rows[task.name]
    index = rows.atoms if label in _PER_ATOM else rows.structures
    values = batch.labels[label].values.index_select(0, index).double()
    norm = task.normalize_by(label)
    return ((values - offset(norm, batch, rows)) / norm.std).to(dtype)


def class_numbers(task: Task, label: str, batch: Structures) -> Tensor:
    """The class of each of the task's structures, int64 [B_t]; 0 where the label is absent."""
    return batch.labels[label].values.index_select(0, batch.rows[task.name].structures).round().long()


def denormalize(task: Task, outputs: Mapping[str, Tensor], batch: Structures) -> dict[str, Tensor]:
    """The task's outputs in the labels' units (eV, eV/Å or the target's unit), float64, same shapes as the outputs.

    Logits of classes have no unit and stay as they are.
    """
    rows = batch.rows[task.name]
    result = {}
    for label, values in outputs.items():
        norm = task.normalize_by(label)
        result[label] = values.double() * norm.std + offset(norm, batch, rows)
    return result


def readable(task: Task, values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """De-normalised predictions as numbers for people: one column each, but for forces.

    A class becomes its number under the label and `LABEL_pK`, the probability of class K; a dipole's components become
    `LABEL_x`, `LABEL_y`, `LABEL_z`, those of a stress `stress_xx` to `stress_xy`.

    Args:
        task: the task.
        values: by label, as `denormalize` gives them.
    """
    result = dict(values)
    if "stress" in result:
        stress = result.pop("stress")
        result |= {f"stress_{axes}": stress[:, k] for k, axes in enumerate(("xx", "yy", "zz", "yz", "xz", "xy"))}
    if (target := task.classification) is not None:
        logits = torch.from_numpy(result.pop(target.label))
        result[target.label] = chosen(logits, target).double().numpy()
        result |= {f"{target.label}_p{k}": p.numpy() for k, p in enumerate(probabilities(logits, target).unbind(-1))}
    if (dipole := task.dipole) is not None and not dipole.norm:
        vector = result.pop(dipole.label)
        result |= {f"{dipole.label}_{axis}": vector[:, k] for k, axis in enumerate("xyz")}
    return result


def present(task: Task, label: str, batch: Structures) -> Tensor:
    """Bool [B_t]: which of the task's structures carry the label; all False where the batch has none of it."""
    rows = batch.rows[task.name].structures
    if label not in batch.labels:
        return torch.zeros_like(rows, dtype=torch.bool)
    return batch.labels[label].present.index_select(0, rows)


def offset(norm: Normalization, batch: Structures, rows: StructureRows) -> Tensor | float:
    """Mean plus the references summed over the atoms: float64 [B_t], or the mean alone where there are no references.

    Elements beyond the table count as zero.
    """
    if not norm.references:
        return norm.mean
    numbers = batch.atomic_numbers.index_select(0, rows.atoms)
    table = torch.tensor((*norm.references, 0.0), dtype=torch.float64, device=numbers.device)
    per_atom = table[numbers.clamp(max=len(norm.references))]
    sums = per_atom.new_zeros(rows.structures.shape[0]).index_add(0, rows.atom_structure, per_atom)
    return sums + norm.mean
