"""One run from a prepared model to its report: engine, loop, bundles, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from jmp_ds.bundle import Bundle, provenance, save_bundle
from jmp_ds.config.checks import Checked
from jmp_ds.config.loading import Resolved
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.config.sections import EarlyStoppingConfig, ScheduleConfig
from jmp_ds.data.sources import Source
from jmp_ds.errors import UserError
from jmp_ds.experiment.loaders import (
    built_on,
    cost_model,
    eval_loader,
    fit_loader,
    fit_scales,
    sources_of,
    train_loader,
)
from jmp_ds.experiment.preparing import refuse_to_wait
from jmp_ds.experiment.recompute import plan_of
from jmp_ds.experiment.sets import TaskData, draw_splits, normalised_tasks
from jmp_ds.graphs.batch import Batch, Structures
from jmp_ds.planning import backend
from jmp_ds.tasks.losses import count_labels, loss_sums
from jmp_ds.tasks.metrics import Metrics, error_of
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import Task
from jmp_ds.training.engine import Engine, EngineOptions
from jmp_ds.training.loop import Loop
from jmp_ds.training.optimizer import LayerwiseRates, OptimizerOptions, ParameterGroup, parameter_groups
from jmp_ds.training.outcome import Outcome
from jmp_ds.training.processes import Processes, age_of_process
from jmp_ds.training.run import LoopOptions, Validation
from jmp_ds.training.schedules import EarlyStopping, EarlyStoppingOptions, PlateauOptions, Schedule, ScheduleOptions

#: Epochs of a run whose length is in steps: as many as it takes.
_ENDLESS = 2**31


@dataclass(frozen=True)
class Material:
    """What a run works on.

    Attributes:
        tasks: normalised.
        data: stores and splits by task.
        train, val, test: sources; the latter two may be empty.
    """

    tasks: tuple[Task, ...]
    data: Mapping[str, TaskData]
    train: list[Source]
    val: list[Source]
    test: list[Source]


def gather_material(
    resolved: Resolved[TrainingConfig], checked: Checked, base: Mapping[str, Task], processes: Processes
) -> Material:
    """Splits, statistics and edge counts; the first process computes and shows progress, the others take its results.

    Args:
        resolved, checked: the configuration.
        base: by task, the pre-trained task whose references the new ones stay close to.
        processes: collective over them.

    Raises:
        UserError: there is too much to count for one process while others wait.
    """
    run_dir = Path(resolved.config.run.dir)
    cost = cost_model(resolved.config)
    described: list[dict[str, Any]] = []
    refuse_to_wait(resolved, checked, processes)
    if processes.first:
        data = draw_splits(resolved, checked, run_dir / "splits")
        statistics = run_dir / "statistics"
        tasks = normalised_tasks(resolved.config.tasks, checked, data, base, keep_in=statistics, progress=True)
        sources_of(tasks, data, "train", run_dir=run_dir, cost=cost, progress=True)
        described = [task.to_dict() for task in tasks]
    tasks = tuple(Task.from_dict(values) for values in processes.from_first(described))
    data = draw_splits(resolved, checked, run_dir / "splits")  # of the first process, where it has drawn any
    train, val, test = (
        sources_of(tasks, data, split, run_dir=run_dir, cost=cost) for split in ("train", "val", "test")
    )
    return Material(tasks, data, train, val, test)


def fit_missing_scales(config: TrainingConfig, material: Material, model: MultiTaskModel, processes: Processes) -> int:
    """Fit scale factors that have no value, before training; how many there were.

    Every process fits by itself on the same structures, as the only process would.
    """
    loader = fit_loader(config, material.tasks, material.train, built_on(config, processes))
    return len(fit_scales(model, loader, processes.device, progress=processes.first))


def new_model(config: TrainingConfig, checked: Checked, material: Material, processes: Processes) -> MultiTaskModel:
    """The network with fresh weights, on the backend of its device; the first process tells what was chosen.

    Collective: recomputation is on everywhere or nowhere.
    """
    messages = backend(checked.kernels, processes.device)
    plan = plan_of(config, checked, material.tasks, material.train, processes, padded=messages.name == "torch")
    if processes.first:
        console = Console(stderr=True)
        line = f"message passing: {messages.name} on {processes.device}; {plan.story}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(f"graphs: built on the {built_on(config, processes)}", markup=False, highlight=False)
        if warning := _idle(config, processes.world):
            console.print(warning, markup=False, highlight=False, soft_wrap=True)
    torch.manual_seed(config.run.seed)
    return MultiTaskModel(replace(checked.backbone, recompute=plan.recompute), material.tasks, messages)


def _idle(config: TrainingConfig, world: int) -> str:
    """What is to be said where a step has fewer structures than there are processes."""
    structures = config.sampling.batch.structures
    if structures is None or structures >= world:
        return ""
    return (
        f"sampling.batch: {structures} structures per step leave {world - structures} of {world} processes without work; "
        "`structures` is the number over all processes, `edges` is that of each"
    )


def train(
    resolved: Resolved[TrainingConfig],
    checked: Checked,
    material: Material,
    model: MultiTaskModel,
    processes: Processes,
    *,
    rates: LayerwiseRates | None = None,
    origin: Mapping[str, Any] | None = None,
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state,
) -> Outcome:
    """Train from the newest checkpoint or the beginning; leaves `best/` and `final/` bundles in the run folder.

    Args:
        resolved, checked: the configuration.
        material: tasks and structures.
        model: with fitted scale factors.
        processes: collective over them.
        rates: learning-rate factors by depth.
        origin: more about where the weights come from, for the bundles' provenance.
        finish: makes the state that bundles hold of the trained one.
    """
    config, options = resolved.config, resolved.config.train
    groups = parameter_groups(model.named_parameters(), rates)
    engine = _engine(config, checked, model, groups, processes)
    epochs = options.epochs or _ENDLESS
    first_loader = train_loader(config, material.tasks, material.train, processes, epochs)
    loop = Loop(
        engine,
        Schedule(_schedule(options.schedule), options.optimizer.lr, [g.multiplier for g in groups]),
        lambda state: train_loader(config, material.tasks, material.train, processes, epochs, state),
        lambda outputs, batch: loss_sums(outputs, batch, material.tasks),
        lambda batch: count_labels(batch, material.tasks),
        _loop_options(config, first_loader.epoch_length),
        validation=_validation(resolved, material, processes),
        early_stopping=_early_stopping(options.early_stopping),
        export=_exporter(Path(config.run.dir), model, material, origin or {}, finish),
        describe=size_in_words,
    )
    return loop.run()


def _engine(
    config: TrainingConfig,
    checked: Checked,
    model: MultiTaskModel,
    groups: Sequence[ParameterGroup],
    processes: Processes,
) -> Engine:
    """The model on all processes with its optimizer, as configured."""
    adam = config.train.optimizer
    return Engine(
        model,
        groups,
        OptimizerOptions(
            lr=adam.lr, betas=(adam.betas[0], adam.betas[1]), eps=adam.eps, weight_decay=adam.weight_decay
        ),
        EngineOptions(
            ds_config=checked.deepspeed,
            accumulation=config.sampling.accumulation,
            clip_norm=config.train.clip_norm,
            clip_value=config.train.clip_value,
        ),
        processes,
    )


def _early_stopping(config: EarlyStoppingConfig | None) -> EarlyStopping | None:
    """None: the run goes to its end."""
    if config is None:
        return None
    return EarlyStopping(EarlyStoppingOptions(patience=config.patience, min_lr=config.min_lr))


def size_in_words(batch: Structures) -> str:
    """Counts of a batch; those of its graph where that is built."""
    words = f"{batch.num_structures} structures with {batch.num_atoms} atoms"
    if not isinstance(batch, Batch):
        return words
    return f"{words} and {batch.graph.main.num_edges} edges"


def _loop_options(config: TrainingConfig, epoch: int) -> LoopOptions:
    """Lengths and intervals in structures, or the length in steps."""
    by_epochs = config.train.epochs is not None
    length = float((config.train.epochs or 0) * epoch) if by_epochs else float(config.train.steps or 0)
    in_epochs = config.train.schedule.kind == "warmup_cosine_plateau"
    return LoopOptions(
        run_dir=Path(config.run.dir),
        length=length,
        measure="structures" if by_epochs else "steps",
        schedule_unit=float(epoch) if in_epochs else length,
        epoch=float(epoch),
        validate_every=config.validation.every * epoch,
        checkpoint_every=config.checkpoint.every * epoch,
        keep=config.checkpoint.keep,
        keep_best=config.checkpoint.best,
        background=config.checkpoint.background,
        wall_time=None if config.run.wall_time is None else 3600.0 * config.run.wall_time - age_of_process(),
        on_out_of_memory=config.train.on_out_of_memory,
        hung_after=None if config.run.hung_after is None else 60.0 * config.run.hung_after,
        ema_decay=config.train.ema,
        seed=config.run.seed,
        resume=config.run.resume,
    )


def _schedule(config: ScheduleConfig) -> ScheduleOptions:
    """Positions are fractions of the run, or epochs for the schedule with plateau control."""
    if config.kind != "warmup_cosine_plateau":
        return ScheduleOptions(
            kind=config.kind, warmup=config.warmup, start_factor=config.warmup_from, floor_factor=config.cosine_to
        )
    return ScheduleOptions(
        kind=config.kind,
        warmup=config.warmup_epochs,
        end=config.cosine_epochs,
        start_factor=0.1,
        floor_factor=config.cosine_to,
        floor_limits=(0.01, 0.99),
        plateau=PlateauOptions(factor=config.plateau_factor, patience=config.plateau_patience),
    )


def _validation(resolved: Resolved[TrainingConfig], material: Material, processes: Processes) -> Validation | None:
    """Validation on the structures kept for it; None if there are none."""
    if not material.val:
        return None
    loader = eval_loader(resolved.config, material.tasks, material.val, processes)
    return Validation(
        lambda: loader,
        lambda: Metrics(material.tasks, processes.device),
        lambda metrics: primary_metric(metrics, material.tasks, resolved.config.validation.metric),
    )


def primary_metric(metrics: Mapping[str, float], tasks: Sequence[Task], chosen: str | None) -> float:
    """The number that decides what is best.

    Args:
        metrics: by name (see `metric_units`).
        tasks: of the model.
        chosen: `task/label`, or None: the mean over the tasks of the error of forces, where no task has forces of
            energies, else of the other labels, each in units of its label's scale; of classes, 1 - balanced accuracy.

    Raises:
        UserError: the validation structures carry no such label.
    """
    if chosen is not None:
        name, _, label = chosen.partition("/")
        error = next((error_of(metrics, task, label) for task in tasks if task.name == name), None)
        if error is None:
            raise UserError(f"validate.metric: no validation structure carries {chosen}")
        return error
    terms: dict[str, list[float]] = {"forces": [], "energy": [], "scalars": []}
    for task in tasks:
        for label in task.labels:
            value = error_of(metrics, task, label)
            if value is not None:
                unit = 1000.0 if label in ("forces", "stress") else 1.0  # those are told in meV
                terms.get(label, terms["scalars"]).append(value / (unit * task.scale(label)))
    best = next((values for values in terms.values() if values), None)
    if best is None:
        raise UserError("validation: no validation structure carries any label that is learned")
    return sum(best) / len(best)


def _exporter(
    run_dir: Path,
    model: MultiTaskModel,
    material: Material,
    origin: Mapping[str, Any],
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> Callable[[Literal["best", "final"], dict[str, Tensor], dict[str, Any]], None]:
    """Writes bundles into the run folder."""
    metadata = {name: dict(own.store.metadata) for name, own in material.data.items()}
    elements = {name: own.store.elements for name, own in material.data.items()}

    def export(kind: Literal["best", "final"], state: dict[str, Tensor], about: dict[str, Any]) -> None:
        story = {**provenance(str(about["weights"]), metadata), **dict(origin), "training": about}
        # how it was trained is no property of the model
        config = replace(model.config, recompute=False)
        save_bundle(Bundle(config, material.tasks, finish(state), story, elements), run_dir / kind)

    return export
