"""Fine-tuning: a pre-trained network, or the same from random weights, on tasks of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jmp_ds.config.checks import Checked, head_donor
from jmp_ds.config.finetune import FinetuneConfig, LayerwiseLrConfig
from jmp_ds.config.loading import Resolved
from jmp_ds.experiment.processes import started
from jmp_ds.experiment.reporting import report_run
from jmp_ds.experiment.resume import settle_configuration
from jmp_ds.experiment.session import fit_missing_scales, gather_material, new_model, train
from jmp_ds.experiment.transfer import Transfer, transfer_weights
from jmp_ds.models.scaling import unfitted
from jmp_ds.tasks.specs import Task
from jmp_ds.training.optimizer import LayerwiseRates
from jmp_ds.training.outcome import Outcome
from jmp_ds.training.processes import Processes


def run_finetune(runs: Sequence[tuple[Resolved[FinetuneConfig], Checked]]) -> list[Outcome]:
    """Train one configuration after the other; each leaves `best/`, `final/` and `report/` in its run folder.

    Several runs in one start save the start-up of processes, which for small sets is most of the time. A stop request
    ends the whole series.

    Args:
        runs: configurations with what `check_finetune` made of them; device and threads are those of the first.

    Raises:
        UserError: what can only be seen with the data at hand, or training diverged.
    """
    outcomes = []
    with started(runs[0][0].config.run) as processes:
        for resolved, checked in runs:
            outcomes.append(_run(resolved, checked, processes))
            if outcomes[-1].status == "stopped":
                break
    return outcomes


def _run(resolved: Resolved[FinetuneConfig], checked: Checked, processes: Processes) -> Outcome:
    config = resolved.config
    donors = _donors(resolved, checked)
    if processes.first:
        settle_configuration(resolved)
    material = gather_material(resolved, checked, donors, processes)
    model = new_model(config, checked, material, processes)
    if checked.bundle is not None:
        names = {name: donor.name for name, donor in donors.items()}
        transfer = transfer_weights(model, checked.bundle.state, names)
        if processes.first:
            show_transfer(transfer, str(config.source.bundle))
    if unfitted(model) and not (Path(config.run.dir) / "latest").exists():
        fit_missing_scales(config, material, model, processes)
    origin = {"from": config.source.bundle or "scratch"}
    outcome = train(resolved, checked, material, model, processes, rates=_rates(config.layerwise_lr), origin=origin)
    if outcome.status == "finished":
        report_run(config, material, outcome, processes, kernels=checked.kernels, prefer_best=True)
    return outcome


def _donors(resolved: Resolved[FinetuneConfig], checked: Checked) -> dict[str, Task]:
    """By task, the bundle's task whose heads and references it starts from."""
    if checked.bundle is None or resolved.config.source.heads == "new":
        return {}
    return {task.name: head_donor(resolved, task.name, checked.bundle) for task in checked.tasks}


def _rates(config: LayerwiseLrConfig | None) -> LayerwiseRates | None:
    if config is None:
        return None
    return LayerwiseRates(embedding=config.embedding, blocks=tuple(config.blocks), rest=config.rest)


def show_transfer(transfer: Transfer, source: str) -> None:
    """The table of step 0: what came from the bundle, what is new, what was left behind."""
    table = Table(title=f"tensors from {source}", title_justify="left")
    table.add_column("part")
    for column in ("loaded", "new", "dropped"):
        table.add_column(column, justify="right")
    rows = transfer.table()
    for part, *counts in rows:
        table.add_row(part, *(str(n) if n else "" for n in counts))
    table.add_row("all", *(str(len(names)) for names in (transfer.loaded, transfer.new, transfer.dropped)))
    Console(stderr=True).print(table)
