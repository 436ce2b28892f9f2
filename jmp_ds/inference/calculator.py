"""A bundle, or several, as a calculator of ASE.

It answers with numbers of this geometry or not at all: what a model does not know (elements, atoms without neighbours,
stress of direct forces, numbers that are not finite) is an error and never a zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from jmp_kernels import BackendName
from numpy.typing import NDArray

from jmp_ds.bundle import Bundle, load_bundle
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure, batch_of
from jmp_ds.graphs.batch import Batch, moved
from jmp_ds.graphs.graph import Graph
from jmp_ds.graphs.settings import GraphSettings
from jmp_ds.inference.elements import known_elements
from jmp_ds.inference.neighbors import Counts, MovingGraph
from jmp_ds.inference.potential import Potential
from jmp_ds.inference.predictor import Tags, check_finite, device_of, dtype_of, has_volume, structure_of
from jmp_ds.inference.refusals import refuse_far, refuse_unseen
from jmp_ds.tasks.normalise import readable
from jmp_ds.tasks.specs import Task

if TYPE_CHECKING:
    from ase import Atoms

Array = NDArray[np.float64]

#: Å by which pairs are looked for beyond the cutoff, unless told otherwise.
SKIN = 1.0


class JMPCalculator(Calculator):
    """Energy, forces and stress of a task of a bundle, or of a committee of bundles.

    Results, in eV and Å: `energy`, `free_energy` (the same number), `energies` per atom, `forces` unless the task has
    none, `stress` where forces are the gradient of the energy, `dipole` where the task has one in e·Å. Scalars of the task
    stand in `results` under their labels.
    A committee answers with the mean over its members; `results` then also holds what each says and their standard
    deviation: `energy_comm` [K] and `energy_std`, `forces_comm` [K, n, 3] and `forces_std` [n] (root of the mean squared
    length), `stress_comm` [K, 6] and `stress_std` [6], and the same two of every scalar.

    Attributes:
        task: that is computed.
        task_names: all tasks that every bundle has; `with_task` gives the calculator of another, on the same bundles.
    """

    name = "jmp"
    default_parameters: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
        task: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
        tags: Tags = "none",
        skin: float = SKIN,
        allow_far: bool = False,
        allow_unseen: bool = False,
        kernels: BackendName = "auto",
        **settings: Any,
    ) -> None:
        """Load and build.

        Args:
            bundle: or its folder; several make a committee.
            task: name of one of the bundle's tasks; may be left out where there is only one.
            device: where to compute; a GPU if there is one.
            dtype: `float32`, or `float64` for finite differences, phonons and tight relaxations.
            tags: see `Predictor`.
            skin: Å by which pairs of atoms are looked for beyond the cutoff, so that they need not be looked for at every
                step; 0 looks every time. It costs no accuracy.
            allow_far: compute also where an atom has no neighbour within the cutoff, whose force is zero then.
            allow_unseen: compute also elements that the model was not trained on.
            kernels: see `Predictor`.
            settings: of ASE's own class (`directory`, …).

        Raises:
            UserError: a bundle, task, device, precision or backend that there is not, or a task without an energy.
        """
        super().__init__(**settings)
        given = [bundle] if isinstance(bundle, (Bundle, str, Path)) else list(bundle)
        if not given:
            raise UserError("a committee needs at least one bundle")
        bundles = [each if isinstance(each, Bundle) else load_bundle(each) for each in given]
        self._options: dict[str, Any] = {
            **{"device": device, "dtype": dtype, "tags": tags, "skin": skin, "allow_far": allow_far},
            **{"allow_unseen": allow_unseen, "kernels": kernels, **settings},
        }
        self._device = device_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._bundles = bundles
        self._members = [Potential(each, task, dtype_of(dtype), self._device, kernels) for each in bundles]
        self._graphs = {m.task.graph: MovingGraph(m.task.graph, skin) for m in self._members}
        self._sent: dict[GraphSettings, tuple[Graph, Graph]] = {}
        self._elements = None if allow_unseen else _common(bundles, task)
        self._tags, self._allow_far = tags, allow_far
        self.task = self._members[0].task
        self.task_names = [t.name for t in bundles[0].tasks if all(t.name in _names(other) for other in bundles)]
        self.implemented_properties = self._can()

    def with_task(self, task: str) -> JMPCalculator:
        """A calculator of another task of the same bundles, with the same options."""
        return JMPCalculator(self._bundles, task, **self._options)

    @property
    def neighbor_counts(self) -> dict[GraphSettings, Counts]:
        """How often graphs were asked for, pairs searched and graphs made, by graph settings."""
        return {settings: moving.counts for settings, moving in self._graphs.items()}

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As ASE defines it; says why where a property cannot be had.

        Raises:
            PropertyNotImplementedError: the task has no such thing, or this structure has none.
        """
        if name in ("forces", "stress") and name not in self.implemented_properties:
            raise PropertyNotImplementedError(self._why_not(name))
        if name == "stress" and atoms is not None and not has_volume(atoms):
            raise PropertyNotImplementedError("stress: the structure is not periodic, or its cell has no volume")
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Everything that can be had of the structure, at once.

        Raises:
            UserError: what the model cannot answer for; no results are kept then.
        """
        self.results = {}
        super().calculate(atoms, properties, system_changes)
        if self.atoms is None:
            raise UserError("no structure: give the calculator atoms")
        limit = self._members[0].model.config.num_elements
        structure = structure_of(self.atoms, tags=self._tags, num_elements=limit)
        refuse_unseen(structure.atomic_numbers, self._elements, self.task, "")
        measured = "stress" in self.implemented_properties and has_volume(self.atoms)
        answers = [self._answer(member, structure, measured) for member in self._members]
        for number, answer in enumerate(answers):
            check_finite(answer.values(), self.atoms, "structure" if len(answers) == 1 else f"member {number}")
        self.results = _together(answers)

    def _answer(self, member: Potential, structure: Structure, stress: bool) -> dict[str, Any]:
        """Results of one member, as ASE names them."""
        values = member(self._batch(member.task, structure), stress=stress)
        single = {label: x.cpu().numpy() for label, x in values.structures.items()}
        found: dict[str, Any] = {label: float(x[0]) for label, x in readable(member.task, single).items()}
        if _has_dipole(member.task):
            found["dipole"] = single["dipole"][0]
        found["free_energy"] = found["energy"]
        arrays = {"energies": values.energies, "forces": values.forces, "stress": values.stress}
        found |= {name: x.cpu().numpy() for name, x in arrays.items() if x is not None}
        if stress:
            found["stress"] = found["stress"][0]
        return found

    def _batch(self, task: Task, structure: Structure) -> Batch:
        """The structure and its graph on the device; a graph that is used again is sent once."""
        graph = self._graph(task.graph, structure)
        batch = batch_of([structure], [0], [task.name], graph)
        if self._device.type == "cpu":
            return batch
        if self._sent.get(task.graph, (None,))[0] is not graph:
            self._sent[task.graph] = graph, moved(graph, self._device)
        rest = moved({f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "graph"}, self._device)
        return Batch(**rest, graph=self._sent[task.graph][1])

    def _graph(self, settings: GraphSettings, structure: Structure) -> Graph:
        """The graph of the structure, with a check that every atom is in it."""
        graph = self._graphs[settings].graph(structure)
        if not self._allow_far:
            degree = torch.diff(graph.main.by_target.first).numpy()
            refuse_far(degree, structure.atomic_numbers, settings.cutoff, "")
        return graph

    def _can(self) -> list[str]:
        """Properties that every member has."""
        tasks = [member.task for member in self._members]
        if without := next((task for task in tasks if task.energy is None), None):
            raise UserError(
                f"task {without.name} has no energy, which a calculator needs; use `predict` for its labels"
            )
        names = ["energy", "free_energy", "energies"]
        if all(task.forces is not None for task in tasks):
            names.append("forces")
        if all(member.conservative for member in self._members):
            names.append("stress")
        if all(_has_dipole(task) for task in tasks):
            names.append("dipole")
        return names

    def _why_not(self, name: str) -> str:
        if name == "stress":
            return (
                f"stress: the forces of task {self.task.name} are not the gradient of its energy, so there is no stress "
                "that belongs to them; fine-tune with `forces: {kind: gradient}`"
            )
        return f"forces: task {self.task.name} was trained without forces"


def _has_dipole(task: Task) -> bool:
    """Whether the task predicts what ASE calls the dipole: a vector in e·Å."""
    target = task.dipole
    return target is not None and not target.norm and (target.label, target.unit) == ("dipole", "e·Å")


def _names(bundle: Bundle) -> set[str]:
    return {task.name for task in bundle.tasks}


def _common(bundles: Sequence[Bundle], task: str | None) -> frozenset[int] | None:
    """Elements that all members know; None where no member says what it knows."""
    known = [own for each in bundles if (own := known_elements(each, each.task(task))) is not None]
    return frozenset.intersection(*known) if known else None


def _together(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One answer as it is; the mean of several, with what each says and their spread."""
    if len(answers) == 1:
        return dict(answers[0])
    results: dict[str, Any] = {}
    for name in answers[0]:
        if not all(name in answer for answer in answers):
            continue
        each = np.stack([np.asarray(answer[name], dtype=np.float64) for answer in answers])
        mean = each.mean(axis=0)
        results[name] = mean if mean.ndim else float(mean)
        if name not in ("free_energy", "energies"):
            results[f"{name}_comm"], results[f"{name}_std"] = each, _spread(name, each)
    return results


def _spread(name: str, each: Array) -> Array | float:
    """Standard deviation over members; of forces one number per atom."""
    squared = np.square(each - each.mean(axis=0)).mean(axis=0)
    found = np.sqrt(squared.sum(axis=-1) if name == "forces" else squared)
    return found if found.ndim else float(found)
