"""A measurement as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table; every row has as many cells as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def step_tables(found: Mapping[str, Any]) -> list[Table]:
    """What `measure` found: times, and what follows from them."""
    asked, where = found["request"], found["machine"]
    title = (
        f"{asked['model']}, {asked['batch']}, {asked['precision']}, {asked['forces']} forces, on {where['device']} "
        f"({where['threads']} threads, torch {where['torch']}), medians of {asked['repeats']}"
    )
    return [Table(title, ("time of one step", "s"), _times(found)), Table("cost", ("", "value", "unit"), _costs(found))]


def _times(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    names = {
        "graph": "graph building",
        "forward": "forward and loss",
        "backward": "backward",
        "optimiser": "optimiser",
        "whole": "whole step",
        "floor": "floor (dense products)",
    }
    return [(label, f"{found['seconds'][key]:.4g}") for key, label in names.items()]


def _costs(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        ("step / floor (forward and backward)", f"{found['step_over_floor']:.3f}", ""),
        ("whole step / floor", f"{found['whole_step_over_floor']:.3f}", ""),
        ("dense products of a step", f"{found['flops'] / 1e9:.1f}", "GFLOP"),
        ("model FLOP utilisation", f"{100 * found['model_flop_utilisation']:.1f}", "%"),
        ("large matrix product", f"{found['matmul_peak_flops_per_s'] / 1e9:.0f}", "GFLOP/s"),
        ("structures", f"{found['structures_per_s']:.4g}", "1/s"),
        ("atoms", f"{found['atoms_per_s']:.4g}", "1/s"),
    ]
