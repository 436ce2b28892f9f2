"""Whether a run computes activations again in its backward pass: asked for, or because memory would not hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jmp_ds.config.checks import Checked
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.data.sources import Source
from jmp_ds.experiment.loaders import fit_loader
from jmp_ds.models.counts import BatchCounts, HeadRows
from jmp_ds.planning import USABLE, available, scaled, step_memory
from jmp_ds.tasks.specs import ForceKind, Task
from jmp_ds.training.processes import Processes


@dataclass(frozen=True)
class Plan:
    """The decision, and a few words on it."""

    recompute: bool
    story: str


def plan_of(
    config: TrainingConfig,
    checked: Checked,
    tasks: Sequence[Task],
    sources: Sequence[Source],
    processes: Processes,
    *,
    padded: bool,
) -> Plan:
    """Decide as configured; `auto` recomputes where the largest batch would not fit into memory otherwise.

    Not with gradient forces: the pass that makes forces keeps what it computes again (docs/planning.md), so `auto` only
    says that batches are too large. Collective: all processes decide alike.

    Args:
        config, checked: the configuration.
        tasks: of the model.
        sources: training structures.
        processes: those of the run.
        padded: whether message passing keeps padded tables.
    """
    if checked.recompute != "auto" or checked.backbone.recompute:
        on = checked.backbone.recompute
        return Plan(on, f"activations are {'recomputed' if on else 'kept'}, as configured")
    counts = _largest_batch(config, tasks, sources, processes)
    forces: ForceKind = "gradient" if any(task.gradient_forces for task in tasks) else "direct"
    itemsize = 2 if checked.deepspeed.autocast else 4
    needed = step_memory(
        checked.backbone, counts, _heads(tasks, counts), forces, itemsize=itemsize, padded=padded
    ).total
    free = available(processes.device)
    if free is not None and processes.device.type == "cpu":
        free //= processes.place.local_world
    fits = processes.all_agree(free is None or needed <= USABLE * free)
    there = "unknown memory" if free is None else f"{free / 2**30:.1f} GiB"
    recompute = not fits and forces == "direct"
    words = (
        f"activations are {'recomputed' if recompute else 'kept'}: keeping them takes about {needed / 2**30:.1f} GiB"
    )
    advice = "" if fits or recompute else "; this may not fit: make batches smaller, recomputing saves little here"
    return Plan(recompute, f"{words} of {there} for {counts.main} edges{advice}")


def _largest_batch(
    config: TrainingConfig, tasks: Sequence[Task], sources: Sequence[Source], processes: Processes
) -> BatchCounts:
    """Counts of a batch as large as the configuration allows, in the proportions of a drawn one."""
    sample = next(iter(fit_loader(config, tasks, sources))).batches[0]
    return scaled(BatchCounts.of(sample.to("cpu")), _most_edges(config, sources, processes))


def _most_edges(config: TrainingConfig, sources: Sequence[Source], processes: Processes) -> int:
    """Main edges of one process's micro-batch, at most; the largest structure of the stores counts as selected."""
    known = [source.edges_in_store for source in sources]
    largest, all_of_them = max(n for n, _ in known), sum(n for _, n in known)
    batch = config.sampling.batch
    if batch.edges is not None:
        most = max(batch.edges, largest)
    else:
        parts = processes.world * config.sampling.accumulation
        most = -(-(batch.structures or 1) // parts) * largest
    return min(most, all_of_them)


def _heads(tasks: Sequence[Task], counts: BatchCounts) -> list[HeadRows]:
    """The heads of all tasks, as if every row were the first one's: structures have one task each."""
    heads = []
    for number, task in enumerate(tasks):
        heads.append(HeadRows(f"{task.name}.energy", "atoms", 0 if number else counts.atoms))
        if task.edge_features:
            heads.append(HeadRows(f"{task.name}.forces", "edges", 0 if number else counts.main))
    return heads
