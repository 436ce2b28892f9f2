"""Batches without a network: what heads, losses and metrics need to know of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch

from jmp_ds.graphs.batch import Batch, Labels, TaskRows

MakeBatch = Callable[..., Batch]


def rows_of(task: int, task_of: Sequence[int], natoms: Sequence[int], edge_target: torch.Tensor) -> TaskRows:
    """Rows of one task, by plain loops."""
    structures = [b for b, t in enumerate(task_of) if t == task]
    first = np.concatenate([[0], np.cumsum(natoms)]).astype(int)
    atoms = [a for b in structures for a in range(first[b], first[b + 1])]
    edges = [e for e, a in enumerate(edge_target.tolist()) if a in atoms]
    long = torch.int64
    return TaskRows(
        structures=torch.tensor(structures, dtype=long),
        atoms=torch.tensor(atoms, dtype=long),
        edges=torch.tensor(edges, dtype=long),
        atom_structure=torch.tensor([k for k, b in enumerate(structures) for _ in range(natoms[b])], dtype=long),
        edge_atom=torch.tensor([atoms.index(int(edge_target[e])) for e in edges], dtype=long),
    )


@pytest.fixture
def make_batch() -> MakeBatch:
    """Builds a batch from atom counts, the task of every structure, task names, labels and edge targets."""

    def build(
        natoms: Sequence[int],
        task_of: Sequence[int],
        names: Sequence[str],
        labels: Mapping[str, Labels] | None = None,
        edge_target: Sequence[int] = (),
        numbers: Sequence[int] | None = None,
        fixed: Sequence[bool] | None = None,
    ) -> Batch:
        n, b = sum(natoms), len(natoms)
        target = torch.tensor(list(edge_target), dtype=torch.int64)
        return Batch(
            pos=torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
            cell=torch.zeros(b, 3, 3, dtype=torch.float64),
            pbc=torch.zeros(b, 3, dtype=torch.bool),
            atomic_numbers=torch.tensor(list(numbers) if numbers is not None else [1] * n, dtype=torch.int64),
            tags=torch.full((n,), 2),
            fixed=torch.tensor(list(fixed) if fixed is not None else [False] * n, dtype=torch.bool),
            natoms=torch.tensor(list(natoms), dtype=torch.int64),
            structure=torch.repeat_interleave(torch.arange(b), torch.tensor(list(natoms), dtype=torch.int64)),
            graph=None,  # type: ignore[arg-type]
            task_names=tuple(names),
            task=torch.tensor(list(task_of), dtype=torch.int64),
            rows={name: rows_of(t, task_of, natoms, target) for t, name in enumerate(names)},
            labels=dict(labels or {}),
        )

    return build
