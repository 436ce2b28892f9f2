"""What a step of dynamics costs, with and without a skin, and how well energies are conserved: numbers for docs/using.md.

python -m jmp_ds.inference.measure OUT.csv [BUNDLE TASK]
"""

from __future__ import annotations

import csv
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet

from jmp_ds.bundle import Bundle, load_bundle
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.calculator import JMPCalculator
from jmp_ds.models.presets import preset
from jmp_ds.models.scaling import scale_factors
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Task

if TYPE_CHECKING:
    from ase import Atoms

#: Name → structure, all of elements that most models know.
SYSTEMS: dict[str, Callable[[], Atoms]] = {
    "ethanol, 9 atoms": lambda: molecule("CH3CH2OH"),
    "copper, 32 atoms": lambda: bulk("Cu", cubic=True).repeat((2, 2, 2)),
    "copper, 108 atoms": lambda: bulk("Cu", cubic=True).repeat((3, 3, 3)),
}


def random_bundle(name: str = "tiny", cutoff: float = 5.0) -> Bundle:
    """A network of random weights with gradient forces: costs do not depend on weights."""
    torch.manual_seed(0)
    graph = GraphSettings(cutoff=cutoff, max_neighbors=30)
    task = Task(name="any", graph=graph, energy=EnergyTarget(), forces=ForcesTarget(kind="gradient"))
    model = MultiTaskModel(preset(name), (task,))
    for factor in scale_factors(model).values():
        factor.scale_factor.fill_(1.0)
    return Bundle.of(model, {"weights": "random"})


def step_times(
    bundle: Bundle, task: str | None, atoms: Atoms, skin: float, steps: int = 20, dtype: str = "float32"
) -> dict[str, Any]:
    """Milliseconds of one step of dynamics at 300 K (median), of its graph, and how often graphs were made."""
    calculator = JMPCalculator(bundle, task, skin=skin, dtype=dtype)
    atoms = atoms.copy()
    atoms.calc = calculator
    speeds = np.sqrt(units.kB * 300.0 / atoms.get_masses())[:, None]
    atoms.set_velocities(speeds * np.random.default_rng(0).normal(size=atoms.positions.shape))
    (moving,) = calculator._graphs.values()
    of_graphs, whole = [], []
    real = moving.graph

    def timed(structure: Any) -> Any:
        started = time.perf_counter()
        graph = real(structure)
        of_graphs.append(time.perf_counter() - started)
        return graph

    moving.graph = timed  # type: ignore[method-assign]
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.run(2)
    moving.counts.asked = moving.counts.searched = moving.counts.made = 0
    of_graphs.clear()
    for _ in range(steps):
        started = time.perf_counter()
        dynamics.run(1)
        whole.append(time.perf_counter() - started)
    return {
        "skin_A": skin,
        "step_ms": round(1000 * float(np.median(whole)), 2),
        "graph_ms": round(1000 * float(np.median(of_graphs)), 2),
        "searches": moving.counts.searched,
        "graphs_made": moving.counts.made,
        "steps": steps,
    }


def main(arguments: Sequence[str]) -> None:
    """Write the table."""
    out, *given = arguments
    torch.set_num_threads(1)
    if given:
        models = {given[0]: (load_bundle(given[0]), given[1] if len(given) > 1 else None)}
    else:
        models = {"tiny, random weights": (random_bundle(), None)}
    rows = [
        {"model": name, "system": system, "threads": 1, "machine": platform.machine()}
        | step_times(bundle, task, make(), skin)
        for name, (bundle, task) in models.items()
        for system, make in SYSTEMS.items()
        for skin in (0.0, 1.0)
    ]
    with Path(out).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
