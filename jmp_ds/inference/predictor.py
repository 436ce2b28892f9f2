"""Energies, forces and scalars of any structures that ASE can hold or read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from jmp_kernels import BackendName
from numpy.typing import NDArray

from jmp_ds.bundle import Bundle, load_bundle
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.graphs.batch import Batch
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.elements import known_elements
from jmp_ds.inference.potential import Potential, Values
from jmp_ds.inference.refusals import refuse_far, refuse_unseen
from jmp_ds.planning import Graphs, graphs_on
from jmp_ds.tasks.normalise import readable

if TYPE_CHECKING:
    from ase import Atoms

Tags = Literal["none", "ocp"]
Refusal = Literal["far", "unseen"]

#: Main edges in one batch, at most; a larger structure goes alone.
EDGE_BUDGET = 8_000


@dataclass(frozen=True)
class Prediction:
    """What a task says about one structure; absent what it does not predict.

    Attributes:
        energy: eV.
        forces: float64 [n, 3], eV/Å.
        scalars: by label, in the label's unit; classes and components of dipoles as `readable` names them.
        energies: float64 [n], eV, every atom's share of the energy.
        stress: float64 [6], eV/Å³ in ASE's sign and order; of periodic structures, and only where forces are the gradient
            of the energy.
    """

    energy: float | None = None
    forces: NDArray[np.float64] | None = None
    scalars: dict[str, float] = field(default_factory=dict)
    energies: NDArray[np.float64] | None = None
    stress: NDArray[np.float64] | None = None


class _Parcel(NamedTuple):
    """Structures that share a batch, and the number of the first."""

    first: int
    atoms: list[Atoms]


class Predictor:
    """A bundle made ready for use on structures of one task.

    Attributes:
        bundle: as loaded.
        task: whose heads, graphs and units are used.
        device, dtype: where and in which precision the model computes.
        potential: what computes its values.
        model: the network in it, in evaluation mode, with this task alone.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        task: str | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
        tags: Tags = "none",
        edge_budget: int = EDGE_BUDGET,
        kernels: BackendName = "auto",
        graphs: Graphs = "auto",
        refuse: frozenset[Refusal] = frozenset(),
    ) -> None:
        """Load and build.

        Args:
            bundle: or the folder that holds it.
            task: name of one of the bundle's tasks; may be left out where there is only one.
            device: where to compute.
            dtype: `float32` or `float64`.
            tags: `ocp` if the structures' tags mean 0 below the surface, 1 surface, 2 adsorbate; otherwise ASE's tags are
                layer numbers or nothing, and every atom counts as 2.
            edge_budget: main edges in one batch.
            kernels: the backend of message passing; `auto` is Triton on a GPU it is installed for, PyTorch elsewhere.
            graphs: where graphs are built: `host`, `device`, or `auto`, the device on a GPU and the host elsewhere.
            refuse: what is an error besides: `far`, an atom without a neighbour; `unseen`, an element that the task was
                not trained on. Whatever moves atoms by the forces should refuse both.

        Raises:
            UserError: a bundle, task, device, precision, backend or place that there is not.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.device = device_of(device)
        self.dtype = dtype_of(dtype)
        self.potential = Potential(self.bundle, task, self.dtype, self.device, kernels)
        self.task, self.model = self.potential.task, self.potential.model
        self._tags = tags
        self._budget = edge_budget
        self._far = "far" in refuse
        self._elements = known_elements(self.bundle, self.task) if "unseen" in refuse else None
        self._build_on = self.device if graphs_on(graphs, self.device) == "device" else None

    def predict(self, atoms: Iterable[Atoms]) -> list[Prediction]:
        """Predictions in the order of the structures.

        Raises:
            UserError: a structure that the model cannot take, by its number.
        """
        return [prediction for _, prediction in self.iterate(atoms)]

    def iterate(self, atoms: Iterable[Atoms], first: int = 0) -> Iterator[tuple[Atoms, Prediction]]:
        """The same one by one, without holding all structures at once; messages count from `first`."""
        for parcel in self._parcels(atoms, first):
            measured = [has_volume(each) for each in parcel.atoms]
            values = self.potential(self._batch(parcel), stress=any(measured))
            yield from zip(parcel.atoms, self._split(parcel, values, measured), strict=True)

    def features(self, atoms: Iterable[Atoms], reduction: Literal["sum", "mean"] = "mean") -> NDArray[np.float64]:
        """Embeddings of the structures: the backbone's atom features, reduced; float64 [number, emb_size_atom]."""
        parts = [np.empty((0, self.bundle.config.emb_size_atom))]
        for _, own in self.iterate_features(atoms):
            total = own.sum(axis=0, keepdims=True)
            parts.append(total / max(len(own), 1) if reduction == "mean" else total)
        return np.concatenate(parts)

    def iterate_features(self, atoms: Iterable[Atoms], first: int = 0) -> Iterator[tuple[Atoms, NDArray[np.float64]]]:
        """Embeddings of the atoms, structure by structure: the backbone's atom features, float64 [n, emb_size_atom].

        Raises:
            UserError: a structure that the model cannot take, or whose features are not finite.
        """
        for parcel in self._parcels(atoms, first):
            batch = self._batch(parcel)
            with torch.no_grad():
                found = self.model.backbone(batch.pos, batch.atomic_numbers, batch.graph).atoms.double().cpu().numpy()
            ends = np.cumsum([len(each) for each in parcel.atoms])[:-1]
            for k, (each, own) in enumerate(zip(parcel.atoms, np.split(found, ends), strict=True)):
                check_finite([own], each, f"structure {parcel.first + k}")
                yield each, own

    def _parcels(self, atoms: Iterable[Atoms], first: int = 0) -> Iterator[_Parcel]:
        """Consecutive structures whose edges fit the budget."""
        cost = 0
        held: list[Atoms] = []
        for each in atoms:
            own = edge_bound(each, self.task.graph)
            if held and cost + own > self._budget:
                yield _Parcel(first, held)
                first, held, cost = first + len(held), [], 0
            held.append(each)
            cost += own
        if held:
            yield _Parcel(first, held)

    def _batch(self, parcel: _Parcel) -> Batch:
        """The graph and all, on the device."""
        structures = [
            structure_of(atoms, tags=self._tags, num_elements=self.bundle.config.num_elements, where=f"structure {k}")
            for k, atoms in enumerate(parcel.atoms, parcel.first)
        ]
        tasks = [(self.task.name, self.task.graph)]
        for k, structure in enumerate(structures, parcel.first):
            refuse_unseen(structure.atomic_numbers, self._elements, self.task, f"structure {k}: ")
        batch = assemble(structures, [0] * len(structures), tasks, build_on=self._build_on).to(self.device)
        if self._far:
            degree = torch.diff(batch.graph.main.by_target.first).cpu().numpy()
            for k, own in enumerate(np.split(degree, np.cumsum([s.natoms for s in structures])[:-1])):
                where = f"structure {parcel.first + k}: "
                refuse_far(own, structures[k].atomic_numbers, self.task.graph.cutoff, where)
        return batch

    def _split(self, parcel: _Parcel, values: Values, measured: Sequence[bool]) -> Iterator[Prediction]:
        """Per structure, with a check that the numbers are numbers."""
        structures = readable(self.task, {label: x.cpu().numpy() for label, x in values.structures.items()})
        of_atoms = {"energies": values.energies, "forces": values.forces}
        atoms = {name: x.cpu().numpy() for name, x in of_atoms.items() if x is not None}
        stress = None if values.stress is None else values.stress.cpu().numpy()
        end = 0
        for k, each in enumerate(parcel.atoms):
            first, end = end, end + len(each)
            scalars = {label: float(x[k]) for label, x in structures.items()}
            arrays = {name: x[first:end] for name, x in atoms.items()}
            if stress is not None and measured[k]:
                arrays["stress"] = stress[k]
            check_finite([*scalars.values(), *arrays.values()], each, f"structure {parcel.first + k}")
            energy = scalars.pop("energy", None)
            yield Prediction(energy=energy, scalars=scalars, **arrays)


def check_finite(values: Iterable[NDArray[np.float64] | float], atoms: Atoms, where: str) -> None:
    """Refuse what is not a number.

    Raises:
        UserError: names the structure.
    """
    if not all(np.isfinite(x).all() for x in values):
        raise UserError(
            f"{where} ({atoms.get_chemical_formula()}): the prediction is not finite; are atoms on top of each other?"
        )


def has_volume(atoms: Atoms) -> bool:
    """Whether a stress can be told of it: it is periodic, and its three cell vectors span a volume."""
    return bool(atoms.pbc.any()) and int(atoms.cell.rank) == 3


def structure_of(atoms: Atoms, *, tags: Tags = "none", num_elements: int = 120, where: str = "structure") -> Structure:
    """ASE's atoms as the structure of a graph.

    Raises:
        UserError: unknown elements, numbers that are not finite, or tags that are not OCP's.
    """
    numbers = np.asarray(atoms.get_atomic_numbers(), dtype=np.int64)
    # copies: ASE changes cells in place
    pos, cell = np.array(atoms.positions), np.array(atoms.cell)
    pbc = np.array(atoms.pbc, dtype=bool)
    if bool(((numbers < 1) | (numbers > num_elements)).any()):
        wrong = sorted({int(z) for z in numbers if not 1 <= z <= num_elements})
        raise UserError(f"{where}: atomic numbers {wrong} are outside 1 … {num_elements}")
    if not (np.isfinite(pos).all() and np.isfinite(cell).all()):
        raise UserError(f"{where}: positions or cell are not finite")
    if bool((pbc & ~cell.any(axis=1)).any()):
        raise UserError(f"{where}: periodic along a cell vector that is zero")
    own_tags = None
    if tags == "ocp":
        own_tags = np.asarray(atoms.get_tags(), dtype=np.int64)
        if bool(((own_tags < 0) | (own_tags > 2)).any()):
            raise UserError(f"{where}: tags are not 0, 1, 2 as in OCP; do without the option that says so")
    return Structure(pos=pos, atomic_numbers=numbers, cell=cell, pbc=pbc, tags=own_tags)


def edge_bound(atoms: Atoms, graph: GraphSettings) -> int:
    """Main edges that a structure may have, roughly; made without looking for neighbours."""
    n = len(atoms)
    most = graph.max_neighbors_of(n)
    return n * (most if atoms.pbc.any() else min(n - 1, most)) if n else 0


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """A precision by its name.

    Raises:
        UserError: there is no such precision.
    """
    known = {"float32": torch.float32, "float64": torch.float64}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise UserError(f"no precision {name!r}; choose float32 or float64")
    return known[name]


def device_of(device: torch.device | str) -> torch.device:
    """A device by its name.

    Raises:
        UserError: it cannot be used here.
    """
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device}: cannot be used here ({str(error).splitlines()[0]})") from error
    return chosen
