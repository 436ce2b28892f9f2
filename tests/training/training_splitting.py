"""Steps in which memory runs out on one process, beside the same steps with enough of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_cells import WINDOWS, counts_of, divided_model, make_engine, used_gradients
from training_toy import batch, loss_sums

from jmp_ds.training.engine import start_processes, stop_processes
from jmp_ds.training.splitting import step_in_parts


def short_of_memory(limit: int, when: str) -> Any:
    """`loss_sums` that runs out of memory for more than `limit` structures, forward or in the backward pass."""

    def fail(gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("made up")

    def losses(outputs: Any, part: Any) -> dict[str, Tensor]:
        if part.num_structures > limit and when == "forward":
            raise torch.OutOfMemoryError("made up")
        if part.num_structures > limit:
            outputs["slab"]["energy"].register_hook(fail)
            outputs["path"]["energy"].register_hook(fail)
            outputs["molecule"]["energy"].register_hook(fail)
        return loss_sums(outputs, part)

    return losses


def cells(out: str, stages: list[int]) -> None:
    processes = start_processes("cpu", 1)
    results: dict[str, Any] = {}
    for stage in stages:
        for name, accumulation in (("unequal", 1), ("empty", 1), ("accumulated", 2)):
            for model in ("plain", "divided"):
                engine = make_engine(
                    processes,
                    stage,
                    accumulation=accumulation,
                    **({"model": divided_model()} if model == "divided" else {}),
                )
                window = WINDOWS[name]
                share = window[processes.rank]
                mine, counts = [batch(numbers) for numbers in share], counts_of(window)
                ours: dict[str, Any] = {"whole": used_gradients(engine, mine, counts)}
                step = engine.step
                for when in ("forward", "backward"):
                    told: list[tuple[int, int]] = []

                    def in_parts(mine: Any, counts: Any, losses: Any, told: Any = told, share: Any = share) -> Any:
                        divide = lambda k, n: [batch(share[k][i::n]) for i in range(min(n, len(share[k])))]  # noqa: E731
                        return step_in_parts(engine, mine, counts, losses, divide, lambda *what: told.append(what))  # noqa: B023

                    engine.step = in_parts  # type: ignore[method-assign]
                    limit = 2 if processes.rank == 0 else 100
                    ours[when] = used_gradients(engine, mine, counts, short_of_memory(limit, when))
                    ours[f"{when}/told"] = processes.gather(told)
                    engine.step = step  # type: ignore[method-assign]
                results[f"{stage}/{name}/{model}"] = ours
        engine = make_engine(processes, stage)
        try:
            divide = lambda k, n: [batch([i]) for i in range(n)]  # noqa: E731
            step_in_parts(engine, [batch([0, 1])], {}, short_of_memory(0, "forward"), divide, lambda *_: None)
        except torch.OutOfMemoryError as error:
            results[f"{stage}/hopeless"] = str(error)
    if processes.first:
        torch.save(results, Path(out) / f"split_{processes.world}.pt")
    stop_processes()
