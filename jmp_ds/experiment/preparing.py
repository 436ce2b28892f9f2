"""What a run does before its first step and one machine can do better alone: splits and edge counts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jmp_ds.config.checks import Checked
from jmp_ds.config.loading import Resolved
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.data.index import is_counted
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.experiment.loaders import cost_model, counts_folder, sources_of
from jmp_ds.experiment.resume import settle_configuration
from jmp_ds.experiment.sets import draw_splits
from jmp_ds.training.processes import Processes

#: The first process counts so many atoms by itself while the others wait, which they do for ten minutes on CPUs and for
#: half an hour on GPUs (limits of DeepSpeed and torch). One core takes up to 0.1 ms for an atom of a slab.
MOST_UNCOUNTED = 3_000_000


def prepare(resolved: Resolved[TrainingConfig], checked: Checked) -> int:
    """Draw splits and count edges with every core that this process may use; what is there already stays.

    Args:
        resolved, checked: the configuration.

    Returns:
        Structures that had not been counted.

    Raises:
        UserError: a split that cannot be made, a run folder with another configuration, a folder that cannot be written.
    """
    settle_configuration(resolved)
    run_dir = Path(resolved.config.run.dir)
    missing = structures_of(uncounted(resolved, checked))
    data = draw_splits(resolved, checked, run_dir / "splits")
    cores = len(os.sched_getaffinity(0))
    sources_of(
        checked.tasks,
        data,
        "train",
        run_dir=run_dir,
        cost=cost_model(resolved.config),
        workers=cores if cores > 1 else 0,
        progress=True,
    )
    return missing


def uncounted(resolved: Resolved[TrainingConfig], checked: Checked) -> list[Store]:
    """Stores without edge counts under the graph settings of a task; one for every kind of counts that is missing."""
    found, seen = [], set()
    for task in checked.tasks:
        store = checked.stores[task.name]
        key = (store.path.resolve(), task.graph.digest())
        cache = counts_folder(store, Path(resolved.config.run.dir), task.name)
        if key not in seen and not is_counted(store, task.graph, cache=cache):
            found.append(store)
        seen.add(key)
    return found


def structures_of(stores: Sequence[Store]) -> int:
    """Structures of all of them."""
    return sum(len(store) for store in stores)


def too_long(stores: Sequence[Store]) -> bool:
    """Whether one process would count longer than others wait for it."""
    return sum(int(store.natoms.sum(dtype=np.int64)) for store in stores) > MOST_UNCOUNTED


def refuse_to_wait(resolved: Resolved[TrainingConfig], checked: Checked, processes: Processes) -> None:
    """End a run of several processes that would wait for one of them to count edges. Collective.

    Raises:
        UserError: names the command that counts them beforehand.
    """
    if processes.world == 1:
        return
    stores = uncounted(resolved, checked) if processes.first else []
    missing = processes.from_first(structures_of(stores) if too_long(stores) else 0)
    if missing:
        raise UserError(
            f"edges of {missing:,} structures are not counted yet; the first process would do that alone, and the others "
            "would give up waiting. Count them before, on one machine with every core: the same pretrain or finetune "
            "with --prepare, without a launcher"
        )
