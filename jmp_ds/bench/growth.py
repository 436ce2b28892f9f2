"""How the cost of a step grows with neighbours and with atoms, on rattled copper crystals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch

from jmp_ds.bench.batches import CUTOFFS, SLABS, BenchBatch
from jmp_ds.bench.enumerated.lists import padded_bytes
from jmp_ds.bench.memory import refuse_beyond_memory
from jmp_ds.bench.parts import time_parts
from jmp_ds.bench.step import TrainingStep, enumerated, linear_time, model_of, sizes_of
from jmp_ds.graphs.assemble import Structure
from jmp_ds.graphs.settings import Caps, GraphSettings
from jmp_ds.heap import keep_freed_memory

Series = Literal["neighbors", "neighbors-proportional", "atoms"]
Form = Literal["linear", "enumerated"]

#: Caps of the main graph, with 96 atoms.
NEIGHBORS = (15, 30, 60, 120)
#: Conventional cells along the axes, four atoms each, with 30 neighbours.
CELLS = ((3, 2, 2), (4, 3, 2), (4, 4, 3), (5, 5, 4))
#: Steps of either kind before the first that counts: so many it takes until no memory is faulted in any more.
WARM_STEPS = 3
#: Lattice constant of copper and standard deviation of the noise, in Å.
_LATTICE, _RATTLE = 3.61, 0.1


@dataclass(frozen=True, kw_only=True)
class FixedCaps(GraphSettings):
    """Settings in which only the main graph's cap follows `max_neighbors`; the others are the published ones for 30."""

    def caps_of(self, natoms: int) -> Caps:
        """The four caps."""
        return GraphSettings().caps_of(natoms)._replace(main=self.max_neighbors_of(natoms))


@dataclass(frozen=True)
class GrowthPoint:
    """What one size costs.

    Attributes:
        series: what grows.
        size: neighbours or atoms.
        atoms, edges, in_triplets: of the batch; in-triplets are those of the quadruplets.
        interactions: seconds in the sums over edges, triplets and quadruplets and what stands between them in the
            interaction layers, forward and backward, without dense products. Of the enumerated form: everything without
            dense products, bases too, which are made per triplet and quadruplet there.
        network: seconds of forward, loss and backward as a whole.
    """

    series: str
    size: int
    atoms: int
    edges: int
    in_triplets: int
    interactions: float
    network: float


def grow(
    series: Series,
    model: str = "jmp-s",
    blocks: int = 1,
    device: str = "cpu",
    repeats: int = 3,
    form: Form = "linear",
) -> Iterator[GrowthPoint]:
    """Measure a series, one size after the other.

    Args:
        series: `neighbors` (a2ee2a, qint and a2a caps fixed), `neighbors-proportional` (all caps in the published
            proportions) or `atoms`.
        model: preset whose widths are used.
        blocks: interaction blocks.
        device: where.
        repeats: steps per size; medians count.
        form: the model as it is trained, or the published, padded form.

    Raises:
        UserError: a size that memory will not hold; the sizes before it have been given.
    """
    where = torch.device(device)
    if where.type == "cpu":
        keep_freed_memory()  # as training does
    for size, batch in _batches(series):
        config = replace(sizes_of(model, recompute=False, direct_forces=True), num_blocks=blocks)
        if form == "enumerated":
            refuse_beyond_memory(padded_bytes(batch.assemble("direct"), config), where)
        network = model_of(config, batch.tasks("direct"), precision="float32", device=where)
        prepare = enumerated(network) if form == "enumerated" else linear_time(network)
        step = TrainingStep(prepare, network, batch, "direct", "float32", where)
        yield _point(series, size, step, repeats, form)


def _point(series: Series, size: int, step: TrainingStep, repeats: int, form: Form) -> GrowthPoint:
    """Medians over some steps."""
    graph = step.build().batch.graph
    for _ in range(WARM_STEPS):
        step.timed()
        time_parts(step)
    counted = ("interactions",) if form == "linear" else ("interactions", "bases", "heads", "pointwise")
    parts = [time_parts(step) for _ in range(repeats)]
    return GrowthPoint(
        series=series,
        size=size,
        atoms=graph.num_atoms,
        edges=graph.num_edges,
        in_triplets=graph.quadruplets.in_edge.shape[0],
        interactions=statistics.median(sum(p[c] + p[f"backward {c}"] for c in counted) for p in parts),
        network=statistics.median(step.timed().network for _ in range(repeats)),
    )


def exponent(points: Sequence[GrowthPoint], cost: Literal["interactions", "network"]) -> float:
    """Slope of log(cost) over log(size) by least squares."""
    x = [math.log(point.size) for point in points]
    y = [math.log(getattr(point, cost)) for point in points]
    return float(np.polyfit(x, y, 1)[0])


def csv_rows(points: Sequence[GrowthPoint]) -> list[dict[str, object]]:
    """Rows for a table, seconds with five digits."""
    return [{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(p).items()} for p in points]


def crystal(cells: tuple[int, int, int], seed: int = 0) -> Structure:
    """Face-centred cubic copper, periodic, rattled; every atom may be in the middle of quadruplets."""
    corner = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), -1).reshape(-1, 1, 3)
    inside = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    pos = _LATTICE * (corner + inside).reshape(-1, 3)
    pos += _RATTLE * np.random.default_rng(seed).standard_normal(pos.shape)
    return Structure(
        pos=pos,
        atomic_numbers=np.full(len(pos), 29),
        cell=_LATTICE * np.diag(np.array(cells, dtype=np.float64)),
        pbc=np.ones(3, dtype=bool),
        id="x".join(map(str, cells)),
    )


def _batches(series: Series) -> Iterator[tuple[int, BenchBatch]]:
    """Sizes and their batches."""
    if series == "atoms":
        for cells in CELLS:
            yield 4 * math.prod(cells), _batch(crystal(cells), _settings(30, fixed=True))
        return
    for neighbors in NEIGHBORS:
        yield neighbors, _batch(crystal((4, 3, 2)), _settings(neighbors, fixed=series == "neighbors"))


def _batch(structure: Structure, settings: GraphSettings) -> BenchBatch:
    return BenchBatch(structure.id, (structure,), (SLABS,), dict.fromkeys(CUTOFFS, settings))


def _settings(neighbors: int, *, fixed: bool) -> GraphSettings:
    """Published rules at 12 Å."""
    kind = FixedCaps if fixed else GraphSettings
    return kind(cutoff=12.0, max_neighbors=neighbors, symmetrize="jmp", envelope="jmp", dihedral="jmp")
