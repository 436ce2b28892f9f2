"""What `evaluate` and `fit-scales` do with a bundle and stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jmp_kernels import BackendName

from jmp_ds.bundle import Bundle, load_bundle, save_bundle
from jmp_ds.cli.data_verbs import print_table
from jmp_ds.data.loading import EvalLoader, Loading, TrainLoader
from jmp_ds.data.packing import EdgeBudget
from jmp_ds.data.references import fit_statistics
from jmp_ds.data.sources import Source, open_source
from jmp_ds.data.splits import read_indices
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.experiment.evaluate import evaluate
from jmp_ds.experiment.loaders import fit_scales, graphs_of
from jmp_ds.experiment.sets import check_labels
from jmp_ds.files import write_json
from jmp_ds.models.scaling import unfitted
from jmp_ds.planning import Graphs, backend, graphs_on
from jmp_ds.report import plot_parity
from jmp_ds.tasks.metrics import metric_units
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.training.place import Place
from jmp_ds.training.processes import Processes


def evaluate_bundle(
    path: Path,
    store: Path,
    name: str | None,
    split: Path | None,
    report: Path | None,
    device: str,
    dtype: str,
    edges: int,
    kernels: BackendName,
    graphs: Graphs,
) -> None:
    """Print the table, and write metrics and parity plots where asked for."""
    bundle = load_bundle(path)
    task = bundle.task(name)
    opened = Store(store)
    labels = [label for label in task.labels if opened.summary.labels.get(label)]
    if not labels:
        raise UserError(f"{store}: no structure has a label of task {task.name} ({', '.join(task.labels)})")
    model = bundle.build(getattr(torch, dtype), device, kernels)
    indices = None if split is None else read_indices(split)
    source = open_source(task.name, task.graph, opened, labels, indices=indices, progress=True)
    if (
        task.classification is not None or task.dipole is not None
    ):  # labels that fit the heads, before anything is computed
        check_labels(task, fit_statistics(opened, indices, referenced=()))
    processes = Processes(Place(), torch.device(device), torch.get_num_threads())
    loader = EvalLoader([source], graphs_of(bundle.tasks), EdgeBudget(edges), Loading(graphs=graphs_on(graphs, device)))
    found = evaluate(model, loader, processes, progress=True)
    rows = [(n, f"{found.metrics[n]:.6g}", unit) for n, unit in metric_units([task]).items() if n in found.metrics]
    print_table(f"{path} on {len(source)} structures of {store}", ("metric", "value", "unit"), rows)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        write_json(report / "metrics.json", found.metrics, finite=False)
        plot_parity(report / "parity.png", [panel for panel in found.parity if panel.reference.size])


def fit_bundle_scales(
    path: Path,
    stores: Sequence[str],
    output: Path,
    batches: int,
    edges: int,
    device: str,
    kernels: BackendName,
    graphs: Graphs,
) -> None:
    """Fit what has no value, and write the bundle."""
    bundle = load_bundle(path, require_fitted=False)
    model = MultiTaskModel(bundle.config, bundle.tasks, backend(kernels, device))
    model.load_state_dict(bundle.state)
    missing = len(unfitted(model))
    sources = [_source(bundle, text) for text in stores]
    loading = Loading(graphs=graphs_on(graphs, device))
    loader = TrainLoader(sources, graphs_of(bundle.tasks), EdgeBudget(edges), seed=0, epochs=1, loading=loading)
    values = fit_scales(model, loader, torch.device(device), num_batches=batches, progress=True)
    story = {**bundle.provenance, "fitted_scales": {"factors": len(values), "on": list(stores)}}
    save_bundle(replace(Bundle.of(model, story), config=bundle.config, elements=bundle.elements), output)
    print_table(
        f"{output}: {missing} factors fitted", ("factor", "value"), [(n, f"{v:.6g}") for n, v in values.items()]
    )


def _source(bundle: Bundle, text: str) -> Source:
    """One `TASK=STORE`."""
    name, equals, path = text.partition("=")
    if not equals:
        raise UserError(f"{text!r}: must look like TASK=STORE; tasks are {', '.join(t.name for t in bundle.tasks)}")
    task = bundle.task(name)
    return open_source(task.name, task.graph, Store(path), [], progress=True)
