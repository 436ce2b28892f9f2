"""Degrees of the shipped batches, for the microbenchmarks of the kernels: `python -m jmp_ds.bench.degrees` writes them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from jmp_kernels import Segments
from jmp_kernels.bench.lists import DEGREES, Degrees, write_degrees
from torch import Tensor

from jmp_ds.bench.batches import load_batch
from jmp_ds.graphs.graph import Graph

BATCHES = ("oc20x8", "ani64", "slab225x4", "mixed")


def degrees_of(graph: Graph, natoms: Tensor) -> Degrees:
    """Degrees of a graph; runs with a row left out begin where the run begins.

    Args:
        graph: of a batch.
        natoms: [B].
    """
    quads = graph.quadruplets
    return Degrees(
        natoms=natoms,
        main=graph.main.by_target.first.diff(),
        atom_edge=graph.a2ee2a.by_target.first.diff(),
        pairs=graph.pairs.by_target.first.diff(),
        in_start=_starts(quads.in_row, quads.by_middle),
        in_count=quads.by_middle.first.diff(),
        out_start=_starts(quads.out_middle, quads.by_reading),
        out_count=quads.by_reading.first.diff(),
        middles=graph.qint.by_target.first.diff(),
        readers=torch.bincount(graph.main.target[quads.reading], minlength=graph.num_atoms),
        feeding=quads.feeding.shape[0],
    )


def _starts(rows: Tensor, segments: Segments) -> Tensor:
    """First entry of every segment; 0 for none."""
    first = rows[segments.first[:-1].clamp(max=max(len(rows) - 1, 0))]
    return torch.where(segments.first.diff() > 0, first, 0)


def main(path: Path) -> None:
    """Write the degrees of every batch."""
    found = {}
    for name in BATCHES:
        batch = load_batch(name)
        natoms = torch.tensor([s.natoms for s in batch.structures])
        found[name] = degrees_of(batch.assemble("direct").graph, natoms)
    write_degrees(path, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEGREES)
