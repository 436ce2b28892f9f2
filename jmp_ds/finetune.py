"""Fine-tuning: a pre-trained network, or the same from random weights, on tasks of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jmp_ds.config.checks import Checked, head_donors
from jmp_ds.config.finetune import FinetuneConfig, LayerwiseLrConfig
from jmp_ds.config.loading import Resolved
from jmp_ds.experiment.adapting import adapt, rate_table, whole_weights
from jmp_ds.experiment.processes import started
from jmp_ds.experiment.reporting import report_run
from jmp_ds.experiment.resume import settle_configuration
from jmp_ds.experiment.session import fit_missing_scales, gather_material, new_model, train
from jmp_ds.experiment.starting import look_before
from jmp_ds.experiment.transfer import rescale_heads, transfer_weights
from jmp_ds.experiment.tuning_report import START, report_tuning, show_rates, show_start, show_transfer
from jmp_ds.files import write_json
from jmp_ds.models.scaling import unfitted
from jmp_ds.tasks.metrics import metric_units
from jmp_ds.training.optimizer import LayerwiseRates, parameter_groups
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
    config, run_dir = resolved.config, Path(resolved.config.run.dir)
    donors = head_donors(resolved, checked.bundle)
    if processes.first:
        settle_configuration(resolved)
    material = gather_material(resolved, checked, donors, processes)
    model = new_model(config, checked, material, processes)
    if checked.bundle is not None:
        names = {name: donor.name for name, donor in donors.items()}
        transfer = transfer_weights(model, checked.bundle.state, names)
        rescale_heads(model, donors)
        if processes.first:
            show_transfer(transfer, str(config.source.bundle))
    fresh = processes.from_first(not (run_dir / "latest").exists())
    if unfitted(model) and fresh:
        fit_missing_scales(config, material, model, processes)
    if fresh:
        start = look_before(config, model, material.val, checked.bundle, donors, processes)
        if processes.first:
            write_json(run_dir / START, start.to_dict(), finite=False)
            show_start(start, metric_units(material.tasks))
    adapt(config, model)
    rates = _rates(config.layerwise_lr, checked.backbone.num_blocks)
    if processes.first:
        groups = parameter_groups(model.named_parameters(), rates)
        show_rates(rate_table(model, groups, config.train.optimizer.lr))
    outcome = train(
        resolved,
        checked,
        material,
        model,
        processes,
        rates=rates,
        origin=_origin(config, checked),
        finish=lambda state: whole_weights(config, state),
    )
    if outcome.status == "finished":
        report_run(config, material, outcome, processes, kernels=checked.kernels, prefer_best=True)
        report_tuning(config, material, checked, processes)
    return outcome


def _origin(config: FinetuneConfig, checked: Checked) -> dict[str, str]:
    """Where the weights come from, and the licence of those that they were made of, if the bundle names one."""
    licence = checked.bundle.provenance.get("weights_licence") if checked.bundle is not None else None
    return {"from": config.source.bundle or "scratch", **({"weights_licence": str(licence)} if licence else {})}


def _rates(config: LayerwiseLrConfig | None, num_blocks: int) -> LayerwiseRates | None:
    """Factors for a network of that depth, which the checks have found to be there."""
    if config is None:
        return None
    return LayerwiseRates(embedding=config.embedding, blocks=tuple(config.factors(num_blocks) or ()), rest=config.rest)
