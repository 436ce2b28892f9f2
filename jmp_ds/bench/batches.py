"""Named batches of structures, shipped as files, and any structures of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings, published
from jmp_ds.tasks.specs import EnergyTarget, ForceKind, ForcesTarget, Task

#: Folder of the shipped files; `python -m jmp_ds.bench.making` writes them.
SHIPPED = Path(__file__).parent / "structures"

#: The four tasks of published pre-training, by kind, with the cutoffs in Å of their graphs; 30 neighbours, published rules.
CUTOFFS = {"slabs": 12.0, "oxides": 12.0, "molecules": 8.0, "reactions": 8.0}
SLABS, MOLECULES = 0, 2

#: Batches by name, and what differs from the tasks' settings.
NAMED: dict[str, dict[str, float]] = {
    "slab98": {},
    "aspirin4": {},
    "aspirin": {"cutoff": 7.0, "max_neighbors": 100},
    "oc20x8": {},
    "ani64": {},
    "slab225x4": {},
    "mixed": {},
}


@dataclass(frozen=True)
class BenchBatch:
    """Structures of one batch, each of one task.

    Attributes:
        name: for tables.
        structures: in order.
        task_of: per structure, its task's number.
        graphs: settings by task name, in order; also of tasks without structures.
    """

    name: str
    structures: tuple[Structure, ...]
    task_of: tuple[int, ...]
    graphs: dict[str, GraphSettings]

    def tasks(self, forces: ForceKind) -> tuple[Task, ...]:
        """The tasks of the model, each with energies and forces.

        Direct forces: all of them, as in published pre-training, whether the batch has rows of them or not. Gradient
        forces: those of the batch, with heads without biases, as in published fine-tuning.
        """
        energy = EnergyTarget(bias=forces == "direct")
        target = ForcesTarget(kind=forces)
        return tuple(Task(name=n, graph=g, energy=energy, forces=target) for n, g in self._graphs(forces).items())

    def assemble(self, forces: ForceKind, device: torch.device | None = None, seed: int = 0) -> Batch:
        """The batch with its graph, and random labels: energies N(0, 1), force components N(0, 0.1).

        The graph is built on the device if that is a GPU, or if the neighbour library is not installed; on the host
        otherwise, as data workers do.
        """
        device = device or torch.device("cpu")
        build_on = device if device.type != "cpu" or find_spec("vesin") is None else None
        rng = np.random.default_rng(seed)
        labels: list[dict[str, NDArray[np.float64] | float]] = [
            {"energy": float(rng.standard_normal()), "forces": 0.1 * rng.standard_normal((s.natoms, 3))}
            for s in self.structures
        ]
        graphs = list(self._graphs(forces).items())
        places = {name: k for k, (name, _) in enumerate(graphs)}
        task_of = [places[list(self.graphs)[t]] for t in self.task_of]
        return assemble(self.structures, task_of, graphs, labels, build_on=build_on)

    def _graphs(self, forces: ForceKind) -> dict[str, GraphSettings]:
        """Settings of the model's tasks."""
        present = set(self.task_of)
        return {n: g for k, (n, g) in enumerate(self.graphs.items()) if forces == "direct" or k in present}

    def with_caps(self, cutoff: float | None = None, max_neighbors: float | None = None) -> BenchBatch:
        """The same structures on other graphs, for all tasks alike.

        Raises:
            UserError: a setting out of range.
        """
        changes: dict[str, Any] = {}
        if cutoff is not None:
            changes["cutoff"] = cutoff
        if max_neighbors is not None:
            changes["max_neighbors"] = int(max_neighbors)
        try:
            return replace(self, graphs={n: replace(g, **changes) for n, g in self.graphs.items()})
        except ValueError as error:
            raise UserError(str(error)) from None


def load_batch(name: str, cutoff: float | None = None, max_neighbors: int | None = None) -> BenchBatch:
    """A batch by name, or the structures of a file.

    Args:
        name: one of `NAMED`; or a path: `.npz` as written by `save_structures`, or anything ASE reads (all frames;
            published rules, 12 Å and 30 neighbours where nothing else is asked for).
        cutoff: in Å, instead of the batch's own.
        max_neighbors: instead of the batch's own.

    Raises:
        UserError: no such batch or file, or a file that cannot be read.
    """
    graphs = {task: published(length) for task, length in CUTOFFS.items()}
    if name not in NAMED:
        return _from_file(name, graphs).with_caps(cutoff, max_neighbors)
    structures, task_of = read_structures(SHIPPED / f"{name}.npz")
    own = {"cutoff": cutoff, "max_neighbors": max_neighbors}
    chosen = {**NAMED[name], **{key: value for key, value in own.items() if value is not None}}
    return BenchBatch(name, structures, task_of, graphs).with_caps(**chosen)


def save_structures(path: Path, structures: Sequence[Structure], task_of: Sequence[int]) -> None:
    """Write structures as one compressed file of plain arrays; positions and cells rounded to 1e-6 Å."""
    np.savez_compressed(
        path,
        natoms=np.array([s.natoms for s in structures]),
        task=np.array(task_of),
        pos=np.concatenate([s.pos for s in structures]).round(6),
        atomic_numbers=np.concatenate([s.atomic_numbers for s in structures]).astype(np.uint8),
        tags=np.concatenate([s.ocp_tags for s in structures]).astype(np.uint8),
        cell=np.stack([s.cell for s in structures]).round(6),
        pbc=np.stack([s.pbc for s in structures]),
    )


def read_structures(path: Path) -> tuple[tuple[Structure, ...], tuple[int, ...]]:
    """Inverse of `save_structures`: the structures, and each one's task number.

    Raises:
        UserError: a file that does not hold these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as z:
            held: dict[str, NDArray[Any]] = {key: z[key] for key in z.files}
        first = np.concatenate([[0], np.cumsum(held["natoms"])])
        structures = tuple(
            Structure(
                pos=held["pos"][a:b].astype(np.float64),
                atomic_numbers=held["atomic_numbers"][a:b].astype(np.int64),
                cell=held["cell"][k].astype(np.float64),
                pbc=held["pbc"][k].astype(bool),
                tags=held["tags"][a:b].astype(np.int64),
                id=f"{path.stem}/{k}",
            )
            for k, (a, b) in enumerate(pairwise(first))
        )
        return structures, tuple(int(t) for t in held["task"])
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path}: not a file of structures ({type(error).__name__}: {error})") from error


def _from_file(name: str, graphs: dict[str, GraphSettings]) -> BenchBatch:
    """Structures of the user's, all of the first task."""
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no batch or file {name!r}; batches are {', '.join(NAMED)}")
    if path.suffix == ".npz":
        structures, _ = read_structures(path)
    else:
        structures = _read_with_ase(path)
    if not structures:
        raise UserError(f"{path}: holds no structure")
    return BenchBatch(path.stem, structures, (SLABS,) * len(structures), graphs)


def _read_with_ase(path: Path) -> tuple[Structure, ...]:
    from ase.io import read

    try:
        frames = read(path, index=":")
    except Exception as error:
        # the readers of ASE raise whatever they stumble over
        raise UserError(f"{path}: ASE cannot read it ({type(error).__name__}: {error})") from error
    return tuple(
        Structure(
            pos=np.asarray(a.positions, dtype=np.float64),
            atomic_numbers=a.numbers.astype(np.int64),
            cell=np.asarray(a.cell.array),
            pbc=np.asarray(a.pbc),
            id=f"{path.name}/{k}",
        )
        for k, a in enumerate(frames)
    )
