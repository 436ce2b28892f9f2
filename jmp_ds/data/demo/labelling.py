"""Energies, forces, stress, gap and dipole by GFN1-/GFN2-xTB through tblite; grids that make them repeatable.

tblite is imported inside the functions: only making the data needs it, not reading it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import Bohr, Hartree, kB
from numpy.typing import NDArray

from jmp_ds.errors import UserError

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]

#: Positions and cells (Å) are put on this grid before they are labelled, so that the labels belong to the stored numbers.
LENGTH_GRID = 1e-5
#: Forces (eV/Å) and stress (eV/Å³) are put on this grid after they are computed; far below what xTB means.
FORCE_GRID = 1e-6
#: Structures with a larger force component (eV/Å) are not kept: they would dominate every loss.
LARGEST_FORCE = 25.0
#: tblite's SCF thresholds in units of its defaults, for labels and for geometries on the way to them.
TIGHT, COARSE = 1e-2, 1.0


class DemoFailure(Exception):
    """A structure, or a whole job, that came to nothing; `reason` is a short code that is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Level:
    """A level of theory.

    Attributes:
        method: `GFN1-xTB` or `GFN2-xTB`.
        temperature: electronic temperature, K. The energy is then the free energy of the electrons, whose gradient
            the forces are.
    """

    method: str
    temperature: float = 300.0

    def __str__(self) -> str:
        return f"{self.method} (tblite, closed shell, electronic temperature {self.temperature:g} K, Γ point)"


#: Molecules and paths; and everything periodic, where smearing lets metals converge.
MOLECULAR = Level("GFN2-xTB")
PERIODIC = Level("GFN1-xTB", temperature=1000.0)


def require_tblite() -> None:
    """Fail early, with the remedy, where tblite is not installed.

    Raises:
        UserError: tblite cannot be imported.
    """
    try:
        import tblite.interface  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"making demonstration data needs tblite, which cannot be imported ({error}); install it with "
            "`pip install 'jmp-ds[demo]'`, or take the set that comes with the package (leave out --regenerate)"
        ) from error


def on_grid(values: FloatArray, step: float) -> FloatArray:
    """Values rounded to multiples of `step`; `integer * step` gives the same float64 back."""
    return np.asarray(np.rint(values / step) * step + 0.0, dtype=np.float64)  # + 0.0: no negative zeros


def calculator(level: Level) -> Any:
    """An ASE calculator for geometries on the way to a labelled structure (coarser SCF, restarts from the last one)."""
    from tblite.ase import TBLite

    return TBLite(
        method=level.method, electronic_temperature=level.temperature, accuracy=COARSE, max_iterations=250, verbosity=0
    )


def label(atoms: Atoms, level: Level) -> Mapping[str, FloatArray]:
    """Labels of one structure, from a fresh SCF guess (no memory of what was computed before).

    Returns: energy (), forces [n, 3]; stress [6] in ASE's sign and Voigt order where the structure is periodic; gap ()
    and dipole (), the norm in e·Å, where it is not. Units eV, Å.

    Raises:
        DemoFailure: the SCF does not converge, or a number is not finite, or a force exceeds `LARGEST_FORCE`.
    """
    from tblite.exceptions import TBLiteRuntimeError
    from tblite.interface import Calculator

    periodic = bool(atoms.pbc.any())
    where = {"lattice": atoms.cell.array / Bohr, "periodic": atoms.pbc} if periodic else {}
    scf = Calculator(level.method, atoms.numbers, atoms.positions / Bohr, charge=0.0, uhf=0, **where)
    for name, value in (("verbosity", 0), ("accuracy", TIGHT), ("temperature", level.temperature * kB / Hartree)):
        scf.set(name, value)
    try:
        result = scf.singlepoint()
    except TBLiteRuntimeError as error:
        raise DemoFailure("scf_not_converged") from error
    forces = -np.asarray(result.get("gradient")) * Hartree / Bohr
    labels = {"energy": np.array(result.get("energy") * Hartree), "forces": on_grid(forces, FORCE_GRID)}
    if periodic:
        stress = np.asarray(result.get("virial")).reshape(9)[[0, 4, 8, 5, 2, 1]] * Hartree / atoms.get_volume()
        labels["stress"] = on_grid(stress, FORCE_GRID)
    else:
        labels["gap"] = np.array(_gap(result))
        labels["dipole"] = np.array(np.linalg.norm(result.get("dipole")) * Bohr)
    if not all(np.isfinite(value).all() for value in labels.values()):
        raise DemoFailure("not_finite")
    if np.abs(labels["forces"]).max() > LARGEST_FORCE:
        raise DemoFailure("force_too_large")
    return labels


def _gap(result: Any) -> float:
    """Energy (eV) between the highest level that is at least half filled and the next one."""
    levels = np.sort(np.asarray(result.get("orbital-energies")).reshape(-1))
    occupied = int(np.rint(np.asarray(result.get("orbital-occupations")).sum() / 2.0))
    return float((levels[occupied] - levels[occupied - 1]) * Hartree)
