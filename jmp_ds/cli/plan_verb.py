"""`jmp-ds plan`: memory, time and hours of a training run before anything is built."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jmp_ds.cli.bench_verbs import ModelSize, StepForces


class PlanPrecision(StrEnum):
    """How numbers are kept."""

    float32 = "float32"
    bf16 = "bf16"
    deepspeed_bf16 = "deepspeed-bf16"
    deepspeed_fp16 = "deepspeed-fp16"


class OnOffAuto(StrEnum):
    """On, off, or both tried."""

    auto = "auto"
    on = "on"
    off = "off"


class OffloadChoice(StrEnum):
    """What lies in the machine's memory."""

    auto = "auto"
    none = "none"
    optimiser = "optimiser"
    all = "all"


class StageChoice(StrEnum):
    """A ZeRO stage, or all of them."""

    auto = "auto"
    zero = "0"
    one = "1"
    two = "2"
    three = "3"


def plan(
    model: Annotated[ModelSize, typer.Option(help="size of the network", show_default=False)],
    device: Annotated[str, typer.Option(help="h200, h100, a100-80, a100-40 or rtx4090")] = "h200",
    gpus: Annotated[int, typer.Option(min=1, max=65536, help="devices, one process each")] = 8,
    precision: Annotated[
        PlanPrecision, typer.Option(help="bf16 is autocast over float32 parameters; deepspeed-*: 16-bit parameters")
    ] = PlanPrecision.bf16,
    forces: Annotated[StepForces, typer.Option(help="from a head, or as gradient of the energy")] = StepForces.direct,
    stage: Annotated[StageChoice, typer.Option(help="of ZeRO; auto tries all")] = StageChoice.auto,
    recompute: Annotated[OnOffAuto, typer.Option(help="of activations; auto tries both")] = OnOffAuto.auto,
    batch: Annotated[
        str, typer.Option(metavar="NAME", help="micro-batch of a process: a batch of `jmp-ds bench step`, by name")
    ] = "mixed",
    edges: Annotated[int | None, typer.Option(help="scale it to so many main edges (sampling.batch.edges)")] = None,
    store: Annotated[Path | None, typer.Option(metavar="STORE", help="take a store's proportions instead")] = None,
    cutoff: Annotated[float, typer.Option(help="of the store's graphs, in Å")] = 12.0,
    max_neighbors: Annotated[int, typer.Option(help="of the store's graphs")] = 30,
    fewer_neighbors: Annotated[
        list[str] | None,
        typer.Option(metavar="ATOMS:M", help="of the store's structures with more atoms, such as 200:10; repeat it"),
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, max=1000, help="with heads of their own")] = 4,
    accumulation: Annotated[int, typer.Option(min=1, help="micro-batches per optimiser step")] = 1,
    structures: Annotated[float | None, typer.Option(help="of the data set, for device-hours; e.g. 120e6")] = None,
    epochs: Annotated[float, typer.Option(help="over the data set")] = 1.0,
    mean_edges: Annotated[float | None, typer.Option(help="per structure [default: the batch's]")] = None,
    gpus_per_node: Annotated[int, typer.Option(help="devices of one machine")] = 8,
    link: Annotated[str | None, typer.Option(help="nvlink4, nvlink3, pcie5, pcie4 [default: the device's]")] = None,
    network: Annotated[
        str, typer.Option(help="between nodes: ib-8x400, ib-8x200, ib-1x200, ethernet-100, ethernet-25")
    ] = "ib-8x400",
    measured: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="steps of `jmp-ds bench step --json` in place of a data sheet; repeat it"),
    ] = None,
    memory: Annotated[float | None, typer.Option(help="of a device in GiB; needed with --measured")] = None,
    offload: Annotated[
        OffloadChoice, typer.Option(help="to the machine's memory (stages 2, 3); auto: where nothing fits without")
    ] = OffloadChoice.auto,
    host_memory: Annotated[float | None, typer.Option(help="of one machine in GiB [default: 512, assumed]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="write all numbers here")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT", help="picture of 1 to 4,096 devices")] = None,
) -> None:
    """Predict memory per device, time of a step and hours of a data set, and say which DeepSpeed configuration to use.

    Nothing is built or run. docs/planning.md says what the numbers rest on and how far they were off where checked.
    """
    from jmp_ds.cli import planned

    request = planned.Request(
        model=model.value,
        device=device,
        gpus=gpus,
        precision=precision.value,
        forces=forces.value,
        stages=(0, 1, 2, 3) if stage is StageChoice.auto else (int(stage.value),),
        recompute=(False, True) if recompute is OnOffAuto.auto else (recompute is OnOffAuto.on,),
        batch=batch,
        edges=edges,
        store=store,
        cutoff=cutoff,
        max_neighbors=max_neighbors,
        fewer_neighbors=tuple(fewer_neighbors or ()),
        tasks=tasks,
        accumulation=accumulation,
        structures=structures,
        epochs=epochs,
        mean_edges=mean_edges,
        gpus_per_node=gpus_per_node,
        link=link,
        network=network,
        measured=tuple(measured or ()),
        memory=memory,
        offload=offload.value,
        host_memory=host_memory,
    )
    planned.tell(request, json_file, plot)
