"""Small bundles of random weights for tests of models in use."""

from __future__ import annotations

from dataclasses import replace

from small_models import tiny_model

from jmp_ds.bundle import Bundle
from jmp_ds.graphs.settings import GraphSettings, published
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, ScalarTarget, Task

#: No cap acts on small molecules and small cells.
SMOOTH = GraphSettings(cutoff=5.0, max_neighbors=200)
KNOWN = (1, 6, 7, 8, 29)
REFERENCES = (0.0, -13.6, *(0.0,) * 4, -1029.5, -1485.0, -2041.25, *(0.0,) * 20, -100.0)


def task(
    name: str = "gradient", graph: GraphSettings = SMOOTH, kind: str | None = "gradient", std: float = 1.0
) -> Task:
    """A task with an energy, and forces of a kind or none."""
    return Task(
        name=name,
        graph=graph,
        energy=EnergyTarget(),
        forces=None if kind is None else ForcesTarget(kind=kind),  # type: ignore[arg-type]
        scalars=(ScalarTarget(label="gap", unit="eV"),),
        normalization={
            "energy": Normalization(mean=-3.0, std=std, references=REFERENCES),
            "forces": Normalization(std=std),
        },
    )


def bundle_with(*tasks: Task, seed: int = 0) -> Bundle:
    """A tiny network of random weights."""
    model = tiny_model(*(tasks or (task(),)), seed=seed)
    elements = {own.name: KNOWN for own in tasks or (task(),) if own.normalization}
    return replace(Bundle.of(model, {"weights": "random"}), elements=elements)


def published_graph(max_neighbors: int = 30) -> GraphSettings:
    """Rules of published checkpoints."""
    return published(5.0, max_neighbors)
