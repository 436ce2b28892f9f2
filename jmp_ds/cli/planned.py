"""The work of `jmp-ds plan`: from options to predictions, tables, JSON and picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import typer

from jmp_ds.cli.data_verbs import print_table
from jmp_ds.errors import UserError
from jmp_ds.files import write_json
from jmp_ds.graphs.settings import FewerNeighbors, GraphSettings
from jmp_ds.models.counts import Forces
from jmp_ds.models.presets import preset
from jmp_ds.planning.batches import BatchPlan, named_batch, store_batch, with_edges
from jmp_ds.planning.choice import Choice, ReadyConfig, candidates, choose, offloaded, ready_config
from jmp_ds.planning.devices import GIB, Cluster, Device, cluster, device
from jmp_ds.planning.largest import largest_structure
from jmp_ds.planning.measured import fitted_device, read_step
from jmp_ds.planning.offload import STAGE_OF, Offload
from jmp_ds.planning.plan import Prediction, Setting
from jmp_ds.planning.states import PrecisionName, Stage
from jmp_ds.planning.tables import as_json, largest_table, memory_table, sweep_table, time_table
from jmp_ds.report import Curve, plot_curves
from jmp_ds.training.ds_config import SHIPPED, shipped_configs

#: Numbers of devices of the table, and of the picture.
WORLDS = (1, 8, 64, 512, 4096)
_PICTURE = tuple(4**k for k in range(7))


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the verb; see its help."""

    model: str
    device: str
    gpus: int
    precision: str
    forces: str
    stages: tuple[int, ...]
    recompute: tuple[bool, ...]
    batch: str
    edges: int | None
    store: Path | None
    cutoff: float
    max_neighbors: int
    fewer_neighbors: tuple[str, ...] = ()
    tasks: int
    accumulation: int
    structures: float | None
    epochs: float
    mean_edges: float | None
    gpus_per_node: int
    link: str | None
    network: str
    measured: tuple[Path, ...]
    memory: float | None
    offload: str
    host_memory: float | None


@dataclass(frozen=True)
class Ground:
    """What all predictions of a request share."""

    request: Request
    setting: Setting
    device: Device
    cluster: Cluster
    configs: list[ReadyConfig]

    def at(self, world: int) -> tuple[list[Prediction], Choice]:
        """Predictions for so many devices, and what to take."""
        wanted, tried = self.request.offload, self.request.recompute
        setting = replace(self.setting, world=world)
        found: list[Prediction] = []
        if wanted in ("auto", "none"):
            stages = cast("tuple[Stage, ...]", self.request.stages)
            found = candidates(setting, self.device, self.cluster, stages, tried)
            choice = choose(found, self.device, self.cluster, self.configs)
            if choice.best is not None or wanted == "none":
                return found, choice
        kinds = tuple(STAGE_OF) if wanted == "auto" else (cast("Offload", wanted),)
        found += offloaded(setting, self.device, self.cluster, kinds, tried)
        return found, choose(found, self.device, self.cluster, self.configs)


def tell(request: Request, json_file: Path | None, plot: Path | None) -> None:
    """Predict, print, and write what is asked for.

    Raises:
        UserError: an option out of range, an unknown name, or files that cannot be used.
    """
    ground = _ground(request)
    found, choice = ground.at(request.gpus)
    sweep = {world: ground.at(world)[1] for world in sorted({*WORLDS, request.gpus})}
    typer.echo(_headline(ground))
    asked = (request.structures, request.epochs, request.mean_edges)
    rows = [(world, c.best, c.config or c.advice[-1]) for world, c in sweep.items()]
    sizes = [(f"recompute {'on' if on else 'off'}", replace(ground.setting, recompute=on)) for on in (False, True)]
    largest = [(words, largest_structure(_sharded(setting, choice), ground.device)) for words, setting in sizes]
    for table in (
        memory_table(found),
        time_table(found, *asked),
        sweep_table(rows),
        largest_table(largest, ground.device),
    ):
        print_table(table.title, table.columns, table.rows)
    for line in choice.advice:
        typer.echo(line)
    if json_file is not None:
        write_json(json_file, _values(ground, found, choice, sweep, largest))
    if plot is not None:
        _draw(ground, plot)


def _ground(request: Request) -> Ground:
    """Check the options and look everything up."""
    for name in ("structures", "epochs", "mean_edges", "memory", "host_memory"):
        value = getattr(request, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name.replace('_', '-')} must be a positive number, got {value}")
    precision = cast("PrecisionName", request.precision)
    where = _device(request, precision)
    batch = with_edges(_batch(request), request.edges)
    setting = Setting(
        model=request.model,
        config=preset(request.model),
        forces=cast("Forces", request.forces),
        tasks=request.tasks,
        precision=precision,
        world=request.gpus,
        batch=batch,
        accumulation=request.accumulation,
        padded=not where.concurrent,
    )
    links = cluster(
        request.link or where.link, request.network, request.gpus_per_node, where.host_link, request.host_memory
    )
    configs = [ready_config(n, json.loads((SHIPPED / f"{n}.json").read_text())) for n in shipped_configs()]
    return Ground(request, setting, where, links, configs)


def _device(request: Request, precision: PrecisionName) -> Device:
    """Of the table, or fitted to measured steps."""
    if request.measured:
        if request.memory is None:
            raise UserError("--measured: the files do not tell the device's memory; give it in GiB with --memory")
        return fitted_device([read_step(path) for path in request.measured], precision, int(request.memory * GIB))
    found = device(request.device)
    return found if request.memory is None else replace(found, memory=int(request.memory * GIB))


def _batch(request: Request) -> BatchPlan:
    if request.store is None:
        return named_batch(request.batch)
    steps = _fewer(request.fewer_neighbors)
    try:
        settings = GraphSettings(cutoff=request.cutoff, max_neighbors=request.max_neighbors, fewer_neighbors=steps)
    except ValueError as error:
        raise UserError(str(error)) from None
    return store_batch(request.store, settings)


def _fewer(words: Sequence[str]) -> tuple[FewerNeighbors, ...]:
    """`ATOMS:M`, one word each."""
    steps = []
    for word in words:
        above, colon, most = word.partition(":")
        if not (colon and above.isdecimal() and most.isdecimal()):
            raise UserError(f"--fewer-neighbors {word}: must be two whole numbers, ATOMS:M, such as 200:10")
        steps.append(FewerNeighbors(above=int(above), max_neighbors=int(most)))
    return tuple(steps)


def _sharded(setting: Setting, choice: Choice) -> Setting:
    """The setting with the chosen stage; stage 1 where nothing was chosen."""
    best = choice.best.setting if choice.best else replace(setting, stage=1)
    return replace(setting, stage=best.stage, offload=best.offload)


def _headline(ground: Ground) -> str:
    s, d, counts = ground.setting, ground.device, ground.setting.batch.counts
    kind = "measured" if d.measured else "data sheet, not measured"
    return (
        f"{s.model}, {s.parameters / 1e6:.1f} million parameters, {s.tasks} tasks, {s.precision}, {s.forces} forces; "
        f"micro-batch {s.batch.name}: {counts.structures} structures, {counts.atoms} atoms, {counts.main} edges, "
        f"times {s.accumulation}\n{s.world} × {d.title} ({kind}: {d.source})"
    )


def _values(
    ground: Ground, found: list[Prediction], choice: Choice, sweep: dict[int, Choice], largest: list
) -> dict[str, Any]:
    """Everything as plain values."""
    request = ground.request
    asked = (request.structures, request.epochs, request.mean_edges)

    def taken(c: Choice) -> dict[str, Any]:
        best = None if c.best is None else as_json(c.best, *asked)
        return {"best": best, "ds_config": c.config, "advice": c.advice}

    return {
        "request": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(request).items()}
        | {"measured": [str(path) for path in request.measured]},
        "device": {**asdict(ground.device)},
        "cluster": asdict(ground.cluster),
        "parameters": ground.setting.parameters,
        "counts": asdict(ground.setting.batch.counts),
        "settings": [as_json(p, *asked) for p in found],
        **taken(choice),
        "devices": {str(world): taken(c) for world, c in sweep.items()},
        "largest": {words: asdict(x) for words, x in largest},
    }


def _draw(ground: Ground, path: Path) -> None:
    """Memory, time and throughput over the number of devices, one line per stage, with the batch of the request."""
    by_setting: dict[str, list[Prediction]] = {}
    for world in _PICTURE:
        for p in ground.at(world)[0]:
            if not p.refused:
                beside = f", offload {p.setting.offload}" if p.setting.offload != "none" else ""
                name = f"stage {p.setting.stage}{beside}{', recompute' if p.setting.recompute else ''}"
                by_setting.setdefault(name, []).append(p)
    panels = {
        f"peak per device (GiB); {ground.device.usable / GIB:.0f} usable": lambda p: p.memory.total / GIB,
        "optimiser step (s)": lambda p: p.time.total,
        "structures per second": lambda p: p.structures_per_s,
    }
    curves = {
        title: [Curve(name, list(map(float, _PICTURE)), [value(p) for p in ps]) for name, ps in by_setting.items()]
        for title, value in panels.items()
    }
    try:
        plot_curves(path, curves, "devices", log_x=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path}: cannot be written ({error})") from None
