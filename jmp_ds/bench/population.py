"""Made-up structures of many sizes, slabs with molecules on them and free molecules, with their counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.build import molecule
from numpy.typing import NDArray

from jmp_ds.bench.batches import CUTOFFS, MOLECULES, SLABS, BenchBatch
from jmp_ds.bench.making import ADSORBATES, METALS, ORGANICS, free_molecule, slab
from jmp_ds.data.index import counts_of
from jmp_ds.graphs.assemble import Structure
from jmp_ds.graphs.settings import published

#: How often slabs are drawn, of all structures, where nothing else is said.
SLAB_SHARE = 0.7


@dataclass(frozen=True)
class Population:
    """Structures to draw from.

    Attributes:
        structures: slabs first.
        task_of: per structure, the number of its task in `CUTOFFS`.
        counts: int64 [n, 7], columns as in `jmp_ds.data.costs.COUNTS`.
        slabs: how many slabs there are.
    """

    structures: tuple[Structure, ...]
    task_of: tuple[int, ...]
    counts: NDArray[np.int64]
    slabs: int

    def draw(self, number: int, rng: np.random.Generator, slab_share: float = SLAB_SHARE) -> NDArray[np.int64]:
        """Numbers of structures drawn at random, slabs with that probability."""
        slabs = rng.integers(0, self.slabs, number)
        others = rng.integers(self.slabs, len(self.structures), number)
        return np.where(rng.random(number) < slab_share, slabs, others)

    def batch(self, chosen: NDArray[np.int64], name: str = "drawn") -> BenchBatch:
        """A batch of these structures, under the settings of published pre-training."""
        numbers = chosen.tolist()
        graphs = {task: published(cutoff) for task, cutoff in CUTOFFS.items()}
        return BenchBatch(
            name, tuple(self.structures[i] for i in numbers), tuple(self.task_of[i] for i in numbers), graphs
        )


def population(slabs: int = 160, molecules: int = 80, seed: int = 0) -> Population:
    """Slabs of 8 to some 200 atoms (60 to 80 in the mean) and molecules of 6 to 15 atoms."""
    rng = np.random.default_rng(seed)
    made: list[Structure] = []
    for k in range(slabs):
        width, depth = (int(n) for n in rng.integers(2, 6, 2))
        size = (width, depth, int(rng.integers(3, 7)))
        made.append(slab(METALS[k % len(METALS)], size, molecule(ADSORBATES[k % len(ADSORBATES)]), 2.0, rng))
    made += [free_molecule(molecule(ORGANICS[k % len(ORGANICS)]), rng) for k in range(molecules)]
    task_of = [SLABS] * slabs + [MOLECULES] * molecules
    settings = [published(cutoff) for cutoff in CUTOFFS.values()]
    counts = [[s.natoms, *counts_of(s, settings[t])] for s, t in zip(made, task_of, strict=True)]
    return Population(tuple(made), tuple(task_of), np.array(counts, dtype=np.int64), slabs)
