"""The card of a model: what it was trained on, what it computes in which units, how wrong it is, and by which versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from jmp_ds import __version__
from jmp_ds.bundle import SPEC_FILE, Bundle, load_bundle, save_bundle
from jmp_ds.errors import UserError
from jmp_ds.files import write_json, write_text
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.elements import known_elements
from jmp_ds.tasks.metrics import metric_units, note_on_direction
from jmp_ds.tasks.specs import Task

CARD_JSON, CARD_TEXT = "card.json", "README.md"
#: Facts of a store's metadata that belong on the card, in this order.
_FACTS = ("level_of_theory", "energy", "source", "licence", "license", "citation")

#: What a bundle says of its weights.
_ORIGIN = ("imported_from", "from", "weights_licence", "training", "fitted_scales")


def export(path: str | Path, out: str | Path, errors: str | Path | None = None) -> dict[str, Any]:
    """Write a bundle with its card.

    Args:
        path: a bundle, or a run folder: the bundle that its report is about, with the errors told there; without a report
            its final bundle, else its best.
        out: folder to write: the bundle, `card.json`, and the same for people, `README.md`.
        errors: JSON of errors by name, as `evaluate --report` and reports of runs hold them (`metrics.json`).

    Returns:
        The card.

    Raises:
        UserError: there is no bundle, its scale factors are not fitted, or something cannot be read or written.
    """
    path, out = Path(path), Path(out)
    folder, report = _bundle_of(path)
    bundle = load_bundle(folder)
    found = Path(errors) if errors is not None else report
    card = card_of(bundle, _errors(found) if found is not None and found.is_file() else {})
    if errors is not None and not Path(errors).is_file():
        raise UserError(f"{errors}: no such file")
    save_bundle(replace(bundle, provenance={**bundle.provenance, "exported_by": f"jmp-ds {__version__}"}), out)
    write_json(out / CARD_JSON, card, finite=False)
    write_text(out / CARD_TEXT, markdown(card))
    return card


def read_card(path: Path) -> dict[str, Any] | None:
    """The card that stands beside a bundle, or None.

    Raises:
        UserError: it cannot be read.
    """
    file = path / CARD_JSON
    if not file.is_file():
        return None
    try:
        card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    return card


def card_of(bundle: Bundle, errors: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The card as plain JSON values.

    Args:
        bundle: the model.
        errors: by split, metrics by name (see `metric_units`).
    """
    story = bundle.provenance
    data = story.get("data") if isinstance(story.get("data"), dict) else {}
    units = metric_units(bundle.tasks)
    return {
        "model": {"numbers": sum(x.numel() for x in bundle.state.values()), **bundle.config.to_dict()},
        "tasks": {task.name: _task(bundle, task, (data or {}).get(task.name, {})) for task in bundle.tasks},
        "errors": {
            split: {name: {"value": value, "unit": units.get(name, "")} for name, value in own.items()}
            for split, own in errors.items()
        },
        "versions": {key: story[key] for key in ("jmp_ds", "torch", "date", "command", "weights") if key in story},
        "origin": {key: story[key] for key in _ORIGIN if key in story},
    }


def _task(bundle: Bundle, task: Task, facts: Mapping[str, Any]) -> dict[str, Any]:
    """One task: what it computes, on which graphs, from which data."""
    elements = known_elements(bundle, task)
    predicted = dict(task.units)
    if task.gradient_forces:
        predicted["stress"] = "eV/Å³, ASE's sign"
    references = {
        chemical_symbols[z]: x
        for z, x in enumerate(task.normalize_by("energy").references)
        if x and z < len(chemical_symbols)
    }
    return {
        "predicts": predicted,
        "forces": task.forces.kind if task.forces is not None else "none",
        "graph": task.graph.to_dict(),
        "conserves_energy": _conserves(task),
        "elements": None if elements is None else [chemical_symbols[z] for z in sorted(elements)],
        "references_eV": references,
        "normalization": {
            label: {"mean": task.normalize_by(label).mean, "std": task.scale(label)} for label in task.labels
        },
        "data": {key: facts[key] for key in _FACTS if facts.get(key)},
        "level_of_theory": task.level_of_theory,
    }


def _conserves(task: Task) -> str:
    """What may be expected of dynamics."""
    if not task.gradient_forces:
        return "no: forces are not the gradient of the energy"
    if task.graph.envelope == "jmp":
        return "between changes of neighbours: the published envelope does not vanish at the cutoff, nor at the cap"
    cap = str(task.graph.caps_of(0).qint)
    if steps := task.graph.fewer_neighbors:
        fewer = [f"{task.graph.caps_of(step.above + 1).qint} above {step.above} atoms" for step in steps]
        cap += f" ({', '.join(fewer)})"
    return f"up to the cap: where an atom has more than {cap} neighbours within the cutoff, the energy jumps as they change"


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    model = card["model"]
    lines = [
        "# Model card",
        "",
        f"{model['numbers']:,} numbers; {model['num_blocks']} blocks, width of atoms {model['emb_size_atom']}, "
        f"of edges {model['emb_size_edge']}. Energies in eV, lengths in Å.",
        "",
        "```python",
        "from jmp_ds.inference.calculator import JMPCalculator",
        f'atoms.calc = JMPCalculator("THIS FOLDER", task="{next(iter(card["tasks"]))}")',
        "```",
    ]
    for name, task in card["tasks"].items():
        lines += ["", f"## Task `{name}`", "", *_task_lines(task)]
    lines += ["", "## Errors", ""]
    if not card["errors"]:
        lines.append(
            "Not told: export with a run's folder, or with `--errors metrics.json` of `jmp-ds evaluate --report`."
        )
    for split, own in card["errors"].items():
        rows = [(name, f"{x['value']:.6g}", x["unit"]) for name, x in own.items()]
        lines += [f"On {split}. {note_on_direction(own)}".strip(), "", *_table(("metric", "value", "unit"), rows), ""]
    lines += ["", "## Versions and origin", ""]
    lines += [f"- {key}: {value}" for key, value in {**card["versions"], **card["origin"]}.items()]
    return "\n".join(lines) + "\n"


def _task_lines(task: Mapping[str, Any]) -> list[str]:
    graph, data = task["graph"], task["data"]
    elements = "not told" if task["elements"] is None else " ".join(task["elements"])
    told = GraphSettings.from_dict(graph).neighbors_told
    lines = [
        "- predicts: " + ", ".join(f"{label} ({unit})" if unit else label for label, unit in task["predicts"].items()),
        f"- forces: {task['forces']}; energy conserved in dynamics: {task['conserves_energy']}",
        f"- graph: cutoff {graph['cutoff']:g} Å, {told} neighbours; symmetrize {graph['symmetrize']}, "
        f"envelope {graph['envelope']}, dihedral {graph['dihedral']}",
        f"- elements: {elements}",
        f"- level of theory: {task['level_of_theory'] or data.get('level_of_theory') or 'not told'}",
        f"- licence of the data: {data.get('licence') or data.get('license') or 'not told'}",
    ]
    lines += [f"- {key}: {data[key]}" for key in ("source", "energy", "citation") if key in data]
    lines += [
        "",
        *_table(
            ("label", "mean", "std"),
            [(k, f"{n['mean']:.6g}", f"{n['std']:.6g}") for k, n in task["normalization"].items()],
        ),
    ]
    if task["references_eV"]:
        rows = [(symbol, f"{x:.6f}") for symbol, x in task["references_eV"].items()]
        lines += ["", *_table(("element", "reference, eV per atom"), rows)]
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def _bundle_of(path: Path) -> tuple[Path, Path | None]:
    """The bundle of a path, and the report that was made of just that bundle."""
    if (path / SPEC_FILE).is_file():
        return path, None
    report = path / "report" / "metrics.json"
    judged = _judged(report)
    for kind in dict.fromkeys((judged, "final", "best")):
        if kind is not None and (path / kind / SPEC_FILE).is_file():
            return path / kind, report if kind == judged else None
    raise UserError(f"{path}: neither a bundle nor a run folder with one")


def _judged(report: Path) -> str | None:
    """Which of a run's bundles its report is about; None without a report."""
    if not report.is_file():
        return None
    try:
        judged = json.loads(report.read_text(encoding="utf-8")).get("model")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{report}: is no report of a run ({error})") from error
    return judged if judged in ("final", "best") else None


def _errors(file: Path) -> dict[str, dict[str, float]]:
    """Errors by split: a run's report has them so, `evaluate --report` has one set.

    Raises:
        UserError: it is no such file.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values = values.get("metrics", values)
        if not all(isinstance(own, dict) for own in values.values()):
            values = {"evaluation": values}
        return {split: {name: float(x) for name, x in own.items()} for split, own in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: does not hold errors by name ({error})") from error
