"""Checkpoints written by some processes at some ZeRO stage and read by others; results go into files."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import torch
from training_loops import make_loop, model_weights

from jmp_ds.training.engine import start_processes, stop_processes
from jmp_ds.training.loop import Loop

BEFORE, AFTER = 5, 3


def whole(loop: Loop) -> dict[str, torch.Tensor]:
    """KIND/PARAMETER → full tensor, put together from all processes."""
    found: dict[str, list[Any]] = {}
    layout = loop.engine.layout()
    for kind, tensors in loop.checkpoints._shards.tensors().items():
        stretches = [
            (piece.name, piece.begin, piece.of(tensor).clone())
            for tensor, own in zip(tensors, layout, strict=True)
            for piece in own
        ]
        for part in loop.engine.processes.gather(stretches):
            for name, start, values in part:
                found.setdefault(f"{kind}/{name}", []).append((start, values))
    sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in loop.engine.module.named_parameters()}
    result = {}
    for key, parts in found.items():
        full = torch.full((sizes[key.split("/", 1)[1]],), float("nan"))
        for start, values in parts:
            full[start : start + len(values)] = values
        result[key] = full
    return result


def seen(loop: Loop, steps: int) -> list[list[str]]:
    """Make steps, without the loop's other work; the structures of each, over all processes."""
    loader = loop._make_loader(loop.position.loader)
    windows, ids = iter(loader), []
    for _ in range(steps):
        window = next(windows)
        ids.append(
            sorted(i for part in loop._processes.gather([i for b in window.batches for i in b.ids]) for i in part)
        )
        assert loop._window(window, Quiet(), Quiet()) is None
        loop.position.loader = loader.state()
    return ids


class Quiet:
    rate = 0.0

    def write(self, *_: Any) -> None: ...
    def advance(self, *_: Any) -> None: ...
    def say(self, *_: Any) -> None: ...


def write(out: str, stages: list[int]) -> None:
    """Train a little, write a checkpoint, train on."""
    processes = start_processes("cpu", 1)
    for stage in stages:
        folder = Path(out) / f"{processes.world}_{stage}"
        loop = make_loop(processes, folder, stage, dropout=0.0, direct=True)
        result = {"ids": seen(loop, BEFORE)}
        loop._save()
        result["saved"] = whole(loop)
        result["ids_after"] = seen(loop, AFTER)
        result["after"] = whole(loop)
        if processes.first:
            torch.save(result, folder / "written.pt")
    stop_processes()


def read(out: str, stages: list[int], worlds: list[int]) -> None:
    """Go on from each of the checkpoints at each stage."""
    processes = start_processes("cpu", 1)
    results: dict[str, Any] = {}
    for stage, source in product(stages, product(worlds, stages)):
        name = "{}_{}".format(*source)
        folder = Path(out) / f"{processes.world}_{stage}_from_{name}"
        if processes.first:
            shutil.copytree(Path(out) / name, folder)
        processes.barrier()
        loop = make_loop(processes, folder, stage, dropout=0.0, direct=True)
        loaded = loop.checkpoints.load_newest()
        assert loaded is not None
        loop._restore(loaded)
        names = {n for n, _ in loop.engine.module.named_parameters()}
        state = {n: v.view(-1) for n, v in model_weights(loop.engine).items() if n in names}
        results[f"{stage}/{name}"] = {
            "saved": whole(loop),
            "model": state,
            "steps": loop.checkpoints._shards.facts()["steps"],
            "ids_after": seen(loop, AFTER),
            "after": whole(loop),
        }
        processes.barrier()
        if processes.first:
            shutil.rmtree(folder)
    if processes.first:
        torch.save(results, Path(out) / f"read_{processes.world}.pt")
    stop_processes()
