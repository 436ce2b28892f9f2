"""What `predict` and `evaluate` do with a bundle and files of structures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jmp_kernels import BackendName

from jmp_ds.cli.data_verbs import print_table
from jmp_ds.errors import UserError
from jmp_ds.files import write_json
from jmp_ds.inference.evaluate_file import evaluate_file, units_of
from jmp_ds.inference.features_file import features_file
from jmp_ds.inference.predict_file import predict_file
from jmp_ds.inference.predictor import Predictor, Tags
from jmp_ds.inference.sources import Source
from jmp_ds.planning import Graphs


def predict_structures(
    bundle: Path, source: Path, output: Path, task: str | None, *, features: bool, tags: Tags, **options: Any
) -> int:
    """Predictions, or embeddings, of every structure. Returns: how many there are."""
    if not features:
        return predict_file(bundle, source, output, task, tags=tags, **options)
    tags = "ocp" if Source(source).is_store else tags
    return features_file(Predictor(bundle, task, tags=tags, **options), source, output, tags=tags)


def evaluate_rows(
    path: Path,
    source: Path,
    name: str | None,
    split: Path | None,
    report: Path | None,
    rows: Path | None,
    device: str,
    dtype: str,
    edges: int,
    kernels: BackendName,
    graphs: Graphs,
) -> None:
    """Errors structure by structure, from a file or store; print the table, and write metrics where asked for."""
    if split is not None:
        raise UserError("--split chooses structures of a store; for a file, name them by INPUT@START:STOP")
    tags: Tags = "ocp" if Source(source).is_store else "none"
    predictor = Predictor(
        path, name, device=device, dtype=dtype, tags=tags, edge_budget=edges, kernels=kernels, graphs=graphs
    )
    with tempfile.TemporaryDirectory() as folder:
        metrics = evaluate_file(predictor, source, rows or Path(folder) / "rows.jsonl", tags=tags)
    units = units_of(predictor.task)
    print_table(
        f"{path} on {source}",
        ("metric", "value", "unit"),
        [(n, f"{value:.6g}", units.get(n, "")) for n, value in metrics.items()],
    )
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        write_json(report / "metrics.json", metrics, finite=False)
