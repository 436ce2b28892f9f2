"""A small model with the interface of the real one: several tasks, energies, direct and gradient forces, dropout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

TASKS = ("slab", "molecule", "path")
GRADIENT = "path"
WIDTH = 8


@dataclass(frozen=True)
class ToyBatch:
    pos: Tensor  # [N, 3]
    kind: Tensor  # [N]
    structure: Tensor  # [N]
    task: Tensor  # [B]
    energy: Tensor  # [B]
    forces: Tensor  # [N, 3]
    present: Tensor  # [B] whether there are labels
    ids: tuple[str, ...]

    @property
    def num_structures(self) -> int:
        return self.task.shape[0]

    def to(self, device: torch.device) -> ToyBatch:
        return self

    def double(self) -> ToyBatch:
        return replace(self, pos=self.pos.double(), energy=self.energy.double(), forces=self.forces.double())


def structure(number: int) -> ToyBatch:
    """Structure `number` of an endless set: 1 to 5 atoms, task by number, some without labels."""
    g = torch.Generator().manual_seed(1000 + number)
    n = 1 + number % 5
    return ToyBatch(
        pos=torch.randn(n, 3, generator=g),
        kind=torch.randint(4, (n,), generator=g),
        structure=torch.zeros(n, dtype=torch.int64),
        task=torch.tensor([number % len(TASKS)]),
        energy=torch.randn(1, generator=g),
        forces=torch.randn(n, 3, generator=g),
        present=torch.tensor([number % 7 != 6]),
        ids=(f"toy-{number}",),
    )


def batch(numbers: Sequence[int]) -> ToyBatch:
    parts = [structure(n) for n in numbers]
    if not parts:
        one = structure(0)
        return ToyBatch(
            one.pos[:0],
            one.kind[:0],
            one.structure[:0],
            one.task[:0],
            one.energy[:0],
            one.forces[:0],
            one.present[:0],
            (),
        )
    owner = torch.cat([torch.full_like(p.structure, i) for i, p in enumerate(parts)])
    joined = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name in ("pos", "kind", "task", "energy", "forces", "present")
    }
    return ToyBatch(structure=owner, ids=tuple(p.ids[0] for p in parts), **joined)


class ToyModel(nn.Module):
    """Names of parameters as in the real model: embedding, int_blocks, out_blocks, bases, heads."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, direct: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.gradient = None if direct else GRADIENT
        self.order = list(enumerate(TASKS))
        self.embedding = nn.Embedding(4, WIDTH)
        self.bases = nn.ModuleDict({"rbf": nn.Linear(3, WIDTH, bias=False)})
        self.int_blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.out_blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict()
        for task in TASKS:
            labels = {"energy": nn.Linear(WIDTH, 1)}
            if task != self.gradient:
                labels["forces"] = nn.Linear(WIDTH, 3)
            self.heads[task] = nn.ModuleDict(labels)
        self.register_buffer("scale_factor", torch.tensor(1.0))

    def forward(self, batch: ToyBatch) -> dict[str, dict[str, Tensor]]:
        with torch.enable_grad():
            pos = batch.pos.to(self.embedding.weight.dtype).requires_grad_(True)
            h = self.embedding(batch.kind) + torch.tanh(self.bases["rbf"](pos))
            out = self.out_blocks[0](h)
            for block, last in zip(self.int_blocks, self.out_blocks[1:], strict=True):
                h = h + self.dropout(torch.tanh(block(h) * self.bases["rbf"](pos)))
                out = out + last(h)
            outputs: dict[str, dict[str, Tensor]] = {}
            for number, task in self.order:
                rows = torch.nonzero(batch.task == number).flatten()
                atoms = torch.nonzero(batch.task[batch.structure] == number).flatten()
                owner = torch.searchsorted(rows, batch.structure[atoms])
                per_atom = self.heads[task]["energy"](out[atoms])[:, 0].to(pos.dtype)
                energy = pos.new_zeros(len(rows)).index_add(0, owner, per_atom)
                if task == self.gradient:
                    slope = torch.autograd.grad(energy.sum(), pos, create_graph=self.training)[0]
                    forces = -slope[atoms]
                else:
                    forces = self.heads[task]["forces"](out[atoms]).to(pos.dtype)
                outputs[task] = {"energy": energy, "forces": forces}
        if self.training:
            return outputs
        return {t: {label: v.detach() for label, v in o.items()} for t, o in outputs.items()}


def loss_sums(outputs: dict[str, dict[str, Tensor]], batch: ToyBatch) -> dict[str, Tensor]:
    first = outputs[TASKS[0]]["energy"]
    sums = {"energy": first.new_zeros(()), "forces": first.new_zeros(())}
    for number, task in enumerate(TASKS):
        rows = batch.task == number
        atoms = rows[batch.structure]
        present = batch.present[rows].to(first.dtype)
        sums["energy"] = sums["energy"] + (present * (outputs[task]["energy"] - batch.energy[rows]).abs()).sum()
        norm = (outputs[task]["forces"] - batch.forces[atoms] + 1e-6).norm(dim=1)
        weights = (
            batch.present[batch.structure][atoms] / torch.bincount(batch.structure, minlength=1)[batch.structure][atoms]
        )
        sums["forces"] = sums["forces"] + 10.0 * (weights.to(first.dtype) * norm).sum()
    return sums


def count_labels(batch: ToyBatch) -> dict[str, int]:
    present = int(batch.present.sum())
    return {"energy": present, "forces": present}


def total_counts(batches: Sequence[ToyBatch]) -> dict[str, int]:
    return {g: sum(count_labels(b)[g] for b in batches) for g in ("energy", "forces")}


def reference_gradients(model: nn.Module, batches: Sequence[ToyBatch]) -> dict[str, Tensor]:
    """Gradients of the loss of all structures together, in plain torch, in the model's precision."""
    dtype = next(model.parameters()).dtype
    counts = total_counts(batches)
    joined = join(batches)
    joined = joined.double() if dtype == torch.float64 else joined
    model.train()
    sums = loss_sums(model(joined), joined)
    loss = sum(sums[g] / counts[g] for g in counts)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(model.named_parameters(), gradients, strict=True)
    }


def join(batches: Sequence[ToyBatch]) -> ToyBatch:
    return batch([int(i.removeprefix("toy-")) for b in batches for i in b.ids])
