"""A measurement as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table; every row has as many cells as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def headline(found: Mapping[str, Any]) -> str:
    """What was measured, where."""
    asked, where = found["request"], found["machine"]
    options = ", recomputing" if asked["recompute"] else ""
    return (
        f"{asked['model']} on {asked['batch']}, {asked['precision']}, {asked['forces']} forces{options}; "
        f"{where['device']}, {where['threads']} threads, torch {where['torch']}; medians of {asked['repeats']}"
    )


def step_tables(found: Mapping[str, Any]) -> list[Table]:
    """What `measure` found: times, what follows from them and, where they were measured, memory, counts and parts."""
    forms = {"model": found, **({"enumerated": found["enumerated"]} if "enumerated" in found else {})}
    tables = [_table("time of one step", "s", forms, _times), _table("cost", "", forms, _costs)]
    if "saved_bytes" in found:
        tables.append(_table("memory and operations", "", forms, _details))
        tables.append(_table("parts, in a step with the profiler on", "s", forms, _parts))
    if "speedup_over_enumerated" in found:
        row = ("faster than enumerated (forward and backward)", f"{found['speedup_over_enumerated']:.3f} ×")
        whole = ("faster than enumerated (whole step)", f"{found['whole_speedup_over_enumerated']:.3f} ×")
        tables.append(Table("comparison", ("", "ratio"), [row, whole]))
    return tables


def _table(
    title: str,
    unit: str,
    forms: Mapping[str, Mapping[str, Any]],
    rows: Callable[[Mapping[str, Any]], list[tuple[str, str]]],
) -> Table:
    """One column per form of the network."""
    columns = [dict(rows(found)) for found in forms.values()]
    lines = [(label, *(column[label] for column in columns)) for label in columns[0]]
    return Table(title, (unit and f"in {unit}", *forms), lines)


def _times(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "graph": "graph building",
        "forward": "forward and loss",
        "backward": "backward",
        "optimiser": "optimiser",
        "whole": "whole step",
        "floor": "floor (dense products)",
    }
    return [(label, f"{found['seconds'][key]:.4g}") for key, label in names.items()]


def _costs(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("step / floor (forward and backward)", f"{found['step_over_floor']:.3f}"),
        ("whole step / floor", f"{found['whole_step_over_floor']:.3f}"),
        ("dense products of a step (GFLOP)", f"{found['flops'] / 1e9:.1f}"),
        ("model FLOP utilisation (%)", f"{100 * found['model_flop_utilisation']:.1f}"),
        ("structures per second", f"{found['structures_per_s']:.4g}"),
        ("atoms per second", f"{found['atoms_per_s']:.4g}"),
    ]


def _details(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    peak, launches = found["peak_bytes"], found["launches"]
    rows = [
        ("peak (MiB)", "-" if peak is None else f"{peak / 2**20:.0f}"),
        ("saved activations (MiB)", f"{found['saved_bytes'] / 2**20:.1f}"),
        ("saved activations per edge (kiB)", f"{found['saved_bytes_per_edge'] / 2**10:.1f}"),
        ("operations (network)", str(found["operations"])),
        ("operations (optimiser)", str(found["optimiser_operations"])),
        ("host synchronisations (network)", str(found["host_synchronisations"])),
    ]
    if "deviation_from_float32" in found:
        deviation = found["deviation_from_float32"]
        rows.append(("gradients against float32, median (%)", f"{100 * deviation['gradient_median']:.2f}"))
    return rows if launches is None else [*rows, ("kernel launches", str(launches))]


def _parts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(part, f"{seconds:.4g}") for part, seconds in found["parts_seconds"].items()]
