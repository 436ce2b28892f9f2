"""What can only be judged with more than the file: stores, bundles, presets, graph rules. All of it before any work."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from jmp_kernels import BackendName

from jmp_ds.bundle import Bundle, load_bundle
from jmp_ds.config.adaptation import check_adaptation
from jmp_ds.config.finetune import FinetuneConfig
from jmp_ds.config.loading import Resolved
from jmp_ds.config.messages import nearest
from jmp_ds.config.pretrain import PretrainConfig, TrainingConfig
from jmp_ds.config.sections import ModelConfig
from jmp_ds.config.tasks import ClassificationConfig, EnergyConfig, TaskConfig
from jmp_ds.data.costs import load_cost_model
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.graphs.settings import GraphSettings, fewer_neighbors
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.presets import preset
from jmp_ds.planning import backend
from jmp_ds.tasks.model import check_tasks
from jmp_ds.tasks.specs import (
    ClassTarget,
    DipoleTarget,
    EnergyTarget,
    ExtentTarget,
    ForcesTarget,
    ScalarTarget,
    StressTarget,
    Task,
)
from jmp_ds.training.ds_config import DeepSpeedConfig, check_device, load_ds_config
from jmp_ds.training.processes import kind_of_device


@dataclass(frozen=True)
class Checked:
    """What the checks have opened and made of the configuration.

    Attributes:
        backbone: sizes of the network, force branch set; `recompute` is not decided yet where that is `auto`.
        tasks: in the file's order, without normalisation yet.
        stores: by task; opened, no record read.
        deepspeed: the validated DeepSpeed file.
        bundle: what fine-tuning starts from; None from scratch.
        kernels: the backend of message passing; one that can run here.
        recompute: whether activations are computed again; `auto`: if memory asks for it.
    """

    backbone: BackboneConfig
    tasks: tuple[Task, ...]
    stores: dict[str, Store]
    deepspeed: DeepSpeedConfig
    bundle: Bundle | None = None
    kernels: BackendName = "auto"
    recompute: Literal["auto", "on", "off"] = "auto"


def check_pretrain(resolved: Resolved[PretrainConfig]) -> Checked:
    """Everything about a pre-training run that can be known before it starts.

    Raises:
        UserError: the first thing that cannot work, with the place of its key.
    """
    _check_run(resolved)
    model = resolved.config.model
    _check_kernels(resolved, model)
    backbone = _backbone(resolved, model)
    rules = GraphSettings(**model.graph.model_dump())
    tasks = _tasks(resolved, dict.fromkeys(resolved.config.tasks, rules), head_bias=True)
    _check_references(resolved, ())
    _check_no_heads(resolved)
    stores, deepspeed = _stores(resolved), _deepspeed(resolved)
    return Checked(backbone, tasks, stores, deepspeed, kernels=model.kernels, recompute=model.recompute)


def check_finetune(resolved: Resolved[FinetuneConfig]) -> Checked:
    """Everything about a fine-tuning run that can be known before it starts. Raises: see `check_pretrain`."""
    config = resolved.config
    _check_run(resolved)
    model = config.model or ModelConfig()
    _check_kernels(resolved, model)
    bundle = None
    if config.source.bundle is not None:
        bundle = _bundle(resolved, config.source.bundle)
        if config.model is not None and ("preset" in config.model.model_fields_set or config.model.overrides):
            raise resolved.complaint(
                "model", "the bundle decides the network; remove `model`, or write `from: scratch`"
            )
        backbone = _with_branches(resolved, bundle.config, model)
    else:
        backbone = _backbone(resolved, model)
    graphs = {name: _inherited(resolved, name, bundle) for name in config.tasks}
    tasks = _tasks(resolved, graphs, head_bias=False)
    donors = head_donors(resolved, bundle)
    _check_references(resolved, donors)
    tasks = tuple(_with_donor(resolved, t, donors[t.name]) if t.name in donors else t for t in tasks)
    _check_layerwise(resolved, backbone)
    _check_remembered(resolved, bundle)
    stores, deepspeed = _stores(resolved), _deepspeed(resolved)
    check_adaptation(resolved, backbone, tasks, deepspeed.stage)
    return Checked(backbone, tasks, stores, deepspeed, bundle, kernels=model.kernels, recompute=model.recompute)


def _check_run(resolved: Resolved[TrainingConfig]) -> None:
    """Run folder, device, length, metric."""
    config: TrainingConfig = resolved.config
    folder = Path(config.run.dir)
    existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    if not existing.is_dir():
        raise resolved.complaint("run.dir", f"{existing} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise resolved.complaint("run.dir", f"{existing} is not writable; name a folder of yours")
    if not config.run.resume and (folder / "latest").exists():
        raise resolved.complaint("run.resume", f"{folder} holds a checkpoint; name a new folder or allow to resume")
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise resolved.complaint("run.device", "cuda is asked for, but torch finds no GPU here; use cpu or auto")
    if config.train.epochs is None and config.train.steps is None:
        raise resolved.complaint("train", "no length: give `epochs` or `steps`")
    if config.train.steps is not None and config.train.schedule.kind == "warmup_cosine_plateau":
        raise resolved.complaint("train.steps", "the schedule warmup_cosine_plateau counts in epochs; give `epochs`")
    if config.sampling.batch.cost is not None:
        try:
            load_cost_model(config.sampling.batch.cost)
        except UserError as error:
            raise resolved.complaint("sampling.batch.cost", str(error)) from None
    if config.validation.metric is not None:
        _check_metric(resolved, config.validation.metric)
    stopping = config.train.early_stopping is not None
    plateau = config.train.schedule.kind == "warmup_cosine_plateau"
    if (stopping or plateau) and not any(task.split.validates for task in config.tasks.values()):
        key = "train.early_stopping" if stopping else "train.schedule.kind"
        raise resolved.complaint(key, "needs validation structures, but no task keeps any (split.val)")


def _check_kernels(resolved: Resolved[TrainingConfig], model: ModelConfig) -> None:
    """A backend that is asked for by name must be able to run where the run will."""
    if model.kernels == "auto":
        return
    try:
        backend(model.kernels, kind_of_device(resolved.config.run.device))
    except UserError as error:
        raise resolved.complaint("model.kernels", str(error).removeprefix("kernels: ")) from None


def _check_metric(resolved: Resolved[TrainingConfig], metric: str) -> None:
    known = [f"{name}/{label}" for name, task in resolved.config.tasks.items() for label in labels_of(task)]
    if metric not in known:
        raise resolved.complaint("validate.metric", f"no metric {metric!r}; {nearest(metric, known)}")


def _check_references(resolved: Resolved[TrainingConfig], donors: Container[str]) -> None:
    """References can only be kept where heads are taken over, together with which they were learned."""
    for name, task in resolved.config.tasks.items():
        if task.references == "keep" and name not in donors:
            raise resolved.complaint(
                f"tasks.{name}.references", "nothing to keep: no head comes from a bundle; use `fit` or `none`"
            )


def _check_no_heads(resolved: Resolved[PretrainConfig]) -> None:
    for name, task in resolved.config.tasks.items():
        if task.heads is not None:
            raise resolved.complaint(f"tasks.{name}.heads", "heads are new in pre-training; remove it")


def _check_remembered(resolved: Resolved[FinetuneConfig], bundle: Bundle | None) -> None:
    """What is to be remembered must be tasks of the bundle, and their labels in the stores."""
    known = [] if bundle is None else [task.name for task in bundle.tasks]
    for name, config in resolved.config.remember.items():
        if bundle is None or name not in known:
            have = nearest(name, known) if known else "there is no bundle"
            raise resolved.complaint(f"remember.{name}", f"no such task in the bundle; {have}")
        try:
            labels = Store(config.store).summary.labels
        except UserError as error:
            raise resolved.complaint(f"remember.{name}.store", str(error)) from None
        if not any(labels.get(label) for label in bundle.task(name).labels):
            wanted = ", ".join(bundle.task(name).labels)
            raise resolved.complaint(f"remember.{name}.store", f"no structure in {config.store} has a label {wanted}")


def labels_of(task: TaskConfig) -> list[str]:
    """Labels that a task learns or evaluates."""
    names = ["energy"] * (task.energy is not None) + ["forces"] * (task.forces is not None)
    names += ["stress"] * (task.stress is not None)
    return [*names, *(t.label for t in task.of_structures)]


def _backbone(resolved: Resolved[TrainingConfig], model: ModelConfig) -> BackboneConfig:
    """Preset with overrides."""
    base = preset(model.preset)
    known = {f.name: type(getattr(base, f.name)) for f in fields(base)}
    for key, value in model.overrides.items():
        place = f"model.overrides.{key}"
        if key not in known:
            raise resolved.complaint(place, f"unknown size; {nearest(key, known)}")
        if type(value) is not known[key]:
            raise resolved.complaint(place, f"must be {known[key].__name__}, got {value!r}")
    try:
        base = replace(base, **model.overrides)
    except ValueError as error:
        raise resolved.complaint("model.overrides", str(error)) from None
    return _with_branches(resolved, base, model)


def _with_branches(resolved: Resolved[TrainingConfig], base: BackboneConfig, model: ModelConfig) -> BackboneConfig:
    """The force branch where a task has direct forces; recomputation where it is asked for."""
    tasks = resolved.config.tasks.values()
    direct = any(task.force_kind == "direct" or (task.dipole and task.dipole.atomic) for task in tasks)
    return replace(
        base, direct_forces=direct, recompute=base.recompute if model.recompute == "auto" else model.recompute == "on"
    )


def _inherited(resolved: Resolved[FinetuneConfig], name: str, bundle: Bundle | None) -> GraphSettings:
    """Settings of the bundle's task that heads come from, or the rules that all its tasks share; `model.graph` wins."""
    config = resolved.config
    rules = config.model.graph.model_dump() if config.model is not None else {}
    if bundle is None:
        return GraphSettings(**rules)
    mine = config.model.graph.model_dump(exclude_unset=True) if config.model is not None else {}
    if config.head_source(name) is not None:
        return replace(head_donor(resolved, name, bundle).graph, **mine)
    first = bundle.tasks[0].graph
    return replace(GraphSettings(symmetrize=first.symmetrize, envelope=first.envelope, dihedral=first.dihedral), **mine)


def head_donors(resolved: Resolved[FinetuneConfig], bundle: Bundle | None) -> dict[str, Task]:
    """By task that takes heads over, the bundle's task that it takes them from. Raises: see `head_donor`."""
    names = [name for name in resolved.config.tasks if resolved.config.head_source(name) is not None]
    if bundle is None:
        if names:
            raise resolved.complaint(f"tasks.{names[0]}.heads", "there is no bundle to take heads from; use `new`")
        return {}
    return {name: head_donor(resolved, name, bundle) for name in names}


def head_donor(resolved: Resolved[FinetuneConfig], name: str, bundle: Bundle) -> Task:
    """The bundle's task whose heads a task takes over.

    Raises:
        UserError: the bundle has no such task, or it lacks a head that is needed.
    """
    wanted = resolved.config.head_source(name)
    key = "from.heads" if resolved.config.tasks[name].heads is None else f"tasks.{name}.heads"
    known = {t.name: t for t in bundle.tasks}
    if wanted not in known:
        raise resolved.complaint(key, f"the bundle has no task {wanted!r}; {nearest(wanted or name, known)}")
    config = resolved.config.tasks[name]
    missing = sorted(set(_heads_of(config)) - set(_heads_of_task(known[wanted])))
    if missing:
        raise resolved.complaint(
            key, f"task {wanted} of the bundle has no head for {', '.join(missing)}; use `heads: new`"
        )
    donor: Task = known[wanted]
    return donor


def _heads_of(config: TaskConfig) -> Iterable[str]:
    gradient = config.force_kind == "gradient"
    heads = {label for label in labels_of(config) if not (gradient and label in ("forces", "stress"))}
    return heads | {"energy"} if gradient else heads


def _heads_of_task(task: Task) -> Iterable[str]:
    return {label for label in task.labels if not (task.gradient_forces and label in ("forces", "stress"))}


def _tasks(
    resolved: Resolved[TrainingConfig], graphs: dict[str, GraphSettings], *, head_bias: bool
) -> tuple[Task, ...]:
    """Every task as a value, over the graph settings that it inherits."""
    tasks = []
    for name, config in resolved.config.tasks.items():
        graph = _graph(resolved, name, graphs[name])
        try:
            tasks.append(_task(name, config, graph, head_bias))
            check_tasks(tasks)
        except ValueError as error:
            raise resolved.complaint(f"tasks.{name}", str(error).removeprefix(f"task {name}: ")) from None
    return tuple(tasks)


def _graph(resolved: Resolved[TrainingConfig], name: str, base: GraphSettings) -> GraphSettings:
    values = resolved.config.tasks[name].graph.model_dump(exclude_none=True)
    if "fewer_neighbors" in values:
        values["fewer_neighbors"] = fewer_neighbors(values["fewer_neighbors"])
    try:
        return replace(base, **values)
    except ValueError as error:
        raise resolved.complaint(f"tasks.{name}.graph", str(error).removeprefix("graph: ")) from None


def _task(name: str, config: TaskConfig, graph: GraphSettings, head_bias: bool) -> Task:
    """Targets of one task; forces that are gradients bring an energy head, trained or not."""
    energy = config.energy
    if energy is None and config.force_kind == "gradient":
        energy = EnergyConfig(weight=0.0)
    bias = head_bias if energy is None or energy.bias is None else energy.bias
    task = Task(
        name=name,
        graph=graph,
        energy=None if energy is None else EnergyTarget(weight=energy.weight, bias=bias),
        forces=None if config.forces is None else ForcesTarget(**config.forces.model_dump()),
        stress=None if config.stress is None else StressTarget(weight=config.stress.weight),
        scalars=tuple(ScalarTarget(**s.model_dump(exclude={"references"})) for s in config.all_scalars),
        spatial_extent=None if config.spatial_extent is None else ExtentTarget(**config.spatial_extent.model_dump()),
        dipole=None if config.dipole is None else DipoleTarget(**config.dipole.model_dump()),
        classification=None if config.classification is None else _class_target(config.classification),
    )
    return task.weighted(config.weight)


def _class_target(config: ClassificationConfig) -> ClassTarget:
    values = config.model_dump(exclude={"kind", "class_weights"})
    kind = config.kind or ("binary" if config.classes == 2 else "multi")
    return ClassTarget(**values, kind=kind, class_weights=tuple(config.class_weights))


def _with_donor(resolved: Resolved[FinetuneConfig], task: Task, donor: Task) -> Task:
    """Heads that are taken over keep their shape.

    Raises:
        UserError: a label that the donor predicts in another way.
    """
    if others := task.other_heads(donor):
        raise resolved.complaint(
            f"tasks.{task.name}",
            f"task {donor.name} of the bundle predicts {others[0]!r} by a head of another kind; use `heads: new`",
        )
    if task.energy is None or donor.energy is None:
        return task
    return replace(task, energy=replace(task.energy, bias=donor.energy.bias))


def _stores(resolved: Resolved[TrainingConfig]) -> dict[str, Store]:
    """All stores, opened; every label that is wanted must be in them."""
    stores = {}
    for name, task in resolved.config.tasks.items():
        try:
            store = Store(task.store)
        except UserError as error:
            raise resolved.complaint(f"tasks.{name}.store", str(error)) from None
        if len(store) == 0:
            raise resolved.complaint(f"tasks.{name}.store", f"{task.store} holds no structure")
        for label in labels_of(task):
            if not store.summary.labels.get(label):
                key = _place_of(task, label)
                have = nearest(label, store.summary.labels)
                raise resolved.complaint(
                    f"tasks.{name}.{key}", f"no structure in {task.store} has the label {label!r}; {have}"
                )
        stores[name] = store
    return stores


def _place_of(task: TaskConfig, label: str) -> str:
    """Key below the task's where a label is asked for."""
    if label in ("energy", "forces", "stress"):
        return label
    for key in ("scalar", "spatial_extent", "dipole", "classification"):
        target = getattr(task, key)
        if target is not None and target.label == label:
            return f"{key}.label"
    return "scalars"


def _bundle(resolved: Resolved[FinetuneConfig], path: str) -> Bundle:
    try:
        return load_bundle(Path(path))
    except (UserError, FileNotFoundError) as error:
        raise resolved.complaint("from.bundle", str(error)) from None


def _check_layerwise(resolved: Resolved[FinetuneConfig], backbone: BackboneConfig) -> None:
    rates = resolved.config.layerwise_lr
    if rates is None or rates.factors(backbone.num_blocks) is not None:
        return
    there = (
        f"factors for {', '.join(rates.blocks)}" if isinstance(rates.blocks, dict) else f"{len(rates.blocks)} factors"
    )
    raise resolved.complaint(
        "layerwise_lr.blocks",
        f"{there}, but the network has {backbone.num_blocks} interaction blocks; give it its own, or none "
        "(layerwise_lr=null)",
    )


def _deepspeed(resolved: Resolved[TrainingConfig]) -> DeepSpeedConfig:
    """The DeepSpeed file, which refuses gradient forces at ZeRO-3 among others."""
    gradient = any(task.force_kind == "gradient" for task in resolved.config.tasks.values())
    try:
        config = load_ds_config(resolved.config.engine.deepspeed, gradient_forces=gradient)
        check_device(config, kind_of_device(resolved.config.run.device))
    except UserError as error:
        raise resolved.complaint("engine.deepspeed", str(error).removeprefix("engine.deepspeed: ")) from None
    if resolved.config.train.on_out_of_memory == "split" and (config.stage == 3 or config.narrow == "fp16"):
        raise resolved.complaint(
            "train.on_out_of_memory",
            "`split` works at ZeRO stages 0 to 2 without DeepSpeed's fp16; use `stop`, or another engine.deepspeed",
        )
    return config
