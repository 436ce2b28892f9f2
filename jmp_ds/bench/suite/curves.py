"""Training curves: `python -m jmp_ds.bench.suite.curves DEVICE KERNELS OUTDIR [--trial]`.

A small model in a plain loop, on molecules with the energies and forces of a pair potential, for every precision and three
seeds. Writes OUTDIR/curves-KERNELS.csv, one column per run; `spread` compares them.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jmp_kernels import BackendName, messages_for
from numpy.typing import NDArray

from jmp_ds.bench.batches import BenchBatch, load_batch
from jmp_ds.bench.step import set_scales
from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.models.presets import preset
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import Task
from jmp_ds.training.optimizer import OptimizerOptions, adamw, parameter_groups

SEEDS = (0, 1, 2)
STEPS = 200
#: Structures per batch, and how often every molecule is rattled anew, by this many Å.
PER_BATCH, COPIES, RATTLE = 16, 2, 0.05
#: Length (Å) over which the pair potential falls off.
RANGE = 1.0

Labels = dict[str, NDArray[np.float64] | float]


@dataclass(frozen=True)
class Setting:
    """Batches that are trained on, in turn, and the tasks of the model."""

    batches: list[Batch]
    counts: list[dict[str, int]]
    tasks: tuple[Task, ...]


def setting(source: BenchBatch, device: torch.device, copies: int) -> Setting:
    """Batches of rattled molecules on the device."""
    rng = np.random.default_rng(5)
    structures = [
        replace(s, pos=s.pos + RATTLE * rng.standard_normal(s.pos.shape))
        for _ in range(copies)
        for s in source.structures
    ]
    labels = standardised([potential(s) for s in structures])
    order = rng.permutation(len(structures))
    tasks = source.tasks("direct")
    graphs = [(task.name, task.graph) for task in tasks]
    task = [task.name for task in tasks].index(list(source.graphs)[source.task_of[0]])
    chunks = [order[k : k + PER_BATCH] for k in range(0, len(order), PER_BATCH)]
    batches = [
        assemble([structures[k] for k in c], [task] * len(c), graphs, [labels[k] for k in c], build_on=device)
        for c in chunks
    ]
    return Setting(batches, [count_labels(batch, tasks) for batch in batches], tasks)


def potential(structure: Structure) -> Labels:
    """Energy and forces of Σ_pairs √(ZZ') exp(-r / range), a smooth function that can be learned."""
    difference = structure.pos[:, None] - structure.pos[None]
    r = np.linalg.norm(difference, axis=2) + np.eye(structure.natoms)
    charge = np.sqrt(np.multiply.outer(structure.atomic_numbers, structure.atomic_numbers))
    term = charge * np.exp(-r / RANGE) * (1 - np.eye(structure.natoms))
    forces = (term / (RANGE * r))[:, :, None] * difference
    return {"energy": float(term.sum() / 2), "forces": forces.sum(1)}


def standardised(labels: Sequence[Labels]) -> list[Labels]:
    """Energies with mean 0 and variance 1, force components with variance 1."""
    energies = np.array([own["energy"] for own in labels])
    scale = float(np.concatenate([np.ravel(own["forces"]) for own in labels]).std())
    return [
        {
            "energy": float((own["energy"] - energies.mean()) / energies.std()),
            "forces": np.asarray(own["forces"]) / scale,
        }
        for own in labels
    ]


def train(
    where: Setting, kernels: BackendName, precision: str, seed: int, steps: int, device: torch.device
) -> list[float]:
    """Losses of a run; the seed decides the weights and the order of the batches."""
    torch.manual_seed(seed)
    model = MultiTaskModel(preset("tiny"), where.tasks, messages_for(kernels, device))
    set_scales(model)
    model = model.to(device).train()
    optimiser = adamw(parameter_groups(model.named_parameters()), OptimizerOptions(lr=1e-3), device)
    order = np.random.default_rng(seed).integers(len(where.batches), size=steps)
    losses = []
    for k in order:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(where.batches[k])
        sums, counts = loss_sums(outputs, where.batches[k], model.tasks), where.counts[k]
        loss = torch.stack([total / max(counts[group], 1) for group, total in sums.items()]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        losses.append(loss.detach())
    return [float(x) for x in torch.stack(losses).tolist()]


def precisions(device: torch.device) -> tuple[str, ...]:
    """TF32 exists on GPUs alone."""
    return ("float32", "tf32", "bf16") if device.type == "cuda" else ("float32", "bf16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where a loss is not finite."""
    parser = argparse.ArgumentParser(prog="python -m jmp_ds.bench.suite.curves")
    parser.add_argument("device")
    parser.add_argument("kernels", choices=("torch", "triton"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--trial", action="store_true", help="few steps on few structures")
    given = parser.parse_args(arguments)
    device, source = torch.device(given.device), load_batch("ani64")
    if given.trial:
        source = replace(source, structures=source.structures[:8], task_of=source.task_of[:8])
    where = setting(source, device, 1 if given.trial else COPIES)
    runs: dict[str, list[float]] = {}
    for precision in precisions(device):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        for seed in SEEDS:
            name = f"{given.kernels}/{precision}/{seed}"
            runs[name] = train(where, given.kernels, precision, seed, 16 if given.trial else STEPS, device)
            sys.stdout.write(f"{name}: {runs[name][0]:.3f} … {runs[name][-1]:.3f}\n")
            sys.stdout.flush()
            _write(given.out / f"curves-{given.kernels}.csv", runs)
    return int(not all(np.isfinite(losses).all() for losses in runs.values()))


def _write(path: Path, runs: dict[str, list[float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *runs])
        for step, losses in enumerate(zip(*runs.values(), strict=True)):
            writer.writerow([step, *(f"{loss:.6g}" for loss in losses)])


if __name__ == "__main__":
    sys.exit(main())
