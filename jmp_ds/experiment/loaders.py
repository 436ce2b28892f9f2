"""From tasks and splits to loaders, and scale factors fitted on what the loaders give."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.config.sections import BatchConfig
from jmp_ds.data.costs import CostModel, load_cost_model
from jmp_ds.data.loading import EvalLoader, Loading, TrainLoader
from jmp_ds.data.packing import BatchRule, EdgeBudget, StructureCount
from jmp_ds.data.sources import Source, open_source
from jmp_ds.data.store import Store
from jmp_ds.experiment.sets import TaskData
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.graphs.unbuilt import BuiltOn
from jmp_ds.models.scaling import fit_scale_factors, scale_factors, unfitted
from jmp_ds.planning import graphs_on
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import Task
from jmp_ds.training.processes import Processes

#: Batches that scale factors are fitted on (specification section 6), and the fewest edges of one.
FIT_BATCHES, FIT_EDGES = 16, 500


def sources_of(
    tasks: Sequence[Task],
    data: Mapping[str, TaskData],
    split: str,
    *,
    run_dir: Path,
    cost: CostModel | None = None,
    workers: int = 0,
    progress: bool = False,
) -> list[Source]:
    """One source per task that has structures in the split; edges are counted where they are not known yet.

    Counts are kept in `counts_folder`; `workers` processes besides this one make them.
    """
    sources = []
    for task in tasks:
        own = data[task.name]
        if split not in own.splits:
            continue
        sources.append(
            open_source(
                task.name,
                task.graph,
                own.store,
                [label for label in task.labels if own.store.summary.labels.get(label)],
                indices=own.splits[split],
                cost=cost,
                cache=counts_folder(own.store, run_dir, task.name),
                workers=workers,
                progress=progress,
            )
        )
    return sources


def counts_folder(store: Store, run_dir: Path, task: str) -> Path | None:
    """Where edge counts are kept: beside the store (None), or in the run folder where the store cannot be written."""
    return None if os.access(store.path, os.W_OK) else run_dir / "index" / task


def graphs_of(tasks: Sequence[Task]) -> list[tuple[str, GraphSettings]]:
    """Names and graph settings in the model's order, as loaders want them."""
    return [(task.name, task.graph) for task in tasks]


def batch_rule(batch: BatchConfig) -> BatchRule:
    """How batches are cut."""
    if batch.edges is not None:
        return EdgeBudget(batch.edges)
    return StructureCount(batch.structures or 1)


def built_on(config: TrainingConfig, processes: Processes) -> BuiltOn:
    """Where the graphs of a run are built."""
    return graphs_on(config.sampling.graphs, processes.device)


def cost_model(config: TrainingConfig) -> CostModel | None:
    """What a structure costs, if the configuration names a calibration."""
    return load_cost_model(config.sampling.batch.cost) if config.sampling.batch.cost is not None else None


def train_loader(
    config: TrainingConfig,
    tasks: Sequence[Task],
    sources: Sequence[Source],
    processes: Processes,
    epochs: int,
    state: Mapping[str, Any] | None = None,
) -> TrainLoader:
    """This process's part of the training batches, from a loader's state on."""
    return TrainLoader(
        sources,
        graphs_of(tasks),
        batch_rule(config.sampling.batch),
        seed=config.run.seed,
        epochs=epochs,
        temperature=config.sampling.temperature,
        order=config.sampling.order,
        edge_dropout=config.train.edge_dropout,
        loading=Loading(
            rank=processes.rank,
            world=processes.world,
            accumulation=config.sampling.accumulation,
            workers=config.sampling.workers,
            graphs=built_on(config, processes),
        ),
        state=state,
    )


def eval_loader(
    config: TrainingConfig, tasks: Sequence[Task], sources: Sequence[Source], processes: Processes
) -> EvalLoader:
    """This process's part of the batches that show every structure once."""
    loading = Loading(
        rank=processes.rank,
        world=processes.world,
        workers=config.sampling.workers,
        graphs=built_on(config, processes),
    )
    return EvalLoader(sources, graphs_of(tasks), batch_rule(config.sampling.batch), loading)


def fit_loader(
    config: TrainingConfig, tasks: Sequence[Task], sources: Sequence[Source], graphs: BuiltOn = "host"
) -> TrainLoader:
    """Batches for `fit_scales`: all tasks mixed, as one process draws them.

    A quarter of a training batch's edges each; the fewest where that is less, or where batches are cut by structures.
    """
    return TrainLoader(
        sources,
        graphs_of(tasks),
        EdgeBudget(max(FIT_EDGES, (config.sampling.batch.edges or 0) // 4)),
        seed=config.run.seed,
        epochs=1,
        temperature=config.sampling.temperature,
        loading=Loading(graphs=graphs),
    )


def fit_scales(
    model: MultiTaskModel, loader: TrainLoader, device: torch.device, *, num_batches: int = FIT_BATCHES, progress: bool
) -> dict[str, float]:
    """Fit the scale factors that have no value yet; those that have one keep it.

    Every process fits on the same structures, so that all get the same values.

    Args:
        model: on any device; factors are filled in place.
        loader: of a single process (rank 0 of 1), without edge dropout, at its beginning.
        device: where to compute.
        num_batches: fewer are used where there are fewer.
        progress: show a bar.

    Returns:
        The new values by name; empty if nothing was missing.
    """
    missing = unfitted(model)
    if not missing:
        return {}
    known = [name for name in scale_factors(model) if name not in missing]
    batches = [step.batches[0].to(device) for step in islice(loader, num_batches)]
    model.to(device).eval()
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        shown = bar.add_task("fitting scale factors", total=len(missing))
        return fit_scale_factors(
            model, lambda k: model(batches[k]), len(batches), lambda name, value: bar.advance(shown), keep=known
        )
