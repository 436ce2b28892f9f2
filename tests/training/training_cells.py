"""What several processes do in the engine tests; results go into files, the tests judge them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor
from training_toy import ToyModel, batch, loss_sums, total_counts

from jmp_ds.training.ds_config import load_ds_config
from jmp_ds.training.ema import Ema
from jmp_ds.training.engine import Engine, EngineOptions, start_processes, stop_processes
from jmp_ds.training.masters import whole
from jmp_ds.training.optimizer import LayerwiseRates, OptimizerOptions, parameter_groups
from jmp_ds.training.processes import Processes

#: name → structures of every process and micro-batch: [rank][micro-batch][structures].
WINDOWS: dict[str, list[list[list[int]]]] = {
    "equal": [[[0, 1, 2]], [[3, 4, 5]]],
    "task_absent": [[[0, 1, 3, 4]], [[2, 5, 8]]],
    "unequal": [[[0, 1, 2, 3, 4, 5, 7]], [[9]]],
    "empty": [[[0, 1, 2, 3]], [[]]],
    "unlabelled": [[[0, 1, 2]], [[6, 13]]],
    "accumulated": [[[0, 1], [2, 3, 4]], [[5], []]],
}
RATES = LayerwiseRates(embedding=0.3, blocks=(0.5, 0.7), rest=1.0)


def toy(stage: int) -> ToyModel:
    """Gradient forces do not go with ZeRO 3."""
    return ToyModel(direct=stage == 3)


def make_engine(processes: Processes, stage: int = 1, lr: float = 0.0, **options: Any) -> Engine:
    model = options.pop("model", None) or toy(stage)
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    config = load_ds_config({"zero_optimization": zero, **options.pop("ds", {})})
    groups = parameter_groups(model.named_parameters(), RATES)
    optimizer = OptimizerOptions(lr=lr, weight_decay=0.1)
    return Engine(model, groups, optimizer, EngineOptions(ds_config=config, **options), processes)


def counts_of(window: list[list[list[int]]]) -> dict[str, int]:
    return total_counts([batch(numbers) for rank in window for numbers in rank])


def used_gradients(
    engine: Engine, mine: list[Any], counts: dict[str, int], losses: Any = loss_sums
) -> dict[str, Tensor]:
    """The gradient that the optimizer is handed in one step, per parameter; put together from the partitions."""
    seen: list[Tensor] = []

    def remember(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        seen.extend(p.grad.detach().clone() for g in optimizer.param_groups for p in g["params"])

    handle = engine._optimizer.register_step_pre_hook(remember)
    engine.step(mine, counts, losses)
    handle.remove()
    return whole(engine._masters, seen, engine._shapes, engine.processes)


def visible(engine: Engine) -> dict[str, Tensor]:
    """What the model computes with, whole on every process."""
    parameters = list(engine.module.parameters())
    with GatheredParameters(parameters) if engine.stage == 3 else nullcontext():
        return {name: value.detach().clone() for name, value in engine.module.state_dict().items()}


def window_gradients(engine: Engine, window: list[list[list[int]]]) -> dict[str, Tensor]:
    mine = [batch(numbers) for numbers in window[engine.processes.rank]]
    return used_gradients(engine, mine, counts_of(window))


def divided_model(stage: int) -> ToyModel:
    """As the real model does with its shared tensors: the hook comes before anything DeepSpeed sees."""
    model = toy(stage)
    model.bases["rbf"].weight.register_hook(lambda gradient: gradient / 4.0)
    return model


def cells(out: str, stages: list[int]) -> None:
    """Both parts below, in one start of the processes."""
    processes = start_processes("cpu", 1)
    gradients(processes, out, stages)
    training(processes, out, stages)
    stop_processes()


def gradients(processes: Processes, out: str, stages: list[int]) -> None:
    """Gradients of every window at every stage, with clipping by norm and by value, and with divided ones."""
    results: dict[str, Any] = {}
    for stage in stages:
        for accumulation in (1, 2):
            engine = make_engine(processes, stage, accumulation=accumulation)
            for name, window in WINDOWS.items():
                if len(window[0]) == accumulation:
                    results[f"{stage}/{name}"] = window_gradients(engine, window)
        for name, options in {
            "norm": {"clip_norm": 0.5},
            "value": {"clip_value": 0.05},
            "divided": {"model": divided_model(stage)},
            "divided_accumulated": {"model": divided_model(stage), "accumulation": 2},
        }.items():
            engine = make_engine(processes, stage, **options)
            window = WINDOWS["accumulated" if "accumulated" in name else "unequal"]
            results[f"{stage}/{name}"] = window_gradients(engine, window)
    if processes.first:
        torch.save(results, Path(out) / "gradients.pt")


def training(processes: Processes, out: str, stages: list[int]) -> None:
    """Some real steps: weights, averaged weights, what the model sees of them, and a step with a bad number."""
    results: dict[str, Any] = {}
    window = WINDOWS["unequal"]
    for stage in stages:
        engine = make_engine(processes, stage, lr=0.01, clip_norm=1.0)
        ema = Ema(engine, decay=0.9)
        norms = []
        for number in range(5):
            engine.set_rates([0.01 * m * (number + 1) for m in (0.3, 0.5, 0.7, 1.0)])
            mine = [batch(numbers) for numbers in window[processes.rank]]
            norms.append(engine.step(mine, counts_of(window), loss_sums).grad_norm)
            ema.update()
        weights = visible(engine)
        with ema.in_model():
            averaged = visible(engine)
            outputs = engine.evaluate(batch(range(6)))
        back = all(torch.equal(weights[k], v) for k, v in visible(engine).items())
        exported = engine.model_state(ema.shards)
        bad = batch([0, 1])
        if processes.rank == processes.world - 1:
            bad = bad.double()
            bad = type(bad)(**{**bad.__dict__, "energy": bad.energy * float("nan")})
        outcome = engine.step([bad], {"energy": 4, "forces": 4}, loss_sums)
        unchanged = all(torch.equal(weights[k], v) for k, v in visible(engine).items())
        after = engine.step([batch([0, 1])], {"energy": 4, "forces": 4}, loss_sums)
        results[str(stage)] = {
            "weights": weights,
            "averaged": averaged,
            "exported": exported,
            "outputs": outputs,
            "norms": norms,
            "back": back,
            "skipped": outcome.skipped,
            "finite": [bool(torch.isfinite(v)) for v in outcome.losses],
            "unchanged": unchanged,
            "after_skipped": after.skipped,
            "after_changed": not all(torch.equal(weights[k], v) for k, v in visible(engine).items()),
        }
    torch.save(results, Path(out) / f"training_{processes.rank}.pt")
