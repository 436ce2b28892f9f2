"""One labelled structure as a value, and what makes it acceptable (decisions, "Data").

Units everywhere: eV, Å, eV/Å, eV/Å³. Forces are minus the gradient of the energy; stress is in ASE's sign (compressed
matter has negative diagonal entries) and in Voigt order xx, yy, zz, yz, xz, xy; cell vectors are rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from jmp_ds.graphs.assemble import Structure

FloatArray = NDArray[np.float64]
InfoValue = str | float | int

MAX_ATOMIC_NUMBER = 118
#: Atoms nearer than this (Å), periodic images included, cannot both be meant.
COINCIDENT = 0.1
#: Length (Å) of a cell vector that stands in where none is given along a direction without periodicity.
OPEN_LENGTH = 1000.0
#: Tag of an atom whose source gives no tags in OCP's sense (0 fixed bulk, 1 surface, 2 adsorbate): takes part in all.
DEFAULT_TAG = 2

#: Labels whose meaning and shape are fixed; any other label is one number per structure, [n] or [n, 3], and `dipole`
#: (e·Å) may also be a vector, [3].
FIXED_SHAPES = {"energy": "one number (eV)", "forces": "[n, 3] (eV/Å)", "stress": "[6], Voigt order (eV/Å³)"}

#: Why a structure is not accepted: reason code -> what it means.
REASONS = {
    "no_atoms": "the structure has no atoms",
    "shape": "an array has the wrong shape",
    "not_finite": "a position, cell entry or label is not a finite number",
    "unknown_element": "an atomic number lies outside 1..118",
    "bad_tag": "a tag is none of 0, 1, 2",
    "degenerate_cell": "the cell has no volume, or its planes lie nearer than atoms may",
    "coincident_atoms": f"two atoms (periodic images included) lie within {COINCIDENT} Å",
    "charge_or_spin": "the structure carries a charge or a spin, which the model cannot see",
    "missing_label": "a label that was asked for is absent",
    "disordered": "a site is shared by several elements, or partly empty",
    "unreadable": "the source's text could not be understood",
}


class BadRecord(ValueError):
    """A structure that is not accepted, with the reason code (a key of `REASONS`) and what exactly was wrong."""

    def __init__(self, code: str, message: str) -> None:
        if code not in REASONS:
            raise KeyError(code)
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """One labelled structure. `make_record` builds and validates; the plain constructor trusts its caller (the store).

    Attributes:
        pos: positions, float64 [n, 3], Å.
        atomic_numbers: uint8 [n].
        cell: cell vectors as rows, float64 [3, 3], Å; never degenerate (see `make_record`).
        pbc: bool [3], periodicity per cell vector.
        labels: name -> float64 array; an absent label is absent, never NaN. Shapes: see `FIXED_SHAPES`.
        tags: uint8 [n], OCP's 0/1/2 where the source defines them, else 2.
        fixed: bool [n], atoms the source held fixed (their forces are real all the same).
        id: name of the structure within its source.
        group: key that splits must not cut (trajectory, molecule, material); empty: the structure stands alone.
        info: further facts as plain values.
    """

    pos: FloatArray
    atomic_numbers: NDArray[np.uint8]
    cell: FloatArray
    pbc: NDArray[np.bool_]
    labels: Mapping[str, FloatArray]
    tags: NDArray[np.uint8]
    fixed: NDArray[np.bool_]
    id: str
    group: str = ""
    info: Mapping[str, InfoValue] = field(default_factory=dict)

    @property
    def natoms(self) -> int:
        """Number of atoms."""
        return len(self.atomic_numbers)

    def structure(self) -> Structure:
        """The part of the record that the graphs see, without labels."""
        from jmp_ds.graphs.assemble import Structure

        return Structure(
            pos=self.pos,
            cell=self.cell,
            pbc=self.pbc,
            atomic_numbers=self.atomic_numbers.astype(np.int64),
            tags=self.tags.astype(np.int64),
            fixed=self.fixed,
            id=self.id,
        )


def make_record(
    *,
    pos: ArrayLike,
    atomic_numbers: ArrayLike,
    id: str,
    cell: ArrayLike | None = None,
    pbc: ArrayLike | None = None,
    labels: Mapping[str, ArrayLike] | None = None,
    tags: ArrayLike | None = None,
    fixed: ArrayLike | None = None,
    group: str = "",
    info: Mapping[str, InfoValue] | None = None,
) -> Record:
    """Build a validated record; the arrays are copied into the record's dtypes.

    A cell vector along a direction without periodicity means nothing to the graphs. Where such a vector is zero, or
    lies in the span of the others, the vectors of all open directions are replaced by ones of `OPEN_LENGTH` at right
    angles to the periodic ones, so that the cell can be inverted and would even be harmless if taken for periodic.
    `pbc` itself is kept per axis.

    Raises:
        BadRecord: with the reason code (see `REASONS`).
    """
    try:
        numbers = np.asarray(atomic_numbers, dtype=np.float64)
        positions = np.array(pos, dtype=np.float64)
        rows = np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64)
        periodic = np.zeros(3, dtype=bool) if pbc is None else np.array(np.broadcast_to(np.asarray(pbc, bool), (3,)))
        values = {name: np.array(value, dtype=np.float64) for name, value in (labels or {}).items()}
        n = len(numbers) if numbers.ndim else 0
        tag = np.full(n, DEFAULT_TAG) if tags is None else np.asarray(tags)
        held = np.zeros(n, dtype=bool) if fixed is None else np.array(fixed, dtype=bool)
    except (TypeError, ValueError) as error:
        raise BadRecord("shape", f"an array could not be understood: {error}") from error
    _check_shapes(positions, numbers, rows, values, tag, held)
    _check_values(positions, numbers, rows, values, tag if tags is not None else None)
    if cell is None and not periodic.any():
        rows = (
            np.eye(3) * OPEN_LENGTH
        )  # what `complete_cell` makes of no cell, a fifth of the time for a small molecule
    else:
        rows = complete_cell(rows, periodic)
    _check_distances(positions, rows, periodic)
    return Record(
        pos=positions,
        atomic_numbers=numbers.astype(np.uint8),
        cell=rows,
        pbc=periodic,
        labels=values,
        tags=tag.astype(np.uint8),
        fixed=held,
        id=str(id),
        group=str(group),
        info=dict(info or {}),
    )


def validate(record: Record) -> None:
    """Check a record that was built by the plain constructor, e.g. one read back from a store.

    Raises:
        BadRecord: with the reason code (see `REASONS`).
    """
    numbers = np.asarray(record.atomic_numbers, dtype=np.float64)
    labels = {name: np.asarray(value) for name, value in record.labels.items()}
    _check_shapes(record.pos, numbers, record.cell, labels, record.tags, record.fixed)
    _check_values(record.pos, numbers, record.cell, labels, record.tags)
    _heights(record.cell, np.ones(3, dtype=bool))
    _check_distances(record.pos, record.cell, record.pbc)


def complete_cell(cell: FloatArray, pbc: NDArray[np.bool_]) -> FloatArray:
    """The cell (rows, Å) with usable vectors along open directions; see `make_record`.

    Raises:
        BadRecord: `degenerate_cell` if the periodic vectors themselves do not span their directions.
    """
    if abs(np.linalg.det(cell)) > COINCIDENT**3:
        _heights(cell, pbc)
        return cell
    out = cell.copy()
    out[~pbc] = 0.0
    _, singular, basis = np.linalg.svd(out[pbc] if pbc.any() else np.zeros((1, 3)))
    rank = int((singular > COINCIDENT).sum())
    if rank < int(pbc.sum()):
        raise BadRecord(
            "degenerate_cell", f"periodic along {int(pbc.sum())} directions, but the cell is {cell.tolist()}"
        )
    out[~pbc] = (np.eye(3) if rank == 0 else basis[rank:]) * OPEN_LENGTH
    _heights(out, pbc)
    return out


def _heights(cell: FloatArray, pbc: NDArray[np.bool_]) -> FloatArray:
    """Distances (Å) between opposite faces along the periodic axes; too thin a cell is refused."""
    volume = abs(float(np.linalg.det(cell)))
    if volume <= COINCIDENT**3:
        raise BadRecord("degenerate_cell", f"the cell has a volume of {volume:.3g} Å³: {cell.tolist()}")
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    if pbc.any() and float(heights[pbc].min()) < 2.0 * COINCIDENT:
        raise BadRecord("degenerate_cell", f"lattice planes lie {heights[pbc].min():.3g} Å apart: {cell.tolist()}")
    return np.asarray(heights)


def _check_shapes(
    pos: NDArray[Any],
    numbers: NDArray[Any],
    cell: NDArray[Any],
    labels: Mapping[str, NDArray[Any]],
    tags: NDArray[Any],
    fixed: NDArray[Any],
) -> None:
    """Every array against the number of atoms."""
    if numbers.ndim != 1:
        raise BadRecord("shape", f"atomic numbers must be one list, got shape {numbers.shape}")
    n = len(numbers)
    if n == 0:
        raise BadRecord("no_atoms", "no atoms")
    expected = {"positions": (pos, (n, 3)), "cell": (cell, (3, 3)), "tags": (tags, (n,)), "fixed": (fixed, (n,))}
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise BadRecord("shape", f"{name} have shape {array.shape}, expected {shape} for {n} atoms")
    special: dict[str, tuple[int, ...]] = {"energy": (), "forces": (n, 3), "stress": (6,)}
    for name, array in labels.items():
        if name in special and array.shape != special[name]:
            raise BadRecord(
                "shape", f"label {name!r} has shape {array.shape}, expected {FIXED_SHAPES[name]} for {n} atoms"
            )
        vector = name == "dipole" and array.shape == (3,)
        if name not in special and not vector and array.shape not in ((), (n,), (n, 3)):
            raise BadRecord(
                "shape", f"label {name!r} has shape {array.shape}; one number, [n] or [n, 3] is possible, n={n}"
            )


def _check_values(
    pos: NDArray[Any],
    numbers: NDArray[Any],
    cell: NDArray[Any],
    labels: Mapping[str, NDArray[Any]],
    tags: NDArray[Any] | None,
) -> None:
    """Finite numbers, known elements, known tags (None: the default ones)."""
    known = (numbers >= 1) & (numbers <= MAX_ATOMIC_NUMBER) & (numbers == np.floor(numbers))
    if not known.all():
        raise BadRecord("unknown_element", f"atomic number {numbers[~known][0]:g} of atom {int(np.argmin(known))}")
    for name, array in {"positions": pos, "cell": cell, **labels}.items():
        if not np.isfinite(array).all():
            name = f"label {name!r}" if name in labels else name
            raise BadRecord("not_finite", f"{name} hold {int((~np.isfinite(array)).sum())} values that are not finite")
    if tags is not None and not np.isin(tags, (0, 1, 2)).all():
        raise BadRecord("bad_tag", f"tags {np.unique(tags).tolist()}; only 0, 1 and 2 are known")


def _check_distances(pos: FloatArray, cell: FloatArray, pbc: NDArray[np.bool_]) -> None:
    """No two atoms, periodic images included, within `COINCIDENT`.

    Rounding fractional differences finds every image nearer than half a cell height, and heights are at least twice
    `COINCIDENT`. Rows are taken in chunks so that memory stays small for thousands of atoms.
    """
    n = len(pos)
    inverse = np.linalg.inv(cell) if pbc.any() else None
    chunk = max(1, 250_000 // n)
    for start in range(0, n - 1, chunk):
        stop = min(start + chunk, n - 1)
        delta = pos[None, start:, :] - pos[start:stop, None, :]
        if inverse is not None:
            images = np.round(delta @ inverse)
            images[..., ~pbc] = 0.0
            delta -= images @ cell
        distance2 = np.einsum("ijk,ijk->ij", delta, delta)
        distance2[np.tri(stop - start, n - start, dtype=bool)] = np.inf
        if distance2.min() < COINCIDENT**2:
            i, j = np.unravel_index(int(np.argmin(distance2)), distance2.shape)
            distance = float(np.sqrt(distance2[i, j]))
            raise BadRecord(
                "coincident_atoms", f"atoms {start + int(i)} and {start + int(j)} lie {distance:.3g} Å apart"
            )
