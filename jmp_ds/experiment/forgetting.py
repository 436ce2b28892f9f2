"""What a network has forgotten of its pre-training: old heads on the backbone before and after, on old structures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from jmp_kernels import BackendName

from jmp_ds.bundle import Bundle
from jmp_ds.config.finetune import FinetuneConfig, RememberConfig
from jmp_ds.data.order import permute
from jmp_ds.data.selection import Selection
from jmp_ds.data.store import Store
from jmp_ds.experiment.evaluate import evaluate
from jmp_ds.experiment.loaders import eval_loader, sources_of
from jmp_ds.experiment.sets import TaskData
from jmp_ds.tasks.specs import Task
from jmp_ds.training.processes import Processes


def forgotten(
    config: FinetuneConfig, before: Bundle, after: Bundle, processes: Processes, *, kernels: BackendName
) -> dict[str, tuple[float, float]]:
    """Errors of pre-training tasks before and after fine-tuning, in physical units; collective.

    A task that was trained along (`heads: keep`, the same name) is judged by its own head as it is now, any other by its
    old head. Where the tuned network has no force branch any more, the old one is put back.

    Args:
        config: of the run; `remember` names tasks and structures.
        before: the bundle that the run started from.
        after: what it ended with.
        processes: share the evaluation.
        kernels: the backend of message passing.

    Returns:
        By metric (`TASK/LABEL_mae` and others): before and after.
    """
    if not config.remember:
        return {}
    data = {name: _drawn(name, wanted) for name, wanted in config.remember.items()}
    remembered = [task for task in before.tasks if task.name in data]
    sources = sources_of(remembered, data, "val", run_dir=Path(config.run.dir), progress=processes.first)
    found = []
    for bundle in (before, _with_old_heads(before, after)):
        loader = eval_loader(config, bundle.tasks, sources, processes)
        model = bundle.build(device=processes.device, kernels=kernels)
        found.append(evaluate(model, loader, processes, progress=True).metrics)
    # an energy that is not trained any more is not judged together with forces
    return {name: (found[0][name], found[1][name]) for name in found[0] if name in found[1]}


def _drawn(name: str, wanted: RememberConfig) -> TaskData:
    """Structures of a store, at random but always the same."""
    store = Store(wanted.store)
    count = min(wanted.structures, len(store))
    places = np.sort(permute(np.arange(count, dtype=np.int64), len(store), f"remember {name}"))
    return TaskData(store, {"val": Selection.of(places)})


def _with_old_heads(before: Bundle, after: Bundle) -> Bundle:
    """The old bundle with everything of it that the tuned network still has; heads only of tasks trained along."""
    now = {task.name: task for task in after.tasks}
    along = {task.name for task in before.tasks if task.name in now and _same_heads(task, now[task.name])}

    def still_there(name: str) -> bool:
        return name in after.state and (not name.startswith("heads.") or name.split(".")[1] in along)

    state = {name: after.state[name] if still_there(name) else x for name, x in before.state.items()}
    tasks = tuple(now[task.name] if task.name in along else task for task in before.tasks)
    return replace(before, tasks=tasks, state=state)


def _same_heads(task: Task, other: Task) -> bool:
    """Whether two tasks predict the same by heads of the same shape, on the same graphs."""
    kinds = [(t.graph, t.labels, t.gradient_forces, t.energy and t.energy.bias) for t in (task, other)]
    return kinds[0] == kinds[1] and not task.other_heads(other)
