"""A task as a value: which labels, on which graphs, by which heads, in which units, with which weights.

Everything here is plain data with a JSON form, because it travels inside bundles.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jmp_ds.graphs.settings import GraphSettings

ForceKind = Literal["direct", "gradient"]
ForceLoss = Literal["structure", "atom"]
Reduction = Literal["sum", "mean", "max"]


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
        energy, forces, scalars: its targets; at least one.
        normalization: by label name (`energy`, `forces`, a scalar's label); the identity where absent.
        level_of_theory: free text for people.
    """

    name: str
    graph: GraphSettings
    energy: EnergyTarget | None = None
    forces: ForcesTarget | None = None
    scalars: tuple[ScalarTarget, ...] = ()
    normalization: dict[str, Normalization] = field(default_factory=dict)
    level_of_theory: str = ""

    def __post_init__(self) -> None:
        if self.energy is None and self.forces is None and not self.scalars:
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

    @property
    def gradient_forces(self) -> bool:
        """Whether forces are the gradient of the energy."""
        return self.forces is not None and self.forces.kind == "gradient"

    @property
    def direct_forces(self) -> bool:
        """Whether forces come from their own head."""
        return self.forces is not None and self.forces.kind == "direct"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that this task predicts."""
        names = ["energy"] * (self.energy is not None) + ["forces"] * (self.forces is not None)
        return (*names, *(s.label for s in self.scalars))

    def normalize_by(self, label: str) -> Normalization:
        """The normalisation of one label; the identity if none is set."""
        return self.normalization.get(label, Normalization())

    def scale(self, label: str) -> float:
        """Standard deviation of one label's normalisation."""
        return self.normalize_by(label).std

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back."""
        return {**asdict(self), "graph": self.graph.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Task:
        """Inverse of `to_dict`."""
        return cls(
            name=values["name"],
            graph=GraphSettings.from_dict(values["graph"]),
            energy=EnergyTarget(**values["energy"]) if values.get("energy") else None,
            forces=ForcesTarget(**values["forces"]) if values.get("forces") else None,
            scalars=tuple(ScalarTarget(**s) for s in values.get("scalars", ())),
            normalization={
                k: Normalization(**{**n, "references": tuple(n.get("references", ()))})
                for k, n in values.get("normalization", {}).items()
            },
            level_of_theory=values.get("level_of_theory", ""),
        )
