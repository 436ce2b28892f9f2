"""What decides which atoms are joined by an edge, as one value that belongs to a task and travels with its model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

Symmetrize = Literal["jmp", "invariant"]
Envelope = Literal["jmp", "cutoff"]
Dihedral = Literal["jmp", "smooth"]

#: Length (Å) that the radial grid spans and where the published envelope ends, whatever the cutoff.
RADIAL_SPAN = 12.0


class Caps(NamedTuple):
    """Largest number of incoming edges per atom in each of the four graphs."""

    main: int
    a2a: int
    a2ee2a: int
    qint: int


@dataclass(frozen=True, kw_only=True)
class FewerNeighbors:
    """A smaller cap for larger structures.

    Attributes:
        above: structures with more atoms than this.
        max_neighbors: their cap M, instead of the one of smaller structures.
    """

    above: int
    max_neighbors: int


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """Settings of the four graphs of one structure (specification section 3; decisions, "Graphs").

    Attributes:
        cutoff: largest edge length in Å, the same for all four graphs.
        max_neighbors: M, the cap of the main graph; the other caps follow in the published proportions.
        fewer_neighbors: smaller M for larger structures, by ascending size; the last one that a structure exceeds holds.
        symmetrize: `jmp` keeps an edge iff s<t and s is among the nearest of t (needed by published checkpoints, depends on
            the order of atoms); `invariant` keeps it iff either end has it among its nearest, ties included.
        envelope: `jmp` ends at 12 Å whatever the cutoff; `cutoff` ends at the cutoff.
        dihedral: `jmp` is the published angle (discontinuous for collinear bonds); `smooth` vanishes there.
        qint_tags: quadruplets need a middle bond that touches an atom with one of these tags.
    """

    cutoff: float = 12.0
    max_neighbors: int = 30
    fewer_neighbors: tuple[FewerNeighbors, ...] = ()
    symmetrize: Symmetrize = "invariant"
    envelope: Envelope = "cutoff"
    dihedral: Dihedral = "smooth"
    qint_tags: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if not 0.0 < self.cutoff <= 100.0:
            raise ValueError(f"graph: cutoff must be between 0 and 100 Å, got {self.cutoff}")
        if self.envelope == "cutoff" and self.cutoff > RADIAL_SPAN:
            raise ValueError(
                f"graph: cutoff {self.cutoff} Å exceeds the radial grid ({RADIAL_SPAN} Å); "
                "use a smaller cutoff, or envelope: jmp, where longer edges exist without a radial part"
            )
        if self.max_neighbors < 1:
            raise ValueError(f"graph: max_neighbors must be at least 1, got {self.max_neighbors}")
        self._check_fewer()
        for name, kind in (("symmetrize", Symmetrize), ("envelope", Envelope), ("dihedral", Dihedral)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"graph: {name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")
        object.__setattr__(self, "qint_tags", tuple(int(t) for t in self.qint_tags))
        object.__setattr__(self, "fewer_neighbors", tuple(self.fewer_neighbors))

    def _check_fewer(self) -> None:
        """Sizes ascend and caps descend, so that the order in which they are written does not matter to anyone."""
        steps = (FewerNeighbors(above=0, max_neighbors=self.max_neighbors), *self.fewer_neighbors)
        for before, step in pairwise(steps):
            if step.above <= before.above:
                raise ValueError(
                    f"graph: fewer_neighbors must go from small structures to large ones, each `above` a size of its own "
                    f"and at least 1, got {[one.above for one in self.fewer_neighbors]}"
                )
            if not 1 <= step.max_neighbors < before.max_neighbors:
                raise ValueError(
                    f"graph: fewer_neighbors: {step.max_neighbors} neighbours above {step.above} atoms must be at least 1 "
                    f"and fewer than the {before.max_neighbors} of smaller structures; write another list, or [] for none"
                )

    def max_neighbors_of(self, natoms: int) -> int:
        """M of a structure with so many atoms."""
        m = self.max_neighbors
        for step in self.fewer_neighbors:
            m = step.max_neighbors if natoms > step.above else m
        return m

    def caps_of(self, natoms: int) -> Caps:
        """The four caps of a structure with so many atoms: M, 1000M/30, 20M/30 and 8M/30, truncated (specification 3.1)."""
        m = self.max_neighbors_of(natoms)
        return Caps(main=m, a2a=1000 * m // 30, a2ee2a=20 * m // 30, qint=8 * m // 30)

    @property
    def neighbors_told(self) -> str:
        """M for people: `30`, or `30 (10 above 200 atoms, 5 above 300)`."""
        steps = [f"{step.max_neighbors} above {step.above}" for step in self.fewer_neighbors]
        if not steps:
            return str(self.max_neighbors)
        return f"{self.max_neighbors} ({', '.join([steps[0] + ' atoms', *steps[1:]])})"

    @property
    def envelope_end(self) -> float:
        """Length in Å at which the radial envelope reaches zero."""
        return RADIAL_SPAN if self.envelope == "jmp" else self.cutoff

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back. `fewer_neighbors` is left out where there are none."""
        values = {**asdict(self), "qint_tags": list(self.qint_tags)}
        fewer = [dict(step) for step in values.pop("fewer_neighbors")]
        return {**values, "fewer_neighbors": fewer} if fewer else values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GraphSettings:
        """Inverse of `to_dict`.

        Raises:
            ValueError: an unknown key or a value out of range.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"graph: unknown setting {sorted(unknown)}; known are {sorted(cls.__dataclass_fields__)}")
        tags, fewer = values.get("qint_tags", (1, 2)), values.get("fewer_neighbors", ())
        return cls(**{**values, "qint_tags": tuple(tags), "fewer_neighbors": fewer_neighbors(fewer)})

    def digest(self) -> str:
        """Short hash of what decides the edges, to name counts derived for it (envelope and dihedral do not)."""
        decisive = {k: v for k, v in self.to_dict().items() if k not in ("envelope", "dihedral")}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def fewer_neighbors(steps: Iterable[Mapping[str, int]]) -> tuple[FewerNeighbors, ...]:
    """Smaller caps from their JSON form, mappings of `above` and `max_neighbors`."""
    return tuple(FewerNeighbors(**step) for step in steps)


#: The published rules (official checkpoints need them), for a structure set with the given cutoff and cap.
def published(cutoff: float, max_neighbors: int = 30) -> GraphSettings:
    """Settings with the published rules: `jmp` symmetrisation, envelope and dihedral."""
    return GraphSettings(cutoff=cutoff, max_neighbors=max_neighbors, symmetrize="jmp", envelope="jmp", dihedral="jmp")
