"""Pre-training: one network on several tasks, from random weights."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from jmp_ds.config.checks import Checked
from jmp_ds.config.loading import Resolved
from jmp_ds.config.pretrain import PretrainConfig
from jmp_ds.experiment.processes import started
from jmp_ds.experiment.reporting import report_run
from jmp_ds.experiment.resume import settle_configuration
from jmp_ds.experiment.session import fit_missing_scales, gather_material, new_model, train
from jmp_ds.training.outcome import Outcome
from jmp_ds.training.processes import Processes


def run_pretrain(resolved: Resolved[PretrainConfig], checked: Checked) -> Outcome:
    """Train, export `final/`, report; in this process and those that a launcher started beside it.

    Args:
        resolved: the configuration.
        checked: what `check_pretrain` made of it.

    Raises:
        UserError: what can only be seen with the data at hand, or training diverged.
    """
    with started(resolved.config.run) as processes:
        return _run(resolved, checked, processes)


def _run(resolved: Resolved[PretrainConfig], checked: Checked, processes: Processes) -> Outcome:
    config = resolved.config
    if processes.first:
        settle_configuration(resolved)
    material = gather_material(resolved, checked, {}, processes)
    model = new_model(config, checked, material, processes)
    if not (Path(config.run.dir) / "latest").exists():
        fitted = fit_missing_scales(config, material, model, processes)
        if processes.first:
            Console(stderr=True).print(f"fitted {fitted} scale factors", highlight=False)
    outcome = train(resolved, checked, material, model, processes)
    if outcome.status == "finished":
        report_run(config, material, outcome, processes, kernels=checked.kernels, prefer_best=False)
    return outcome
