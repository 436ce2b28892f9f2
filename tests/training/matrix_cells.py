"""The matrix of ways to train: what a cell is, what one process without DeepSpeed gives, and what several do with it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_cells import RATES
from training_real import MOLECULES, SLABS, batch

from jmp_ds.errors import UserError
from jmp_ds.models.presets import preset
from jmp_ds.models.scaling import scale_factors
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import ForcesTarget, Task
from jmp_ds.training.ds_config import DeepSpeedConfig, check_device, load_ds_config
from jmp_ds.training.ema import Ema
from jmp_ds.training.engine import Engine, EngineOptions, start_processes, stop_processes
from jmp_ds.training.masters import whole
from jmp_ds.training.optimizer import OptimizerOptions, ParameterGroup, parameter_groups
from jmp_ds.training.processes import Processes

#: Large beside the gradients' entries, so that a step is a smooth function of the gradient and not of its sign alone.
OPTIMIZER = OptimizerOptions(lr=1e-2, eps=1e-2, weight_decay=0.1)
CLIP, DECAY, STEPS = 5.0, 0.9, 3
#: Averages' and learning rates' factors by step, so that a wrong order of things would show.
FACTORS = (1.0, 0.5, 2.0)

TASKS: dict[str, tuple[Task, ...]] = {
    "direct": (SLABS, replace(MOLECULES, forces=ForcesTarget(weight=15.0))),
    "gradient": (SLABS, MOLECULES),
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}},
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True}},
}
_CRYSTALS, _MOLECULES = (0, 2, 4, 6, 8, 10), (1, 3, 9, 11, 13, 19)

Window = list[list[list[int]]]


@dataclass(frozen=True)
class Cell:
    """One way to train."""

    world: int
    stage: int
    forces: str
    precision: str
    accumulation: int
    recompute: bool
    data: str


def all_cells() -> list[Cell]:
    """The matrix, in the order in which engines can be shared."""
    axes: tuple[tuple[Any, ...], ...] = (
        (1, 2, 3),
        (0, 1, 2, 3),
        tuple(TASKS),
        tuple(PRECISIONS),
        (1, 2),
        (False, True),
        ("all", "missing", "empty"),
    )
    return [Cell(*values) for values in itertools.product(*axes)]


def window(cell: Cell) -> Window:
    """[rank][micro-batch][numbers of structures]; the last process lacks a task or everything."""
    result: Window = []
    for rank in range(cell.world):
        own = [[_CRYSTALS[i], _MOLECULES[i]] for i in range(rank * cell.accumulation, (rank + 1) * cell.accumulation)]
        if rank == cell.world - 1 and cell.data == "missing":
            own = [numbers[:1] for numbers in own]
        if rank == cell.world - 1 and cell.data == "empty":
            # the only process keeps its first micro-batch if it has two
            own = [numbers if cell.world == 1 and k == 0 and len(own) > 1 else [] for k, numbers in enumerate(own)]
        result.append(own)
    return result


def ds_values(cell: Cell) -> dict[str, Any]:
    """The DeepSpeed file of a cell; at stage 3 nothing is kept whole, and buckets are smaller than the model."""
    zero: dict[str, Any] = {"stage": cell.stage}
    if cell.stage > 0:
        zero |= {"reduce_bucket_size": 50_000, "allgather_bucket_size": 50_000}
    if cell.stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
        zero |= {"stage3_prefetch_bucket_size": 20_000}
    return {"zero_optimization": zero, "communication_data_type": "fp32", **PRECISIONS[cell.precision]}


def config_of(cell: Cell) -> DeepSpeedConfig:
    """As a run would load it on a CPU; raises UserError where a run would refuse."""
    config = load_ds_config(ds_values(cell), gradient_forces=cell.forces == "gradient")
    check_device(config, "cpu")
    return config


def model(forces: str, recompute: bool = False) -> MultiTaskModel:
    torch.manual_seed(0)
    config = replace(preset("tiny"), divide_shared_gradients=True, recompute=recompute)
    made = MultiTaskModel(config, TASKS[forces])
    for factor in scale_factors(made).values():
        factor.scale_factor.fill_(0.8)
    return made


def groups(network: torch.nn.Module) -> list[ParameterGroup]:
    """Learning rates by depth; what is outside of blocks is not decayed."""
    result = parameter_groups(network.named_parameters(), replace(RATES, blocks=RATES.blocks[:1] * 2))
    for group in result:
        group.weight_decay = 0.0 if group.name in ("embedding", "rest") else None
    return result


def counts(numbers: Window, forces: str) -> dict[str, int]:
    found = [count_labels(batch(*own), TASKS[forces]) for rank in numbers for own in rank]
    return {group: sum(c[group] for c in found) for group in found[0]}


def alone(
    numbers: Window, forces: str, dtype: torch.dtype, clip: float | None = CLIP, backwards: bool = False
) -> dict[str, dict[str, Tensor]]:
    """What one process gives without DeepSpeed: clipped gradients of the first step, weights and averages after all.

    `backwards` takes the structures in the opposite order, which is the same but for rounding.
    """
    network = model(forces).to(dtype).train()
    order = [i for rank in numbers for own in rank for i in own]
    together, n = batch(*(order[::-1] if backwards else order)), counts(numbers, forces)
    own = groups(network)
    settings = [{"params": g.params, "weight_decay": 0.1 if g.weight_decay is None else 0.0} for g in own]
    optimizer = torch.optim.AdamW(settings, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps)
    named = dict(network.named_parameters())
    average = {name: p.detach().clone() for name, p in named.items()}
    gradients: dict[str, Tensor] = {}
    for factor in FACTORS:
        optimizer.zero_grad()
        sums = loss_sums(network(together), together, TASKS[forces])
        terms = [sums[g] / n[g] for g in n if n[g]]
        if terms:
            sum(terms).backward()
        for parameter in named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        torch.nn.utils.clip_grad_norm_(named.values(), float("inf") if clip is None else clip)
        gradients = gradients or {name: p.grad.clone() for name, p in named.items()}
        for settings, group in zip(optimizer.param_groups, own, strict=True):
            settings["lr"] = OPTIMIZER.lr * group.multiplier * factor
        optimizer.step()
        for name, parameter in named.items():
            average[name].lerp_(parameter.detach(), 1.0 - DECAY)
    return {"gradients": gradients, "weights": {n: p.detach() for n, p in named.items()}, "averages": average}


def oracle_of(numbers: Window, forces: str) -> dict[str, dict[str, dict[str, Tensor]]]:
    """What a cell is compared with."""
    return {
        "float64": alone(numbers, forces, torch.float64),
        "float32": alone(numbers, forces, torch.float32),
        "backwards": alone(numbers, forces, torch.float32, backwards=True),
    }


def make(cell: Cell, processes: Processes, config: DeepSpeedConfig | None = None) -> Engine:
    """An engine for a cell, or for a file of its own."""
    network = model(cell.forces, cell.recompute)
    options = EngineOptions(ds_config=config or config_of(cell), accumulation=cell.accumulation, clip_norm=CLIP)
    return Engine(network, groups(network), OPTIMIZER, options, processes)


def with_bad_step(cell: Cell) -> bool:
    """Whether a step that is not finite comes before the others: once for every engine of the matrix."""
    return cell.data == "missing"


def poisoned(cell: Cell, rank: int) -> Callable[..., dict[str, Tensor]]:
    """Sums of the loss of which the last micro-batch of the last process has something that is not finite.

    Without recomputation it is the loss; with it, only the gradient.
    """
    calls = 0

    def sums(outputs: Any, own: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        found = dict(loss_sums(outputs, own, tasks=TASKS[cell.forces]))
        if rank == cell.world - 1 and calls == cell.accumulation:
            zero = outputs[TASKS[cell.forces][0].name]["energy"].sum().float()
            zero = zero - zero.detach()
            bad = zero.abs().sqrt() if cell.recompute else zero * float("nan")
            found = {group: value + bad for group, value in found.items()}
        return found

    return sums


def skipped(engine: Engine, cell: Cell) -> list[str]:
    """What is wrong with a step that is not finite in one process: all must leave it out, and nothing may be changed."""
    rank, numbers = engine.processes.rank, window(cell)

    def state() -> list[Tensor]:
        moments = [v for own in engine._optimizer.state.values() for v in own.values()]
        return [v.clone() for v in (*engine.masters(), *moments)]

    before, ema = state(), Ema(engine, DECAY)
    averages = [shard.clone() for shard in ema.shards]
    engine.set_rates([OPTIMIZER.lr] * len(engine._optimizer.param_groups))
    result = engine.step([batch(*own) for own in numbers[rank]], counts(numbers, cell.forces), poisoned(cell, rank))
    finite = all(bool(torch.isfinite(loss)) for loss in result.losses)
    expected = rank < cell.world - 1 or cell.recompute
    wrong = {
        "it was not skipped": not result.skipped or result.grad_norm != float("inf"),
        "weights or moments have changed": not all(map(_same_bits, before, state())),
        "averages have changed": not all(map(_same_bits, averages, ema.shards)),
        "the loss was not finite elsewhere, or finite where it was spoilt": finite != expected,
    }
    mine = [f"process {rank}, step that is not finite: {text}" for text, is_so in wrong.items() if is_so]
    return [text for own in engine.processes.gather(mine) for text in own]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Also where there is anything in padding, which ZeRO 3 leaves as it finds it."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def together(engine: Engine, cell: Cell) -> dict[str, dict[str, Tensor]]:
    """What `alone` gives, from all processes; whole in the first."""
    initial = {name: p.detach() for name, p in model(cell.forces).named_parameters()}
    engine._masters.take(initial, engine.processes.rank)
    engine._masters.show(engine.masters())
    for state in engine._optimizer.state.values():
        for value in state.values():
            value.zero_()
    numbers, ema = window(cell), Ema(engine, DECAY)
    mine, n = [batch(*own) for own in numbers[engine.processes.rank]], counts(numbers, cell.forces)
    multipliers = [group.multiplier for group in groups(model(cell.forces))]
    seen: list[Tensor] = []

    def remember(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seen.extend(p.grad.detach().clone() for g in optimizer.param_groups for p in g["params"])

    first: list[Tensor] = []
    handle = engine._optimizer.register_step_pre_hook(remember)
    for factor in FACTORS:
        engine.set_rates([OPTIMIZER.lr * m * factor for m in multipliers])
        result = engine.step(mine, n, partial(loss_sums, tasks=TASKS[cell.forces]))
        assert not result.skipped
        ema.update()
        first = first or seen.copy()
    handle.remove()
    gather = partial(whole, engine._masters, shapes=engine._shapes, processes=engine.processes)
    return {"gradients": gather(first), "weights": gather(engine.masters()), "averages": gather(ema.shards)}


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


@dataclass
class Verdict:
    """How a cell ended.

    Attributes:
        outcome: passed, failed or refused.
        reason: of the latter two.
        worst, median: largest and median distance over tensors, of gradients.
        steps: largest (float32) or median (else) distance of weights and averages after the steps; of their change
            where precision is reduced.
        seconds: the cell took.
    """

    outcome: str
    reason: str = ""
    worst: float = 0.0
    median: float = 0.0
    steps: float = 0.0
    seconds: float = 0.0


def judge(
    cell: Cell,
    ours: dict[str, dict[str, Tensor]],
    oracle: dict[str, dict[str, dict[str, Tensor]]],
    earlier: Sequence[str] = (),
) -> Verdict:
    """Compare with one process: float64 is the truth, float32 tells what can be asked for.

    `earlier` are problems that are known already.
    """
    exact = oracle["float64"]
    problems = list(earlier)
    for name, gradient in exact["gradients"].items():
        if not gradient.any() and ours["gradients"][name].any():
            problems.append(f"gradient of {name} is not zero")
    used = [name for name, gradient in exact["gradients"].items() if gradient.any()]
    errors = {name: distance(ours["gradients"][name], exact["gradients"][name]) for name in used}
    values = torch.tensor(list(errors.values()) or [0.0])
    steps: list[float] = []
    for kind in ("weights", "averages") if cell.precision == "float32" else ():
        for name, expected in exact[kind].items():
            steps.append(distance(ours[kind][name], expected))
            allowed = _allowed(oracle, kind, name)
            if not steps[-1] <= allowed:
                problems.append(f"{kind} {name}: {steps[-1]:.1e} > {allowed:.1e}")
    if cell.precision == "float32":
        for name, error in errors.items():
            allowed = _allowed(oracle, "gradients", name)
            if not error <= allowed:
                problems.append(f"gradient of {name}: {error:.1e} > {allowed:.1e}")
        after = max(steps)
    else:
        start = {name: p.detach().double() for name, p in model(cell.forces).named_parameters()}
        for kind in ("weights", "averages"):
            steps += [distance(ours[kind][n] - start[n], exact[kind][n] - start[n]) for n in used]
        after = float(torch.tensor(steps or [0.0]).median())
        if not max(float(values.median()), after) <= 2e-2:
            problems.append(
                f"median distance {float(values.median()):.1e}, of the change of weights {after:.1e} > 2e-2"
            )
        if used and not float(values.median()) > 1e-5:
            problems.append("that was not reduced precision")
    outcome = "failed" if problems else "passed"
    shown = "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
    return Verdict(outcome, shown, float(values.max()), float(values.median()), after)


def _allowed(oracle: dict[str, dict[str, dict[str, Tensor]]], kind: str, name: str) -> float:
    """Three times what one process has in float32.

    Of a tensor with few numbers, one error tells little of what rounding may do: it is the larger of two orders of the
    structures, and at least two roundings (2^-23), since several processes multiply by counts and divide by the number of
    processes and micro-batches.
    """
    exact = oracle["float64"][kind][name]
    single = max(distance(oracle[way][kind][name], exact) for way in ("float32", "backwards"))
    return min(3 * max(single, 2.0**-23), 1e-5)


def refusal(cell: Cell) -> str | None:
    """Why a run would not start, or None."""
    try:
        config_of(cell)
    except UserError as error:
        return str(error)
    return None


def _engines(cells: list[Cell]) -> Iterator[tuple[Cell, list[Cell]]]:
    """Cells that differ in their data only."""
    for key, group in itertools.groupby(cells, key=lambda cell: replace(cell, data="")):
        yield key, list(group)


def walk(out: str, cells: list[list[Any]]) -> None:
    """Run cells of one world size; the first process adds one line per cell to `out`/results_WORLD.jsonl."""
    processes = start_processes("cpu", 1)
    wanted = [Cell(*values) for values in cells]
    oracles: dict[str, Any] = {}
    with (Path(out) / f"results_{processes.world}.jsonl").open("a") as lines:
        for key, group in _engines(wanted):
            engine = make(key, processes)
            for cell in group:
                begun = time.monotonic()
                # what comes after it shows that nothing of it is left
                problems = skipped(engine, cell) if with_bad_step(cell) else []
                ours = together(engine, cell)
                if processes.first:
                    verdict = judge(cell, ours, _oracle(oracles, cell), problems)
                    verdict.seconds = round(time.monotonic() - begun, 2)
                    lines.write(json.dumps({**asdict(cell), **asdict(verdict)}) + "\n")
                    lines.flush()
            engine._engine.destroy()
    stop_processes()


def _oracle(known: dict[str, Any], cell: Cell) -> Any:
    """Of a window; the same whatever the stage, precision or recomputation."""
    numbers = window(cell)
    key = json.dumps([numbers, cell.forces])
    if key not in known:
        known[key] = oracle_of(numbers, cell.forces)
    return known[key]
