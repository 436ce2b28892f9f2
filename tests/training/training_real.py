"""The real model and loader in several processes; results go into files, the tests judge them."""

from __future__ import annotations

import os
import signal
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor
from training_cells import make_engine, used_gradients

from jmp_ds.data.loading import EvalLoader, Loading, TrainLoader
from jmp_ds.data.packing import EdgeBudget
from jmp_ds.data.record import make_record
from jmp_ds.data.sources import Source, open_source
from jmp_ds.data.store import Store, StoreWriter
from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.graphs.unbuilt import BuiltOn
from jmp_ds.models.presets import preset
from jmp_ds.models.scaling import scale_factors
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.metrics import Metrics
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, ScalarTarget, Task
from jmp_ds.training.engine import start_processes, stop_processes
from jmp_ds.training.loop import Loop
from jmp_ds.training.processes import Processes
from jmp_ds.training.run import LoopOptions, Validation
from jmp_ds.training.schedules import Schedule, ScheduleOptions

SLABS = Task(
    name="slabs",
    graph=GraphSettings(cutoff=5.0, max_neighbors=8),
    energy=EnergyTarget(),
    forces=ForcesTarget(weight=73.0),
)
MOLECULES = Task(
    name="molecules",
    graph=GraphSettings(cutoff=5.0),
    energy=EnergyTarget(),
    forces=ForcesTarget(weight=15.0, kind="gradient"),
    scalars=(ScalarTarget(label="gap"),),
)
TASKS = (SLABS, MOLECULES)
GRAPHS = [(t.name, t.graph) for t in TASKS]

#: [rank][micro-batch][numbers]; even numbers are crystals, odd ones molecules, 5 has one atom and 7 no labels.
WINDOWS: dict[str, list[list[list[int]]]] = {
    "equal": [[[0, 1]], [[2, 3]]],
    "task_absent": [[[0, 2, 4]], [[1, 3]]],
    "unequal": [[[0, 1, 2, 3, 5]], [[9]]],
    "empty": [[[0, 1, 3]], [[]]],
    "unlabelled": [[[0, 1]], [[7]]],
    "accumulated": [[[0], [1, 3]], [[2, 9], []]],
}


def atoms(number: int) -> Atoms:
    """Structure `number`, shaken."""
    crystals = [bulk("Cu", cubic=True), bulk("NaCl", "rocksalt", a=5.64), bulk("TiC", "rocksalt", a=4.33)]
    molecules = [molecule(n) for n in ("H2O", "NH3", "H", "CH4", "CH3OH")]
    made = crystals[number // 2 % 3] if number % 2 == 0 else molecules[number // 2 % 5]
    made.rattle(0.08, seed=number)
    return made


def labels(number: int) -> dict[str, Any]:
    if number == 7:
        return {}
    rng = np.random.default_rng(number)
    # Far above the predictions of an untrained model: |error| then has the same slope everywhere, and gradients of
    # single tensors are not small differences of large numbers, which no summation order would reproduce.
    energy, gap = 5.0 + rng.random(2)
    return {"energy": energy, "forces": rng.normal(size=(len(atoms(number)), 3)), "gap": gap}


@cache
def batch(*numbers: int) -> Batch:
    structures = [
        Structure(
            pos=a.get_positions(),
            atomic_numbers=a.numbers.astype(np.int64),
            cell=np.asarray(a.cell),
            pbc=np.asarray(a.pbc),
            id=str(n),
        )
        for n, a in ((n, atoms(n)) for n in numbers)
    ]
    return assemble(structures, [n % 2 for n in numbers], GRAPHS, [labels(n) for n in numbers])


def model(dtype: torch.dtype = torch.float32) -> MultiTaskModel:
    from dataclasses import replace

    torch.manual_seed(0)
    made = MultiTaskModel(replace(preset("tiny"), divide_shared_gradients=True), TASKS)
    for factor in scale_factors(made).values():
        factor.scale_factor.fill_(1.0)
    return made.to(dtype)


def counts_of(window: list[list[list[int]]]) -> dict[str, int]:
    counts = [count_labels(batch(*numbers), TASKS) for rank in window for numbers in rank]
    return {g: sum(c[g] for c in counts) for g in counts[0]}


def reference(dtype: torch.dtype, window: list[list[list[int]]]) -> dict[str, Tensor]:
    """Gradients of one process in plain torch on all structures of a window."""
    network, joined, counts = model(dtype), batch(*(n for rank in window for m in rank for n in m)), counts_of(window)
    sums = loss_sums(network.train()(joined), joined, TASKS)
    sum(sums[g] / counts[g] for g in counts if counts[g]).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in network.named_parameters()}


def gradients(processes: Processes, stages: list[int]) -> dict[str, Any]:
    """Gradients of every window."""
    results: dict[str, Any] = {}
    bf16 = {"torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}}
    for name, stage, ds in [*((str(s), s, {}) for s in stages), ("bf16", 1, bf16)]:
        for accumulation in (1, 2):
            engine = make_engine(processes, stage, accumulation=accumulation, model=model(), ds=ds)
            for window_name, window in WINDOWS.items():
                if len(window[0]) == accumulation:
                    mine = [batch(*numbers) for numbers in window[processes.rank]]
                    losses = partial(loss_sums, tasks=TASKS)
                    results[f"{name}/{window_name}"] = used_gradients(engine, mine, counts_of(window), losses)
    return results


def write_stores(out: Path) -> None:
    """Two small stores: crystals and molecules."""
    for kind, name in enumerate(("slabs", "molecules")):
        with StoreWriter(out / name, {}, shard_size=8) as writer:
            for number in range(kind, 24, 2):
                made = atoms(number)
                writer.append(
                    [
                        make_record(
                            pos=made.get_positions(),
                            atomic_numbers=made.numbers,
                            cell=np.asarray(made.cell) if made.pbc.any() else None,
                            pbc=made.pbc,
                            id=str(number),
                            labels=labels(number),
                        )
                    ]
                )


def sources(out: Path) -> list[Source]:
    return [
        open_source("slabs", SLABS.graph, Store(out / "slabs"), ["energy", "forces"]),
        open_source("molecules", MOLECULES.graph, Store(out / "molecules"), ["energy", "forces", "gap"]),
    ]


def make_loop(processes: Processes, out: Path, run_dir: Path, interrupt: int | None) -> Loop:
    """Three epochs, two workers, edge dropout, accumulation 2; the last process signals itself amid step `interrupt`.

    The first process has its graphs from workers, the others build them on their devices.
    """
    engine = make_engine(processes, 1, lr=3e-3, accumulation=2, clip_norm=1.0, model=model())
    data, rule = sources(out), EdgeBudget(60)
    graphs: BuiltOn = "host" if processes.first else "device"
    how = Loading(processes.rank, processes.world, 2, workers=2, graphs=graphs)
    calls = 0

    def make_loader(state: dict[str, Any] | None) -> TrainLoader:
        return TrainLoader(
            data, GRAPHS, rule, seed=1, epochs=3, temperature=2.0, edge_dropout=0.1, loading=how, state=state
        )

    def losses(outputs: Any, b: Batch) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if interrupt is not None and calls == 2 * interrupt + 1 and processes.rank == processes.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss_sums(outputs, b, TASKS)

    evaluation = EvalLoader(data, GRAPHS, rule, Loading(processes.rank, processes.world, 1, graphs=graphs))
    total, epoch = make_loader(None).total, make_loader(None).epoch_length
    options = LoopOptions(
        run_dir=run_dir,
        length=total,
        schedule_unit=total,
        epoch=epoch,
        validate_every=epoch,
        checkpoint_every=epoch / 2,
        log_every=1,
        ema_decay=0.9,
    )
    validation = Validation(lambda: evaluation, lambda: Metrics(TASKS), lambda v: v["molecules/forces_mae"])
    schedule = Schedule(ScheduleOptions(warmup=0.2), 3e-3, [0.3, 0.5, 0.7, 1.0])
    return Loop(
        engine, schedule, make_loader, losses, partial(count_labels, tasks=TASKS), options, validation=validation
    )


def resumed(processes: Processes, out: Path, interruptions: list[int]) -> dict[str, Any]:
    """An undisturbed run and an interrupted one."""
    from training_loops import everything

    if processes.first:
        write_stores(out)
    processes.barrier()
    straight = make_loop(processes, out, out / "straight", None)
    results = {"outcomes": [vars(straight.run())], "straight": everything(straight)}
    done = 0
    for at in [*interruptions, None]:
        loop = make_loop(processes, out, out / "broken", None if at is None else at - done)
        results["outcomes"].append(vars(loop.run()))
        done = loop.position.step
    results["broken"] = everything(loop)
    return results


def everything_real(out: str, stages: list[int], interruptions: list[int]) -> None:
    processes = start_processes("cpu", 1)
    results = {"gradients": gradients(processes, stages), "resumed": resumed(processes, Path(out), interruptions)}
    torch.save(results, Path(out) / f"real_{processes.rank}.pt")
    stop_processes()
