"""A task as a value: which labels, on which graphs, by which heads, in which units, with which weights.

Everything here is plain data with a JSON form, because it travels inside bundles.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from jmp_ds.graphs.settings import GraphSettings

ForceKind = Literal["direct", "gradient"]
ForceLoss = Literal["structure", "atom"]
Reduction = Literal["sum", "mean", "max"]
ClassKind = Literal["binary", "multi"]

#: Units of the labels that have the same everywhere.
_UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}


@dataclass(frozen=True, kw_only=True)
class EnergyTarget:
    """A per-structure energy: sum over atoms of an MLP on atom features.

    Attributes:
        weight: factor of the absolute error of the normalised energy in the loss; 0 evaluates it without training it.
        bias: whether the hidden layers of the head have biases (published: in pre-training, not in fine-tuning on forces).
    """

    weight: float = 1.0
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class ForcesTarget:
    """Forces, from a head on edges (`direct`) or as minus the gradient of the energy (`gradient`).

    Attributes:
        weight: factor in the loss.
        kind: `gradient` uses the energy head, whose scale is then the scale of the forces.
        loss: `structure` averages over the atoms of a structure first, then over structures (JMP); `atom` over all atoms.
    """

    weight: float = 1.0
    kind: ForceKind = "direct"
    loss: ForceLoss = "structure"


@dataclass(frozen=True, kw_only=True)
class StressTarget:
    """Stress as the derivative of the energy by strain; only where forces are its gradient, too.

    Attributes:
        weight: factor in the loss of the mean absolute error of the six components, in eV/Å³ over the scale of the energy.
    """

    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ScalarTarget:
    """Any other per-structure number, by its label's name.

    Attributes:
        label: name of the label in the store.
        unit: unit of the label, for tables.
        weight: factor of the absolute error in the loss.
        reduction: how atoms are combined.
    """

    label: str
    unit: str = ""
    weight: float = 1.0
    reduction: Reduction = "sum"


@dataclass(frozen=True, kw_only=True)
class ExtentTarget:
    """Spatial extent: sum over atoms of a number of the atom × its squared distance (Å²) from the centre of mass.

    Meant for molecules: positions are taken as they are, without looking for the nearest image.

    Attributes:
        label: name of the label in the store.
        unit: unit of the label, for tables.
        weight: factor of the absolute error in the loss.
    """

    label: str
    unit: str = ""
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DipoleTarget:
    """Dipole moment: sum over atoms of a charge × the position from the centre of mass; of molecules, as `ExtentTarget`.

    Attributes:
        label: name of the label in the store: [3] per structure, or its length.
        unit: unit of the label, for tables.
        weight: factor in the loss: of the length of the error, or of the absolute error of the length.
        norm: the label is the length of the vector, and so is the prediction.
        atomic: add a vector of every atom, summed over its edges as direct forces are; needs the force branch.
    """

    label: str = "dipole"
    unit: str = "e·Å"
    weight: float = 1.0
    norm: bool = False
    atomic: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassTarget:
    """Which of several classes a structure belongs to; the label is the number of its class, counted from 0.

    Attributes:
        label: name of the label in the store.
        classes: how many there are.
        kind: `multi` has a logit per class, `binary` one logit, for class 1 of two.
        class_weights: factor of the structures of every class in the loss; empty: 1.
        dropout: probability that a feature of an atom is dropped before the head in training.
        reduction: how the logits of atoms are combined.
        weight: factor of the cross-entropy in the loss.
    """

    label: str
    classes: int = 2
    kind: ClassKind = "binary"
    class_weights: tuple[float, ...] = ()
    dropout: float = 0.0
    reduction: Reduction = "sum"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.classes < 2 or (self.kind == "binary" and self.classes != 2):
            raise ValueError(f"label {self.label}: {self.kind} classification of {self.classes} classes")
        if len(self.class_weights) not in (0, self.classes) or not all(w > 0.0 for w in self.class_weights):
            raise ValueError(
                f"label {self.label}: class_weights must be {self.classes} positive numbers or none, "
                f"got {list(self.class_weights)}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"label {self.label}: dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def logits(self) -> int:
        """Numbers that the head gives per atom."""
        return 1 if self.kind == "binary" else self.classes


Target = EnergyTarget | ForcesTarget | StressTarget | ScalarTarget | ExtentTarget | DipoleTarget | ClassTarget


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """What turns the model's numbers of one label into the label's unit: value = std · x + mean + sum of references.

    Attributes:
        mean: in the label's unit.
        std: in the label's unit; positive.
        references: by atomic number, index 0 unused; in the label's unit per atom; empty when there are none.
    """

    mean: float = 0.0
    std: float = 1.0
    references: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.std > 0.0:
            raise ValueError(f"normalisation: std must be positive, got {self.std}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to learn from one set of structures.

    Attributes:
        name: unique in a model.
        graph: how its structures become graphs.
        energy, forces, stress, scalars, spatial_extent, dipole, classification: its targets; at least one. A stress counts
            only beside gradient forces.
        normalization: by label name (`energy`, `forces`, a scalar's label); the identity where absent.
        level_of_theory: free text for people.
    """

    name: str
    graph: GraphSettings
    energy: EnergyTarget | None = None
    forces: ForcesTarget | None = None
    stress: StressTarget | None = None
    scalars: tuple[ScalarTarget, ...] = ()
    spatial_extent: ExtentTarget | None = None
    dipole: DipoleTarget | None = None
    classification: ClassTarget | None = None
    normalization: dict[str, Normalization] = field(default_factory=dict)
    level_of_theory: str = ""

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError(f"task {self.name}: no target; give it energy, forces or a scalar")
        if self.gradient_forces and self.energy is None:
            raise ValueError(
                f"task {self.name}: gradient forces are derivatives of the energy head; "
                "add `energy: {weight: 0}` to train on forces alone"
            )
        if self.gradient_forces and self.scale("energy") != self.scale("forces"):
            raise ValueError(
                f"task {self.name}: with gradient forces, energy and forces share one scale, "
                f"but their std are {self.scale('energy')} and {self.scale('forces')}"
            )

        if self.gradient_stress and self.normalize_by("stress") != Normalization(std=self.scale("energy")):
            raise ValueError(
                f"task {self.name}: stress is a derivative of the energy: its normalisation has no mean, and the energy's "
                f"std, {self.scale('energy')}"
            )

    @property
    def gradient_forces(self) -> bool:
        """Whether forces are the gradient of the energy."""
        return self.forces is not None and self.forces.kind == "gradient"

    @property
    def gradient_stress(self) -> bool:
        """Whether stress is learned; it needs an energy that is differentiated anyway."""
        return self.stress is not None and self.gradient_forces

    @property
    def direct_forces(self) -> bool:
        """Whether forces come from their own head."""
        return self.forces is not None and self.forces.kind == "direct"

    @property
    def edge_features(self) -> bool:
        """Whether a head reads features of edges, which only the force branch makes."""
        return self.direct_forces or (self.dipole is not None and self.dipole.atomic)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that this task predicts."""
        names = ["energy"] * (self.energy is not None) + ["forces"] * (self.forces is not None)
        names += ["stress"] * self.gradient_stress
        return (*names, *(t.label for t in self.of_structures))

    @property
    def of_structures(self) -> tuple[ScalarTarget | ExtentTarget | DipoleTarget | ClassTarget, ...]:
        """Targets that name their label; all of them belong to a structure as a whole."""
        single = (self.spatial_extent, self.dipole, self.classification)
        return (*self.scalars, *(target for target in single if target is not None))

    def target(self, label: str) -> Target:
        """The target of one of `labels`."""
        if label == "energy" and self.energy is not None:
            return self.energy
        if label == "forces" and self.forces is not None:
            return self.forces
        if label == "stress" and self.stress is not None:
            return self.stress
        return next(target for target in self.of_structures if target.label == label)

    def weighted(self, factor: float) -> Task:
        """The same task, the weight of every target times a factor."""
        single: dict[str, Any] = {
            f.name: replace(target, weight=factor * target.weight)
            for f in fields(self)
            if isinstance(target := getattr(self, f.name), Target)
        }
        return replace(self, scalars=tuple(replace(t, weight=factor * t.weight) for t in self.scalars), **single)

    def shape(self, label: str) -> tuple[int, ...]:
        """Shape of one row of a label's prediction: of an atom for forces, of a structure for all others."""
        target = self.target(label)
        if isinstance(target, ClassTarget) and target.kind == "multi":
            return (target.classes,)
        if isinstance(target, DipoleTarget) and not target.norm:
            return (3,)
        return {"forces": (3,), "stress": (6,)}.get(label, ())

    def other_heads(self, donor: Task) -> list[str]:
        """Labels of both tasks that the donor predicts by a head of another kind or size."""
        both = [t for t in self.of_structures if t.label in donor.labels]
        return [t.label for t in both if _head(t) != _head(donor.target(t.label))]

    @property
    def units(self) -> dict[str, str]:
        """Unit by label, for tables; empty where the label has none."""
        own = {t.label: "" if isinstance(t, ClassTarget) else t.unit for t in self.of_structures}
        return {label: _UNITS.get(label) or own[label] for label in self.labels}

    def normalize_by(self, label: str) -> Normalization:
        """The normalisation of one label; the identity if none is set."""
        return self.normalization.get(label, Normalization())

    def scale(self, label: str) -> float:
        """Standard deviation of one label's normalisation."""
        return self.normalize_by(label).std

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back. Kinds of targets that the task does not have are left out."""
        own = asdict(self)
        late = ("stress", "spatial_extent", "dipole", "classification")
        return {**{k: v for k, v in own.items() if k not in late or v is not None}, "graph": self.graph.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Task:
        """Inverse of `to_dict`."""
        return cls(
            name=values["name"],
            graph=GraphSettings.from_dict(values["graph"]),
            energy=EnergyTarget(**values["energy"]) if values.get("energy") else None,
            forces=ForcesTarget(**values["forces"]) if values.get("forces") else None,
            stress=StressTarget(**values["stress"]) if values.get("stress") else None,
            scalars=tuple(ScalarTarget(**s) for s in values.get("scalars", ())),
            spatial_extent=ExtentTarget(**values["spatial_extent"]) if values.get("spatial_extent") else None,
            dipole=DipoleTarget(**values["dipole"]) if values.get("dipole") else None,
            classification=_class_target(values.get("classification")),
            normalization={
                k: Normalization(**{**n, "references": tuple(n.get("references", ()))})
                for k, n in values.get("normalization", {}).items()
            },
            level_of_theory=values.get("level_of_theory", ""),
        )


def _head(target: Target) -> tuple[object, ...]:
    """What decides which tensors a head has."""
    size = target.logits if isinstance(target, ClassTarget) else isinstance(target, DipoleTarget) and target.atomic
    return type(target), size


def _class_target(values: dict[str, Any] | None) -> ClassTarget | None:
    """From JSON, which has lists for tuples."""
    return ClassTarget(**{**values, "class_weights": tuple(values.get("class_weights", ()))}) if values else None
