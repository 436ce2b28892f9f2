"""What a bundle or a run folder holds, as tables."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from jmp_ds.bundle import SPEC_FILE, Bundle, load_bundle
from jmp_ds.errors import UserError
from jmp_ds.inference.card import markdown, read_card
from jmp_ds.tasks.specs import Task
from jmp_ds.training.metrics_log import read_metrics
from jmp_ds.training.outcome import read_outcome


def show_path(path: Path, console: Console) -> None:
    """Tables about a bundle, or about a run folder and its final bundle.

    Raises:
        UserError: the path is neither.
    """
    if (path / SPEC_FILE).is_file():
        card = read_card(path)
        if card is not None:
            console.print(Markdown(markdown(card)))
            return
        show_bundle(load_bundle(path, require_fitted=False), str(path), console)
        return
    outcome = read_outcome(path) if path.is_dir() else None
    if outcome is None:
        raise UserError(f"{path}: neither a bundle nor a run folder (for a store: jmp-ds data show {path})")
    console.print(f"[bold]{path}[/bold]: {outcome.status} at step {outcome.step}, {outcome.consumed} structures")
    if outcome.reason:
        console.print(f"reason: {outcome.reason}", markup=False)
    last = next((row for row in reversed(read_metrics(path)) if row["kind"] == "validate"), None)
    if last is not None:
        table = Table(title=f"last validation (step {last['step']})")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in last.items():
            if isinstance(value, float):
                table.add_row(name, f"{value:.5g}")
        console.print(table)
    if (path / "final" / SPEC_FILE).is_file():
        show_bundle(load_bundle(path / "final", require_fitted=False), str(path / "final"), console)


def show_bundle(bundle: Bundle, name: str, console: Console) -> None:
    """Sizes, tasks and provenance."""
    numbers = sum(x.numel() for x in bundle.state.values())
    c = bundle.config
    console.print(
        f"[bold]{name}[/bold]: {numbers:,} numbers; {c.num_blocks} blocks, atoms {c.emb_size_atom}, edges {c.emb_size_edge}"
    )
    if bundle.unfitted:
        console.print(f"[red]{len(bundle.unfitted)} scale factors are not fitted[/red]: jmp-ds fit-scales")
    table = Table(title="tasks")
    for column in ("task", "labels", "graph", "std", "references", "level of theory"):
        table.add_column(column)
    for task in bundle.tasks:
        table.add_row(
            task.name, ", ".join(_labels(task)), _graph(task), _scales(task), _references(task), task.level_of_theory
        )
    console.print(table)
    for key, value in bundle.provenance.items():
        console.print(f"{key}: {value}", markup=False, highlight=False, soft_wrap=True)


def _labels(task: Task) -> list[str]:
    kinds = {"forces": f"forces ({task.forces.kind})"} if task.forces is not None else {}
    units = {t.label: f"{t.label} ({task.units[t.label]})" for t in task.of_structures if task.units[t.label]}
    return [kinds.get(label) or units.get(label, label) for label in task.labels]


def _graph(task: Task) -> str:
    g = task.graph
    return (
        f"{g.cutoff:g} Å, M={g.neighbors_told}; symmetrize {g.symmetrize}, envelope {g.envelope}, dihedral {g.dihedral}"
    )


def _scales(task: Task) -> str:
    return ", ".join(f"{label} {task.scale(label):.4g}" for label in task.labels)


def _references(task: Task) -> str:
    known = sum(1 for x in task.normalize_by("energy").references if x)
    return f"{known} elements" if known else "none"
