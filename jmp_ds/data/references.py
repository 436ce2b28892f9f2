"""Element references and normalisation of a store's labels, in one pass over its records; float64 throughout.

The reference energies x solve sum over structures of (E - c·x)² → min, c the numbers of atoms by element. Where the
compositions do not determine x (one composition has rank 1), the solution of least norm is taken; an element that does
not occur gets 0. With given references x0 the solution nearest to x0 is taken, so that what the data do not determine
stays as it was (fine-tuning from pre-trained references). Source: specification section 7; decisions, "Data".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jmp_ds.data.progress import tracked
from jmp_ds.data.record import MAX_ATOMIC_NUMBER, Record
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError
from jmp_ds.files import write_json

FloatArray = NDArray[np.float64]
FILE = "statistics.json"
#: Eigenvalues of the normal equations below this fraction of the largest count as zero. Their entries are sums of
#: products of atom counts, exact in float64, so what should be zero comes out at about 1e-16.
RANK_TOLERANCE = 1e-13
_BLOCK = 1024


@dataclass(frozen=True)
class LabelStatistics:
    """One label over the structures looked at.

    Attributes:
        count: structures that carry the label.
        mean, std: of the numbers (all components of all atoms, for labels per atom), after references; std with
            denominator `values`, 0 for a single value.
        rms: root mean square of the same numbers.
        minimum, maximum: of the numbers as stored, before references.
        values: how many numbers these are.
        references: by atomic number, index 0 unused; empty for a label without references. Unit of the label.
    """

    count: int
    mean: float
    std: float
    rms: float
    minimum: float
    maximum: float
    values: int
    references: tuple[float, ...] = ()


@dataclass(frozen=True)
class Statistics:
    """What is known of a store's (or a training split's) labels.

    Attributes:
        structures: number of structures looked at.
        labels: by name.
        elements: how many atoms there are of each atomic number that occurs.
        fingerprint: of the store they were computed from (`Summary.fingerprint`).
    """

    structures: int
    labels: dict[str, LabelStatistics]
    elements: dict[int, int]
    fingerprint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        """Inverse of `to_dict`, also after a trip through JSON."""
        labels = {
            name: LabelStatistics(**{**label, "references": tuple(label["references"])})
            for name, label in values["labels"].items()
        }
        elements = {int(z): int(n) for z, n in values["elements"].items()}
        return cls(int(values["structures"]), labels, elements, str(values["fingerprint"]))


def fit_statistics(
    store: Store,
    indices: NDArray[np.int64] | None = None,
    *,
    referenced: Sequence[str] = ("energy",),
    base_references: Mapping[str, ArrayLike] | None = None,
    progress: bool = False,
) -> Statistics:
    """Statistics of every label that occurs, from one pass over the records.

    Args:
        store: where the records are.
        indices: which of them, e.g. the training split; all by default.
        referenced: labels per structure from which element references are taken off.
        base_references: by label, references by atomic number from which the new ones change as little as possible.
        progress: show a bar.

    Raises:
        UserError: no structures, or a label in `referenced` that is not one number per structure.
    """
    order = np.arange(len(store)) if indices is None else np.sort(np.asarray(indices))
    if len(order) == 0:
        raise UserError(f"statistics of {store.path}: there are no structures")
    base = {name: _padded(values) for name, values in (base_references or {}).items()}
    moments: dict[str, Moments] = {}
    fits: dict[str, ReferenceFit] = {}
    elements = np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=np.int64)
    for records in tracked(_blocks(store, order), "statistics", -(-len(order) // _BLOCK), progress):
        compositions = np.stack([np.bincount(r.atomic_numbers, minlength=MAX_ATOMIC_NUMBER + 1) for r in records])
        elements += compositions.sum(axis=0)
        for name in sorted({name for r in records for name in r.labels}):
            rows = [i for i, r in enumerate(records) if name in r.labels]
            values = [np.asarray(records[i].labels[name]) for i in rows]
            moments.setdefault(name, Moments()).add(np.concatenate([v.ravel() for v in values]), len(rows))
            if name in referenced:
                if any(v.shape != () for v in values):
                    raise UserError(f"statistics of {store.path}: label {name!r} is not one number per structure")
                fit = fits.setdefault(name, ReferenceFit(base.get(name)))
                fit.add(compositions[rows], np.array(values))
    return Statistics(
        structures=len(order),
        labels={name: _summarised(m, fits.get(name)) for name, m in moments.items()},
        elements={int(z): int(elements[z]) for z in np.flatnonzero(elements)},
        fingerprint=store.summary.fingerprint,
    )


def save_statistics(store: Store, statistics: Statistics) -> Path:
    """Keep the statistics with the store (`statistics.json`); returns the file."""
    path = store.path / FILE
    write_json(path, statistics.to_dict())
    return path


def load_statistics(store: Store) -> Statistics | None:
    """The statistics kept with the store; None if there are none, or if they belong to other contents."""
    path = store.path / FILE
    if not path.is_file():
        return None
    statistics = Statistics.from_dict(json.loads(path.read_text()))
    return statistics if statistics.fingerprint == store.summary.fingerprint else None


def normalization(
    statistics: Statistics, labels: Sequence[str], *, gradient_forces: bool = False
) -> dict[str, dict[str, Any]]:
    """Arguments of `Normalization` by label: {"mean", "std", "references"}.

    Labels per atom (forces) keep mean 0 and are scaled by their rms, so that zero stays zero; others get mean and std.
    A label that does not vary is scaled by 1. With `gradient_forces` the energy takes the scale of the forces, because
    forces that are a gradient of the energy have no scale of their own.

    Raises:
        UserError: a label that no structure carries.
    """
    out = {}
    for name in labels:
        if name not in statistics.labels:
            known = ", ".join(sorted(statistics.labels)) or "none"
            raise UserError(f"normalisation: no structure carries the label {name!r}; labels found: {known}")
        label = statistics.labels[name]
        centred = name == "forces" or (label.values != label.count and name != "stress")
        mean, std = (0.0, label.rms) if centred else (label.mean, label.std)
        # Spread within rounding of the numbers themselves is no spread.
        still = std <= 1e-12 * max(abs(label.maximum), abs(label.minimum))
        out[name] = {"mean": mean, "std": 1.0 if still else std, "references": label.references}
    if gradient_forces and "energy" in out and "forces" in out:
        out["energy"]["std"] = out["forces"]["std"]
    return out


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of a stream of numbers, merged block by block (Chan et al.)."""

    count: int = 0
    values: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    def add(self, block: FloatArray, structures: int) -> None:
        """Take in a block of numbers that came from that many structures."""
        n = block.size
        mean = float(block.mean())
        delta = mean - self.mean
        total = self.values + n
        self.squares += float(((block - mean) ** 2).sum()) + delta**2 * self.values * n / total
        self.mean += delta * n / total
        self.values = total
        self.count += structures
        self.minimum = min(self.minimum, float(block.min()))
        self.maximum = max(self.maximum, float(block.max()))


@dataclass
class ReferenceFit:
    """Streaming least squares of a number per structure on its composition.

    The first block's own solution is taken off everything before it is added up: what remains is small, so the sums
    keep their digits even where energies are -10⁵ eV and errors matter at 1e-6 eV.

    Attributes:
        base: references from which the solution shall differ least; zeros by default.
    """

    base: FloatArray | None = None
    shift: FloatArray | None = None
    normal: FloatArray = field(default_factory=lambda: np.zeros((MAX_ATOMIC_NUMBER + 1,) * 2))
    moment: FloatArray = field(default_factory=lambda: np.zeros(MAX_ATOMIC_NUMBER + 1))
    atoms: FloatArray = field(default_factory=lambda: np.zeros(MAX_ATOMIC_NUMBER + 1))
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, compositions: NDArray[np.int64], values: FloatArray) -> None:
        """Take in a block: compositions [b, 119] and one value each."""
        c = compositions.astype(np.float64)
        if self.shift is None:
            start = np.zeros(c.shape[1]) if self.base is None else self.base
            self.shift = start + solve(c.T @ c, c.T @ (values - c @ start))
        rest = values - c @ self.shift
        self.normal += c.T @ c
        self.moment += c.T @ rest
        self.atoms += c.sum(axis=0)
        self.count += len(values)
        self.total += float(rest.sum())
        self.squares += float((rest**2).sum())

    def solution(self) -> tuple[FloatArray, float, float]:
        """References by atomic number [119], and mean and standard deviation of what they leave."""
        if self.shift is None:
            raise ValueError("no values were added")
        delta = solve(self.normal, self.moment)
        mean = (self.total - float(self.atoms @ delta)) / self.count
        squares = self.squares - 2.0 * float(delta @ self.moment) + float(delta @ self.normal @ delta)
        return self.shift + delta, mean, math.sqrt(max(squares / self.count - mean**2, 0.0))


def solve(normal: FloatArray, moment: FloatArray) -> FloatArray:
    """Minimum-norm solution of normal · x = moment for a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(normal)
    kept = values > RANK_TOLERANCE * max(float(values[-1]), 0.0)
    basis = vectors[:, kept]
    out: FloatArray = basis @ ((basis.T @ moment) / values[kept])
    out[np.diag(normal) == 0.0] = 0.0
    return out


def _summarised(moments: Moments, fit: ReferenceFit | None) -> LabelStatistics:
    """The finished numbers of one label."""
    mean, std, references = moments.mean, math.sqrt(moments.squares / moments.values), ()
    if fit is not None:
        solved, mean, std = fit.solution()
        references = tuple(solved.tolist())
    return LabelStatistics(
        count=moments.count,
        mean=mean,
        std=std,
        rms=math.sqrt(std**2 + mean**2),
        minimum=moments.minimum,
        maximum=moments.maximum,
        values=moments.values,
        references=references,
    )


def _blocks(store: Store, order: NDArray[Any]) -> Iterator[list[Record]]:
    for start in range(0, len(order), _BLOCK):
        yield [store[int(i)] for i in order[start : start + _BLOCK]]


def _padded(values: ArrayLike) -> FloatArray:
    """References by atomic number, filled up with zeros to every element."""
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or len(given) > MAX_ATOMIC_NUMBER + 1 or not np.isfinite(given).all():
        raise UserError(f"references: one finite number per atomic number is needed, got shape {given.shape}")
    out = np.zeros(MAX_ATOMIC_NUMBER + 1)
    out[: len(given)] = given
    return out
