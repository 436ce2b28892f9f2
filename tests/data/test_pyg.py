"""To torch-geometric and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from jmp_ds.data.pyg import from_pyg, to_pyg
from jmp_ds.data.record import BadRecord, make_record


@pytest.mark.parametrize("natoms", [1, 3, 6])
def test_round_trip(natoms: int) -> None:
    rng = np.random.default_rng(natoms)
    record = make_record(
        pos=rng.normal(size=(natoms, 3)) * 5,
        atomic_numbers=rng.integers(1, 20, natoms),
        cell=np.eye(3) * 9,
        pbc=[True, True, False],
        labels={"energy": -1.5, "forces": rng.normal(size=(natoms, 3)), "stress": np.arange(6.0)},
        tags=rng.integers(0, 3, natoms),
        fixed=rng.random(natoms) < 0.5,
        id="a",
        group="g",
    )
    again = from_pyg(to_pyg(record))
    for name in ("pos", "atomic_numbers", "cell", "pbc", "tags", "fixed"):
        assert np.array_equal(getattr(record, name), getattr(again, name)), name
    assert (again.id, again.group) == ("a", "g")
    assert {k: v.shape for k, v in again.labels.items()} == {k: v.shape for k, v in record.labels.items()}
    assert all(np.array_equal(again.labels[k], record.labels[k]) for k in record.labels)


def test_joins_in_a_batch() -> None:
    records = [
        make_record(pos=np.arange(3.0 * n).reshape(n, 3), atomic_numbers=[6] * n, id="x", labels={"energy": float(n)})
        for n in (2, 3)
    ]
    batch = Batch.from_data_list([to_pyg(r) for r in records])
    assert batch.pos.shape == (5, 3)
    assert batch.cell.shape == (2, 3, 3)
    assert batch.energy.tolist() == [2.0, 3.0]
    assert batch.batch.tolist() == [0, 0, 1, 1, 1]


def test_from_a_plain_data() -> None:
    data = Data(z=torch.tensor([8, 1]), pos=torch.tensor([[0.0, 0, 0], [1, 0, 0]]), y=torch.tensor([2.5]))
    record = from_pyg(data)
    assert record.atomic_numbers.tolist() == [8, 1]
    assert record.labels["y"] == 2.5
    assert not record.pbc.any()
    with pytest.raises(BadRecord):
        from_pyg(Data(z=torch.tensor([200, 1]), pos=data.pos))
