"""Batches for the device builder: what is hard about graphs, one structure each, and how they are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.spacegroup import crystal
from torch import Tensor

from jmp_ds.graphs.assemble import Structure
from jmp_ds.graphs.device_graph import Built, device_graph
from jmp_ds.graphs.device_search import sent
from jmp_ds.graphs.graph import Graph, collate_graph
from jmp_ds.graphs.neighbors import EdgeDropout, build_edges
from jmp_ds.graphs.settings import GraphSettings


@dataclass(frozen=True)
class Case:
    """One structure with its settings."""

    pos: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    tags: np.ndarray
    settings: GraphSettings


def case(atoms: Atoms, settings: GraphSettings, tags: Sequence[int] | None = None) -> Case:
    """A case from ASE's atoms; tag 2 unless told."""
    given = np.full(len(atoms), 2) if tags is None else np.asarray(tags)
    return Case(atoms.positions.copy(), atoms.cell.array.copy(), atoms.pbc.copy(), given, settings)


def slab(seed: int, size: tuple[int, int, int] = (3, 3, 4), rattle: float = 0.05) -> Atoms:
    """Cu(111) with CO on top, periodic along all axes, rattled unless told otherwise."""
    atoms = fcc111("Cu", size, vacuum=10.0)
    add_adsorbate(atoms, molecule("CO"), 1.8, "ontop")
    atoms.pbc = True
    if rattle:
        atoms.rattle(rattle, seed=seed)
    return atoms


def rutile() -> Atoms:
    """TiO2."""
    return crystal(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90]
    )


def random_case(rng: np.random.Generator, settings: GraphSettings, most: int = 7) -> Case:
    """A skewed, tiny or partly periodic cell with atoms also outside of it."""
    natoms = int(rng.integers(1, most))
    cell = np.diag(rng.uniform(1.5, 6.0, 3)) + rng.normal(size=(3, 3)) * rng.choice([0.0, 0.5])
    pos = rng.uniform(-1.5, 2.5, size=(natoms, 3)) @ cell
    pbc = rng.random(3) < 0.6
    if rng.random() < 0.5:
        cell[~pbc] = 0.0
    return Case(pos, cell, pbc, rng.integers(0, 3, natoms), settings)


def structure(one: Case) -> Structure:
    """The case without its settings; all atoms are hydrogen."""
    return Structure(one.pos, np.ones(len(one.pos), dtype=np.int64), one.cell, one.pbc, one.tags)


def on_host(cases: Sequence[Case], dropout: Sequence[EdgeDropout | None] | None = None) -> Graph:
    """What the builder on the host makes of a batch."""
    dropout = dropout or [None] * len(cases)
    edges = [
        build_edges(c.pos, c.cell, c.pbc, c.tags, c.settings, dropout=d) for c, d in zip(cases, dropout, strict=True)
    ]
    return collate_graph(edges, [len(c.pos) for c in cases], [c.cell for c in cases], [c.settings for c in cases])


def on_tensors(
    cases: Sequence[Case], dropout: Sequence[EdgeDropout | None] | None = None, device: str = "cpu", **options: Any
) -> Built:
    """What the device builder makes of it."""
    return device_graph(
        sent(np.concatenate([np.empty((0, 3)), *(c.pos for c in cases)]), torch.device(device)),
        [len(c.pos) for c in cases],
        np.array([c.cell for c in cases]).reshape(-1, 3, 3),
        np.array([c.pbc for c in cases], dtype=bool).reshape(-1, 3),
        sent(np.concatenate([np.empty(0, dtype=np.int64), *(c.tags for c in cases)]), torch.device(device)),
        [c.settings for c in cases],
        dropout,
        **options,
    )


def differences(expected: Any, found: Any, name: str = "graph") -> list[str]:
    """Every field of two nests of dataclasses that is not the same to the last bit (shifts: to rounding)."""
    if isinstance(expected, Tensor):
        if expected.dtype != found.dtype or expected.shape != found.shape:
            return [f"{name}: {expected.dtype} {tuple(expected.shape)} against {found.dtype} {tuple(found.shape)}"]
        same = torch.equal(expected, found)
        if name.endswith("shift"):  # the host's matrix product may fuse what is rounded here
            same = torch.allclose(expected, found, rtol=1e-14, atol=1e-13)
        return [] if same else [f"{name}: {int((expected != found).sum())} of {expected.numel()} differ"]
    if isinstance(expected, dict):
        keys = [] if expected.keys() == found.keys() else [f"{name}: {sorted(expected)} against {sorted(found)}"]
        return keys + [line for k in expected for line in differences(expected[k], found[k], f"{name}.{k}")]
    if is_dataclass(expected):
        return [
            line
            for f in fields(expected)
            for line in differences(getattr(expected, f.name), getattr(found, f.name), f"{name}.{f.name}")
        ]
    return [] if expected == found else [f"{name}: {expected!r} against {found!r}"]


__all__ = ["Case", "bulk", "case", "differences", "on_host", "on_tensors", "random_case", "rutile", "slab"]
