"""Records to and from torch-geometric's `Data`, at the border to other people's programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from jmp_ds.data.record import Record, make_record

if TYPE_CHECKING:
    from torch_geometric.data import Data

_OWN = ("pos", "atomic_numbers", "cell", "pbc", "tags", "fixed", "natoms", "id", "group")


def to_pyg(record: Record) -> Data:
    """A `Data` with pos [n, 3] (float64, Å), atomic_numbers [n] (int64), cell [1, 3, 3], pbc [1, 3], tags [n],
    fixed [n], natoms, id, group, and every label under its own name (float64; numbers as [1], stress as [1, 6]).
    """
    from torch_geometric.data import Data

    # What belongs to the structure gets a leading axis of length 1, along which `Batch` joins.
    labels = {
        name: torch.from_numpy(np.array(value[None] if value.ndim == 0 or name == "stress" else value))
        for name, value in record.labels.items()
    }
    return Data(
        pos=torch.from_numpy(record.pos.copy()),
        atomic_numbers=torch.from_numpy(record.atomic_numbers.astype(np.int64)),
        cell=torch.from_numpy(record.cell[None].copy()),
        pbc=torch.from_numpy(record.pbc[None].copy()),
        tags=torch.from_numpy(record.tags.astype(np.int64)),
        fixed=torch.from_numpy(record.fixed.copy()),
        natoms=record.natoms,
        id=record.id,
        group=record.group,
        **labels,
    )


def from_pyg(data: Data) -> Record:
    """A validated record from a `Data` as `to_pyg` makes it; `z` may stand for atomic_numbers.

    Labels are its further float attributes: one number, [n], [n, 3], or stress [6].

    Raises:
        BadRecord: see `make_record`.
    """
    values: dict[str, Any] = data.to_dict()
    numbers = values.get("atomic_numbers", values.get("z"))
    cell, pbc = values.get("cell"), values.get("pbc")
    n = len(values["pos"])
    labels = {
        name: _label(value.detach().cpu().double().numpy(), n)
        for name, value in values.items()
        if name not in _OWN and isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    return make_record(
        pos=_numpy(values["pos"]),
        atomic_numbers=_numpy(numbers),
        cell=None if cell is None else _numpy(cell).reshape(3, 3),
        pbc=None if pbc is None else _numpy(pbc).reshape(-1),
        tags=None if values.get("tags") is None else _numpy(values["tags"]),
        fixed=None if values.get("fixed") is None else _numpy(values["fixed"]).astype(bool),
        labels=labels,
        id=str(values.get("id", "")),
        group=str(values.get("group", "")),
    )


def _numpy(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _label(value: NDArray[np.float64], natoms: int) -> NDArray[np.float64]:
    """Without the leading axis of length 1 that `Batch` needs for joining."""
    per_structure = value.shape[:1] == (1,) and value.shape != (natoms, 3)
    return np.asarray(value[0]) if per_structure else value
