"""What two processes do in the tests of ZeRO's details; results go into files, the tests judge them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from matrix_cells import TASKS, Cell, alone, counts, distance, make, model, together, window
from torch import Tensor
from training_cells import make_engine, used_gradients
from training_real import batch
from training_toy import ToyModel, loss_sums
from training_toy import batch as toy_batch

from jmp_ds.errors import UserError
from jmp_ds.tasks.losses import loss_sums as real_loss_sums
from jmp_ds.training.ds_config import load_ds_config
from jmp_ds.training.engine import start_processes, stop_processes
from jmp_ds.training.processes import Processes
from jmp_ds.training.shards import Shards

#: A cell like any other.
CELL = Cell(2, 3, "direct", "float32", 1, False, "all")


def residents(processes: Processes) -> dict[str, Any]:
    """Numbers of the parameters that are on this process while parts of the model run, forward and backward."""
    result: dict[str, Any] = {}
    for recompute in (False, True):
        cell = replace(CELL, recompute=recompute)
        engine = make(cell, processes, load_ds_config(_nothing_ahead()))
        network = engine.module
        seen: list[int] = []

        def look(*unused: Any, network: Any = network, seen: list[int] = seen) -> None:
            seen.append(sum(p.data.numel() for p in network.parameters()))

        for unit in network.units():
            unit.register_forward_pre_hook(look)
        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(look)
        step(engine, cell)
        first = seen.copy()
        seen.clear()
        step(engine, cell)  # from here on DeepSpeed knows the order of things
        in_units = [sum(p.ds_numel for p in unit.parameters()) for unit in network.units()]
        total = sum(p.ds_numel for p in network.parameters())
        result[str(recompute)] = {
            "first": max(first),
            "later": max(seen),
            "largest": max(in_units),
            "outside": total - sum(in_units),
            "total": total,
            "between": sum(p.data.numel() for p in network.parameters()),
            "calls": len(seen),
        }
        engine._engine.destroy()
    return result


def _nothing_ahead() -> dict[str, Any]:
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    return {"zero_optimization": {**zero, "stage3_prefetch_bucket_size": 0}}


def step(engine: Any, cell: Cell) -> None:
    numbers = window(cell)
    mine = [batch(*own) for own in numbers[engine.processes.rank]]
    engine.step(mine, counts(numbers, cell.forces), partial(real_loss_sums, tasks=TASKS[cell.forces]))


def in_float64(processes: Processes) -> dict[str, float]:
    """Largest distance of a gradient from one process, everything in float64.

    DeepSpeed neither takes nor reduces float64 by itself: it is persuaded to, without ZeRO, whose masters are float32.
    """
    result = {}
    types = get_accelerator().supported_dtypes()
    get_accelerator().supported_dtypes = lambda: [*types, torch.float64]
    for forces in TASKS:
        cell = replace(CELL, stage=0, forces=forces, accumulation=2, data="missing")
        engine = make(cell, processes)
        engine.options = replace(engine.options, clip_norm=None)
        engine._engine.gradient_clipping = lambda: 0.0
        engine._engine.communication_data_type = torch.float64
        engine.module.double()
        numbers, seen = window(cell), {}

        def remember(*unused: Any, engine: Any = engine, seen: dict[str, Tensor] = seen) -> None:
            seen.update({name: p.grad.clone() for name, p in engine.module.named_parameters()})

        engine._optimizer.register_step_pre_hook(remember)
        mine = [batch(*own) for own in numbers[processes.rank]]
        mine = [replace(own, pos=own.pos.double()) for own in mine]
        engine.step(mine, counts(numbers, forces), partial(real_loss_sums, tasks=TASKS[forces]))
        exact = alone(numbers, forces, torch.float64, clip=None)["gradients"]
        result[forces] = max(distance(seen[name], g) for name, g in exact.items() if g.any())
        engine._engine.destroy()
    return result


def shipped(processes: Processes, names: list[str]) -> dict[str, Any]:
    """A few steps with files that come with the project."""
    result = {}
    for name in names:
        config = load_ds_config(name)
        forces = "direct" if config.stage == 3 else "gradient"
        precision = config.narrow or ("autocast" if config.autocast else "float32")
        cell = replace(CELL, stage=config.stage, forces=forces, precision=precision)
        engine = make(cell, processes, config)
        result[name] = {"cell": cell, "ours": together(engine, cell), "same_constants": same_constants(engine, forces)}
        engine._engine.destroy()
    return result


def same_constants(engine: Any, forces: str) -> bool:
    """Whether scale factors and the constants of the bases have the precision and the values they were made with."""
    pairs = zip(engine.module.named_buffers(), model(forces).named_buffers(), strict=True)
    return all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in pairs)


#: Kinds of masters that a checkpoint must bring back.
SAVED = [(0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "float32"), (3, "autocast"), (3, "bf16")]


def saved(processes: Processes, out: Path) -> dict[str, bool]:
    """Whether a new engine that reads what another has written goes on as that one, bit by bit."""
    result = {}
    for stage, precision in SAVED:
        cell = replace(CELL, stage=stage, precision=precision)
        name, first = f"{stage}/{precision}", make(cell, processes)
        step(first, cell)
        files = [out / f"{stage}_{precision}_{rank}.safetensors" for rank in range(processes.world)]
        shards = Shards(first, None)
        shards.write(files[processes.rank], shards.tensors())
        facts = shards.facts()
        processes.barrier()
        step(first, cell)
        second = make(cell, processes)
        Shards(second, None).read(files, facts)
        step(second, cell)
        pairs = zip(first.masters(), second.masters(), strict=True)
        numbers = batch(0, 1)
        outputs = [engine.evaluate(numbers)["slabs"]["energy"] for engine in (first, second)]
        result[name] = all(torch.equal(a, b) for a, b in pairs) and torch.equal(*outputs)
        first._engine.destroy()
        second._engine.destroy()
    return result


def disordered(processes: Processes) -> dict[str, str]:
    """What is said of models that use their heads in another order on one process, or not at all."""
    result = {}
    for stage in (1, 2):
        network = ToyModel()
        if processes.rank == 1:
            network.order.reverse()
        engine = make_engine(processes, stage, model=network)
        try:
            used_gradients(engine, [toy_batch([0, 1, 2])], {"energy": 6, "forces": 6}, loss_sums)
            result[str(stage)] = "nothing"
        except UserError as error:
            result[str(stage)] = str(error)
    return result


def everything(out: str, names: list[str]) -> None:
    processes = start_processes("cpu", 1)
    results = {
        "residents": residents(processes),
        "float64": in_float64(processes),
        "shipped": shipped(processes, names),
        "saved": saved(processes, Path(out)),
        "disordered": disordered(processes),
    }
    torch.save(results, Path(out) / f"zero_{processes.rank}.pt")
    stop_processes()


def ties(network: Any, forces: str) -> list[list[str]]:
    """Parameters that hang on one node of the graph: the order of their gradients is a matter of luck."""
    numbers = [0, 1, 2, 3]
    sums = real_loss_sums(network(batch(*numbers)), batch(*numbers), TASKS[forces])
    names = {id(p): name for name, p in network.named_parameters()}
    found, waiting, known = [], [sum(sums.values()).grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        leaves = {id(n.variable) for n, _ in node.next_functions if hasattr(n, "variable")}
        if len(leaves) > 1:
            found.append([names.get(i, "?") for i in leaves])
        waiting += [n for n, _ in node.next_functions]
    return found


def tied(forces: str, recompute: bool) -> list[list[str]]:
    return ties(model(forces, recompute).train(), forces)
