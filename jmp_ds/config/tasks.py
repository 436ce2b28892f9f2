"""`tasks`: what is learned, from which structures, on which graphs, with which weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jmp_ds.config.base import NonNegativeFloat, PositiveFloat, Section

#: Where the heads of a fine-tuned task come from.
HEADS = r"^(new|keep|copy:.+)$"


class FewerNeighborsConfig(Section):
    """A smaller cap for larger structures."""

    above: int = Field(ge=1, description="structures with more atoms than this")
    max_neighbors: int = Field(ge=1, description="their cap M of the main graph; the other caps follow")


class GraphConfig(Section):
    """How the structures of one task become graphs; what is left out comes from `model.graph`, or from the bundle."""

    cutoff: PositiveFloat | None = Field(
        default=None, description="largest edge length in Å (12 unless the bundle says otherwise)"
    )
    max_neighbors: int | None = Field(
        default=None, ge=1, description="cap M of the main graph (30); the other caps follow"
    )
    fewer_neighbors: list[FewerNeighborsConfig] | None = Field(
        default=None,
        description="smaller M for larger structures, by ascending size, such as [{above: 200, max_neighbors: 10}]; "
        "[] for none",
    )
    qint_tags: list[int] | None = Field(
        default=None, description="quadruplets need a middle bond that touches an atom with one of these tags ([1, 2])"
    )


class EnergyConfig(Section):
    """The energy of a structure, as a sum over its atoms."""

    weight: NonNegativeFloat = Field(default=1.0, description="factor in the loss; 0 evaluates without training")
    bias: bool | None = Field(
        default=None,
        description="biases in the head's hidden layers (yes in pre-training, no in fine-tuning, unless said)",
    )


class ForcesConfig(Section):
    """Forces on atoms."""

    weight: NonNegativeFloat = Field(default=1.0, description="factor in the loss")
    kind: Literal["direct", "gradient"] = Field(
        default="direct", description="`direct`: a head on edges; `gradient`: minus the derivative of the energy"
    )
    loss: Literal["structure", "atom"] = Field(
        default="structure", description="average over the atoms of a structure first (JMP), or over all atoms"
    )


class StressConfig(Section):
    """Stress of periodic structures, as the derivative of the energy by strain; needs `forces: {kind: gradient}`."""

    weight: NonNegativeFloat = Field(
        default=1.0, description="factor in the loss of its error in eV/Å³ over the scale of the energy"
    )


class ScalarConfig(Section):
    """Any other number per structure."""

    label: str = Field(description="name of the label in the store")
    unit: str = Field(default="", description="unit of the label, for tables")
    weight: NonNegativeFloat = Field(default=1.0, description="factor in the loss")
    reduction: Literal["sum", "mean", "max"] = Field(default="sum", description="how atoms are combined")
    references: bool = Field(
        default=False, description="take off element references, fitted by least squares, before mean and std"
    )


class SpatialExtentConfig(Section):
    """Spatial extent of a molecule: a charge of every atom × its squared distance from the centre of mass, summed."""

    label: str = Field(description="name of the label in the store")
    unit: str = Field(default="", description="unit of the label, for tables")
    weight: NonNegativeFloat = Field(default=1.0, description="factor in the loss")


class DipoleConfig(Section):
    """Dipole moment of a molecule: a charge of every atom × its position from the centre of mass, summed."""

    label: str = Field(
        default="dipole",
        description="name of the label in the store; `dipole` has three components, others are lengths",
    )
    unit: str = Field(default="e·Å", description="unit of the label, for tables")
    weight: NonNegativeFloat = Field(default=1.0, description="factor in the loss")
    norm: bool = Field(default=False, description="the label is the length of the vector")
    atomic: bool = Field(default=False, description="add a vector of every atom, from a head on edges")


class ClassificationConfig(Section):
    """Which class a structure belongs to; the label is the number of its class, from 0."""

    label: str = Field(description="name of the label in the store")
    classes: int = Field(default=2, ge=2, description="how many classes there are")
    kind: Literal["binary", "multi"] | None = Field(
        default=None,
        description="one logit for class 1 of two (`binary`), or one per class (`multi`); default: binary for two classes",
    )
    class_weights: list[PositiveFloat] = Field(
        default_factory=list, description="factor of every class in the loss; none: 1"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="probability that a feature is dropped before the head in training"
    )
    reduction: Literal["sum", "mean", "max"] = Field(default="sum", description="how the logits of atoms are combined")
    weight: NonNegativeFloat = Field(default=1.0, description="factor of the cross-entropy in the loss")


class SplitFilesConfig(Section):
    """Splits given as files of structure numbers, counted from 0: text with one per line, .npy, or a JSON list."""

    train: str = Field(description="numbers of the training structures")
    val: str | None = Field(default=None, description="numbers of the validation structures")
    test: str | None = Field(default=None, description="numbers of the test structures")


class SplitConfig(Section):
    """Which structures train, validate and test: fractions or counts drawn by a seed, or files.

    Whole numbers are counts, others fractions. Without any of them: nine tenths train, one tenth validates.
    """

    train: int | float | None = Field(default=None, ge=0, description="share that trains; default: what is left")
    val: int | float | None = Field(default=None, ge=0, description="share that validates")
    test: int | float | None = Field(default=None, ge=0, description="share kept for the final test")
    seed: int = Field(default=0, ge=0, description="which draw")
    by: Literal["group", "structure"] = Field(
        default="group",
        description="`group` keeps a molecule, material or trajectory on one side; `structure` does not",
    )
    files: SplitFilesConfig | None = Field(default=None, description="take the splits from files instead")

    @model_validator(mode="after")
    def _sensible(self) -> SplitConfig:
        given = {k: v for k in ("train", "val", "test") if (v := getattr(self, k)) is not None}
        if self.files is not None and given:
            raise ValueError(f"`files` and {', '.join(given)} both set: give one of them")
        kinds = {type(v) for v in given.values() if v != 0}
        if len(kinds) > 1:
            raise ValueError(f"counts and fractions mixed in {given}: give all as whole numbers or all as fractions")
        if kinds == {float} and sum(given.values()) > 1.0 + 1e-9:
            raise ValueError(f"fractions {given} add up to more than 1")
        if kinds == {float} and "train" not in given and sum(given.values()) >= 1.0:
            raise ValueError(f"fractions {given} leave nothing to train on")
        if given.get("train") == 0:
            raise ValueError("train: 0 leaves nothing to train on")
        return self

    @property
    def validates(self) -> bool:
        """Whether some structures validate."""
        if self.files is not None:
            return self.files.val is not None
        return bool(self.val) if self.val is not None else self.train is None and self.test is None

    def shares(self, structures: int) -> dict[str, int | float]:
        """Share of every split that is not empty, all counts or all fractions, for a store of that many structures."""
        if self.train is None and self.val is None and self.test is None:
            return {"train": 0.9, "val": 0.1}
        held = {name: share for name, share in (("val", self.val), ("test", self.test)) if share}
        train = self.train
        if train is None:
            train = (
                structures - sum(held.values())
                if all(isinstance(s, int) for s in held.values())
                else 1.0 - sum(held.values())
            )
        return {"train": train, **held}


class TaskConfig(Section):
    """One thing to learn from one store."""

    store: str = Field(description="folder written by `jmp-ds data convert` or `jmp-ds data demo`")
    graph: GraphConfig = Field(default_factory=GraphConfig, description="how structures become graphs")
    energy: EnergyConfig | None = Field(default=None, description="learn `energy` (eV)")
    forces: ForcesConfig | None = Field(default=None, description="learn `forces` (eV/Å)")
    stress: StressConfig | None = Field(default=None, description="learn `stress` (eV/Å³)")
    scalar: ScalarConfig | None = Field(default=None, description="learn one other number per structure")
    scalars: list[ScalarConfig] = Field(default_factory=list, description="several of them")
    spatial_extent: SpatialExtentConfig | None = Field(default=None, description="learn a spatial extent")
    dipole: DipoleConfig | None = Field(default=None, description="learn a dipole moment, or its length")
    classification: ClassificationConfig | None = Field(default=None, description="learn a class")
    split: SplitConfig = Field(default_factory=SplitConfig, description="which structures train, validate and test")
    weight: PositiveFloat = Field(default=1.0, description="factor of all weights of the task in the loss")
    heads: Annotated[str, Field(pattern=HEADS)] | None = Field(
        default=None, description="fine-tuning: as `from.heads`, for this task; `keep` replays a task of the bundle"
    )
    references: Literal["auto", "fit", "keep", "none"] = Field(
        default="auto",
        description="element references of the energy: `fit` by least squares (from a bundle: the smallest change from "
        "its references), `keep` those of the bundle whose heads are taken over, `none`; `auto` is `fit` where there is "
        "an energy",
    )
    normalize: bool = Field(
        default=True, description="train on (value - references - mean) / std; statistics of the training split"
    )

    @model_validator(mode="after")
    def _targets(self) -> TaskConfig:
        if self.energy is None and self.forces is None and not self.of_structures:
            raise ValueError("nothing to learn: give it `energy`, `forces` or `scalar`")
        if self.stress is not None and self.force_kind != "gradient":
            raise ValueError("`stress` is a derivative of the energy: it needs `forces: {kind: gradient}`")
        labels = [t.label for t in self.of_structures]
        if len(set(labels)) != len(labels):
            raise ValueError(f"the same label twice: {labels}")
        reserved = sorted({"energy", "forces", "stress"} & set(labels))
        if reserved:
            raise ValueError(f"scalar label {reserved[0]!r}: write `{reserved[0]}:` as its own key")
        weights = [t.weight for t in (self.energy, self.forces, self.stress, *self.of_structures) if t is not None]
        if not any(weights):
            raise ValueError("every weight is 0: nothing would be trained")
        return self

    @property
    def force_kind(self) -> Literal["direct", "gradient"] | None:
        """Where forces come from; None: none are learned."""
        return None if self.forces is None else self.forces.kind

    @property
    def all_scalars(self) -> tuple[ScalarConfig, ...]:
        """`scalar` and `scalars` together."""
        return ((self.scalar,) if self.scalar else ()) + tuple(self.scalars)

    @property
    def of_structures(self) -> tuple[ScalarConfig | SpatialExtentConfig | DipoleConfig | ClassificationConfig, ...]:
        """Everything that names its label, in the order of `Task.of_structures`."""
        single = (self.spatial_extent, self.dipole, self.classification)
        return (*self.all_scalars, *(target for target in single if target is not None))
