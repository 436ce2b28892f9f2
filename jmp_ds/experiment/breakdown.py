"""Where a model errs: mean absolute errors by element, by size of the structure, and by the source's own kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jmp_ds.data.sources import Source
from jmp_ds.graphs.batch import Batch
from jmp_ds.tasks.normalise import denormalize, present
from jmp_ds.tasks.specs import ClassTarget, Task

#: Of what the errors are told apart, in this order.
KINDS = ("element", "atoms", "config_type")
#: Name under which sources keep their own kinds of structures.
CONFIG_TYPE = "config_type"
#: Structures whose kind is looked up, at most.
_LOOKED_UP = 20_000

#: (metric, kind, value) → sum of absolute errors, how many.
Sums = dict[tuple[str, str, str], list[float]]


def add_errors(
    sums: Sums, task: Task, outputs: Mapping[str, Tensor], batch: Batch, config_types: Mapping[str, str]
) -> None:
    """Add one batch of a task.

    Forces count per component, by the element of their atom; energies per atom of a structure; both and other numbers of
    structures by size (in powers of two) and by kind. Classes have no such errors.

    Args:
        sums: added to.
        task: of the model.
        outputs: the task's, normalised.
        batch: with its labels.
        config_types: by id of a structure.
    """
    rows = batch.rows[task.name]
    natoms = batch.natoms.index_select(0, rows.structures)
    sizes = [_size(int(n)) for n in natoms.tolist()]
    kinds = [config_types.get(batch.ids[i], "") if batch.ids else "" for i in rows.structures.tolist()]
    predicted = denormalize(task, outputs, batch)
    for label in task.labels:
        if label not in batch.labels or isinstance(task.target(label), ClassTarget):
            continue
        there = present(task, label, batch)
        if label == "forces":
            wanted = batch.labels[label].values.index_select(0, rows.atoms).double()
            errors, each = 1000.0 * (predicted[label] - wanted).abs().mean(-1), rows.atom_structure.tolist()
            there = there.index_select(0, rows.atom_structure)
            elements = batch.atomic_numbers.index_select(0, rows.atoms).tolist()
            _add(sums, f"{task.name}/forces_mae", "element", [str(z) for z in elements], errors, there)
        else:
            wanted = batch.labels[label].values.index_select(0, rows.structures).double()
            errors, each = (predicted[label] - wanted).abs(), list(range(len(sizes)))
            errors = errors.mean(-1) if errors.dim() > 1 else errors
            if label == "stress":
                errors = 1000.0 * errors
            if label == "energy":
                errors = 1000.0 * errors / natoms.clamp(min=1)
        metric = f"{task.name}/{label}_mae" + ("_per_atom" if label == "energy" else "")
        _add(sums, metric, "atoms", [sizes[i] for i in each], errors, there)
        _add(sums, metric, CONFIG_TYPE, [kinds[i] for i in each], errors, there)


def joined(parts: Sequence[Sums]) -> dict[str, dict[str, dict[str, float]]]:
    """Of all processes: metric → kind → value → mean absolute error; a kind with a single value says nothing new."""
    total: Sums = {}
    for part in parts:
        for key, (error, count) in part.items():
            pair = total.setdefault(key, [0.0, 0.0])
            pair[0], pair[1] = pair[0] + error, pair[1] + count
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (metric, kind, value), (error, count) in sorted(total.items(), key=lambda item: _order(item[0])):
        found.setdefault(metric, {}).setdefault(kind, {})[value] = error / count
    return {m: {k: v for k, v in kinds.items() if len(v) > 1} for m, kinds in found.items()}


def config_types(sources: Sequence[Source]) -> dict[str, str]:
    """By id of a structure, the kind that its source gave it; empty where the first structures have none."""
    found: dict[str, str] = {}
    for source in sources:
        for number, index in enumerate(source.indices[:_LOOKED_UP].tolist()):
            record = source.store[index]
            kind = record.info.get(CONFIG_TYPE)
            if kind is not None:
                found[record.id] = str(kind)
            elif number == 0:
                break
    return found


def _add(sums: Sums, metric: str, kind: str, values: Sequence[str], errors: Tensor, there: Tensor) -> None:
    numbers = torch.where(there, errors, torch.nan).tolist()
    for value, error in zip(values, numbers, strict=True):
        if error == error and value:  # NaN: no label
            pair = sums.setdefault((metric, kind, value), [0.0, 0.0])
            pair[0], pair[1] = pair[0] + error, pair[1] + 1.0


def _size(natoms: int) -> str:
    low = 1 << max(natoms.bit_length() - 1, 0)
    return f"{low}-{2 * low - 1}"


def _order(key: tuple[str, str, str]) -> tuple[Any, ...]:
    metric, kind, value = key
    first = value.split("-")[0]
    return metric, KINDS.index(kind), int(first) if first.isdigit() else 0, value
