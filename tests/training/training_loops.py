"""Whole runs of the loop with the toy model, in several processes; results go into files, the tests judge them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_cells import make_engine
from training_toy import TASKS, ToyBatch, ToyModel, batch, count_labels, loss_sums

from jmp_ds.training import checkpoints
from jmp_ds.training.checkpoints import Checkpoints
from jmp_ds.training.engine import Engine, start_processes, stop_processes
from jmp_ds.training.loop import Diverged, Loop
from jmp_ds.training.processes import Processes
from jmp_ds.training.run import LoopOptions, Validation
from jmp_ds.training.schedules import EarlyStopping, EarlyStoppingOptions, Schedule, ScheduleOptions
from jmp_ds.training.shards import Shards

EPOCH, EPOCHS, ACCUMULATION = 23, 3, 2


@dataclass(frozen=True)
class ToyStep:
    batches: list[ToyBatch]
    structures: int

    def divided(self, number: int, parts: int) -> list[ToyBatch]:
        numbers = [int(i.removeprefix("toy-")) for i in self.batches[number].ids]
        return [batch(numbers[k::parts]) for k in range(min(parts, max(1, len(numbers))))]


class ToyLoader:
    """Permuted epochs, cut into windows of varying size that are dealt out to processes and micro-batches."""

    def __init__(self, processes: Processes, state: Mapping[str, int] | None, poisoned: bool = False) -> None:
        self.processes, self.poisoned = processes, poisoned
        self.epoch, self.position = (state["epoch"], state["position"]) if state else (0, 0)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def __iter__(self) -> Iterator[ToyStep]:
        while True:
            order = torch.randperm(EPOCH, generator=torch.Generator().manual_seed(self.epoch)).tolist()
            numbers = order[self.position : self.position + 3 + self.position % 4]
            self.position += len(numbers)
            if self.position >= EPOCH:
                self.epoch, self.position = self.epoch + 1, 0
            parts = self.processes.world * ACCUMULATION
            mine = [numbers[ACCUMULATION * self.processes.rank + k :: parts] for k in range(ACCUMULATION)]
            window = [batch(m) for m in mine]
            if self.poisoned:
                window = [type(b)(**{**vars(b), "energy": b.energy * float("nan")}) for b in window]
            yield ToyStep(window, len(numbers))


class ToyMetrics:
    def __init__(self, ask_to_stop: bool = False) -> None:
        self.state = torch.zeros(2, 1, dtype=torch.float64)
        self.ask_to_stop = ask_to_stop

    def update(self, outputs: dict[str, dict[str, Tensor]], batch: ToyBatch) -> None:
        if self.ask_to_stop:
            self.ask_to_stop = False
            os.kill(os.getpid(), signal.SIGUSR1)
        for number, task in enumerate(TASKS):
            rows = batch.task == number
            self.state[0, 0] += (outputs[task]["energy"] - batch.energy[rows]).abs().sum().double()
            self.state[1, 0] += rows.sum()

    def compute(self) -> dict[str, float]:
        return {"energy_mae": float(self.state[0, 0] / self.state[1, 0])}


def make_loop(
    processes: Processes, run_dir: Path, stage: int = 1, interrupt: int | None = None, **changes: Any
) -> Loop:
    """A run; `interrupt`: the last process signals itself in the middle of that step's accumulation, or of the first
    validation if it is negative.
    """
    poisoned, patience = changes.pop("poisoned", False), changes.pop("patience", None)
    model = ToyModel(dropout=changes.pop("dropout", 0.3), direct=changes.pop("direct", stage == 3))
    asking = interrupt is not None and interrupt < 0 and processes.rank == processes.world - 1
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # whatever was drawn before must not matter
    engine = make_engine(processes, stage, lr=0.01, accumulation=ACCUMULATION, clip_norm=1.0, model=model)
    options = LoopOptions(
        run_dir=run_dir,
        length=EPOCH * EPOCHS,
        schedule_unit=EPOCH * EPOCHS,
        epoch=EPOCH,
        validate_every=EPOCH / 2,
        checkpoint_every=changes.pop("checkpoint_every", EPOCH / 3),
        keep=changes.pop("keep", 3),
        keep_best=changes.pop("keep_best", False),
        background=changes.pop("background", False),
        hung_after=changes.pop("hung_after", None),
        wall_time=changes.pop("wall_time", None),
        log_every=1,
        ema_decay=0.9,
        max_bad_steps=3,
    )
    assert not changes, changes
    calls = 0

    def losses(outputs: Any, b: ToyBatch) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if interrupt is not None and calls == interrupt * ACCUMULATION + 1 and processes.rank == processes.world - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss_sums(outputs, b)

    exported: list[str] = []

    def export(kind: str, state: dict[str, Tensor], info: dict[str, Any]) -> None:
        exported.append(kind)
        torch.save(state, run_dir / f"{kind}.pt")
        (run_dir / f"{kind}.json").write_text(json.dumps(info))

    validation = Validation(
        batches=lambda: [batch(range(k + processes.rank, k + 6, processes.world)) for k in (100, 106)],
        metrics=lambda: ToyMetrics(asking),
        primary=lambda values: values["energy_mae"],
    )
    schedule = Schedule(ScheduleOptions(warmup=0.2), 0.01, [0.3, 0.5, 0.7, 1.0])
    return Loop(
        engine,
        schedule,
        lambda state: ToyLoader(processes, state, poisoned),
        losses,
        count_labels,
        options,
        validation=validation,
        early_stopping=EarlyStopping(EarlyStoppingOptions(patience=patience, min_delta=1e9)) if patience else None,
        export=export,
    )


def model_weights(engine: Engine) -> dict[str, Tensor]:
    """What the model computes with; ZeRO 3 brings it when it is asked to."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    gathered = list(engine.module.parameters()) if engine.stage == 3 else []
    with GatheredParameters(gathered, enabled=bool(gathered)):
        return {k: v.detach().clone() for k, v in engine.module.state_dict().items()}


def everything(loop: Loop) -> dict[str, Any]:
    """All that training has made: weights, moments, averaged weights, and what is drawn next."""
    return {
        "weights": model_weights(loop.engine),
        "moments": [
            {k: torch.as_tensor(v).clone() for k, v in state.items()} for state in loop.engine._optimizer.state.values()
        ],
        "averaged": {  # without padding, which ZeRO 3 leaves as it finds it
            piece.name: piece.of(shard).clone()
            for shard, own in (zip(loop.ema.shards, loop.engine.layout(), strict=True) if loop.ema else [])
            for piece in own
        },
        "drawn": torch.rand(3),
        "position": vars(loop.position),
    }


def loops(out: str, stages: list[int], interruptions: list[int]) -> None:
    """The parts below that end well, in one start of the processes."""
    processes = start_processes("cpu", 1)
    resumed(processes, out, stages, interruptions)
    ends(processes, out)
    unwritable(processes, out)
    damaged(processes, out)
    stop_processes()


def resumed(processes: Processes, out: str, stages: list[int], interruptions: list[int]) -> None:
    """An undisturbed run, and one that is interrupted again and again; each start has a new model and engine."""
    results: dict[str, Any] = {}
    for stage in stages:
        straight = make_loop(processes, Path(out) / f"straight_{stage}", stage)
        outcomes = [vars(straight.run())]
        results[f"{stage}/straight"] = everything(straight)
        done = 0
        for at in [*interruptions, None]:
            loop = make_loop(
                processes, Path(out) / f"broken_{stage}", stage, interrupt=None if at is None else at - done
            )
            outcomes.append(vars(loop.run()))
            done = loop.position.step
        results[f"{stage}/broken"] = everything(loop)
        results[f"{stage}/outcomes"] = outcomes
    torch.save(results, Path(out) / f"resumed_{processes.rank}.pt")


def ends(processes: Processes, out: str) -> None:
    """Runs that end before their length: divergence, early stopping (twice: the second start must not go on)."""
    diverged = make_loop(processes, Path(out) / "diverged", poisoned=True)
    try:
        diverged.run()
        message = ""
    except Diverged as error:
        message = str(error)
    steps = []
    for _ in range(2):
        loop = make_loop(processes, Path(out) / "early", patience=2)
        outcome = loop.run()
        steps.append((outcome.step, outcome.status, outcome.reason))
    if processes.first:
        (Path(out) / "ends.json").write_text(json.dumps({"message": message, "early": steps}))


def unwritable(processes: Processes, out: str) -> None:
    """The disk is full for the last process, in DeepSpeed's part of a checkpoint and in ours."""
    said = []
    for failing in ("shard_", "process_"):
        loop = make_loop(processes, Path(out) / "unwritable", checkpoint_every=EPOCH)
        loop.position.loader = loop._make_loader(None).state()
        loop._save()
        original = checkpoints.to_disk

        def full(path: Path, failing: str = failing, original: Any = original) -> None:
            if failing in str(path) and processes.rank == processes.world - 1:
                raise OSError("no space left on device")
            original(path)

        checkpoints.to_disk = full
        try:
            loop.run()
        except OSError as error:
            said.append(str(error))
        finally:
            checkpoints.to_disk = original
        processes.barrier()
        left = sorted(p.name for p in (Path(out) / "unwritable" / "checkpoints").iterdir())
        said.append(" ".join(left))
        processes.barrier()
    (Path(out) / f"unwritable_{processes.rank}.json").write_text(json.dumps(said))


def killed(out: str, phase: str) -> None:
    """A run that is killed the hard way while it writes its third checkpoint, in one process without a launcher."""
    processes = start_processes("cpu", 1)
    saves = 0

    class Deadly(Checkpoints):
        def _write(self, *arguments: Any) -> Any:
            nonlocal saves
            saves += 1
            records = super()._write(*arguments)
            if saves == 3 and phase == "write":
                os.kill(os.getpid(), signal.SIGKILL)
            return records

        def _commit(self, pending: Any, files: Any) -> None:
            if saves == 3 and phase == "commit":
                (pending.aside / "manifest.json").write_text('{"format": 1, "st')
                os.kill(os.getpid(), signal.SIGKILL)
            super()._commit(pending, files)

    loop = make_loop(processes, Path(out))
    if phase in ("write", "commit"):
        loop.checkpoints = Deadly(loop.checkpoints.folder, loop.engine, Shards(loop.engine, loop.ema), 3)
    loop.run()
    torch.save(everything(loop), Path(out) / "everything.pt")
    stop_processes()


def damaged(processes: Processes, out: str) -> None:
    """Checkpoints of a finished run, damaged in several ways: what is loaded then, on all processes."""
    folder = Path(out) / "run"
    make_loop(processes, folder, keep=100).run()
    names = sorted((p.name for p in (folder / "checkpoints").iterdir()), key=lambda n: int(n.split("_")[1]))
    loaded = []

    def newest() -> str:
        loop = make_loop(processes, folder, keep=100)
        try:
            found = loop.checkpoints.load_newest()
            return found.path.name if found else "none"
        except ValueError as error:
            return str(error)

    def damage(name: str, file: str, how: str) -> None:
        processes.barrier()
        if processes.first:
            path = folder / "checkpoints" / name / file
            content = path.read_bytes()
            if how == "truncate":
                path.write_bytes(content[:-10])
            elif how == "flip":
                path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
            else:
                path.unlink()
        processes.barrier()

    loaded.append(newest())
    (folder / "checkpoints" / "step_999").mkdir(exist_ok=True)  # as left by a process that was ended while deleting it
    # Each harms what only the last process reads, or what all do; all must fall back.
    damage(names[-1], "process_1.pt", "flip")
    loaded.append(newest())
    damage(names[-2], "buffers.safetensors", "truncate")
    loaded.append(newest())
    damage(names[-3], "shard_1.safetensors", "remove")
    loaded.append(newest())
    fallen_back = make_loop(processes, folder, keep=1)
    loaded.append(fallen_back.checkpoints.load_newest().path.name)
    fallen_back._restore(fallen_back.checkpoints.load_newest())
    fallen_back._save()  # the only one to be kept, although damaged ones are newer
    loaded.append(" ".join(sorted(p.name for p in (folder / "checkpoints").iterdir())))
    damage(names[-4], "process_0.pt", "truncate")
    loaded.append(newest())
    said = processes.gather(loaded)
    if processes.first:
        (Path(out) / "damaged.json").write_text(json.dumps({"names": names, "loaded": said}))


def launched(out: str, pause: float) -> None:
    """A run as a launcher starts it, slow enough to be interrupted."""
    processes = start_processes("cpu", 1)
    loop = make_loop(processes, Path(out))
    window = loop._window

    def slow(*arguments: Any) -> str | None:
        time.sleep(pause)
        return window(*arguments)

    loop._window = slow
    loop.run()
    stop_processes()
