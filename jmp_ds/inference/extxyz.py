"""Predictions as extended xyz, with all 17 significant digits of every number (ASE's own writer keeps eight decimals)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

    from jmp_ds.inference.predictor import Prediction

#: Entries of `atoms.info` with these names would be taken for calculated results, or for the frame's own description.
_RESERVED = frozenset(
    {"Lattice", "Properties", "pbc", "energy", "forces", "stress", "free_energy", "magmom", "magmoms", "dipole"}
    | {"charges", "energies", "virial"}
)


def frame(atoms: Atoms, prediction: Prediction, momenta: NDArray[np.float64] | None = None) -> str:
    """One frame: positions, cell and predictions, and those entries of `atoms.info` that are plain values.

    Energies stand under `energy` (eV), forces under `forces` (eV/Å), stress under `stress` (eV/Å³, nine numbers), so that
    ASE reads them as results of a calculator; scalars stand under their label. Momenta, if given, are in ASE's unit.
    """
    columns = [np.asarray(atoms.get_positions(), dtype=np.float64)]
    properties = "species:S:1:pos:R:3"
    if prediction.forces is not None:
        columns.append(prediction.forces)
        properties += ":forces:R:3"
    if momenta is not None:
        columns.append(momenta)
        properties += ":momenta:R:3"
    values = {"Lattice": _lattice(atoms), "Properties": properties, "pbc": " ".join("TF"[not p] for p in atoms.pbc)}
    if prediction.energy is not None:
        values["energy"] = _number(prediction.energy)
    if prediction.stress is not None:
        xx, yy, zz, yz, xz, xy = map(_number, prediction.stress.tolist())
        values["stress"] = " ".join((xx, xy, xz, xy, yy, yz, xz, yz, zz))
    values |= {label: _number(x) for label, x in prediction.scalars.items()}
    values |= {k: _plain(v) for k, v in atoms.info.items() if k not in values and _keeps(k, v)}
    header = " ".join(f"{key}={_quoted(text)}" for key, text in values.items() if text)
    numbers: NDArray[np.float64] = np.concatenate(columns, axis=1)
    rows = [
        " ".join((symbol, *map(_number, row)))
        for symbol, row in zip(atoms.get_chemical_symbols(), numbers.tolist(), strict=True)
    ]
    return "\n".join((str(len(atoms)), header, *rows)) + "\n"


def _number(x: float) -> str:
    """All digits of a float64."""
    return f"{x:.16e}"


def _lattice(atoms: Atoms) -> str:
    """Cell vectors one after the other; nothing where there is no cell at all."""
    cell = np.asarray(atoms.cell, dtype=np.float64)
    return " ".join(map(_number, cell.ravel().tolist())) if cell.any() else ""


def _keeps(key: Any, value: Any) -> bool:
    """Whether an entry of `atoms.info` can be written, and read back as what it was."""
    named = isinstance(key, str) and re.fullmatch(r"[A-Za-z_][\w-]*", key) is not None and key not in _RESERVED
    return named and isinstance(value, (str, bool, int, float, np.number, np.bool_)) and "\n" not in str(value)


def _plain(value: Any) -> str:
    """Text of an entry of `atoms.info`."""
    if isinstance(value, (bool, np.bool_)):
        return "T" if value else "F"
    return _number(float(value)) if isinstance(value, (float, np.floating)) else str(value)


def _quoted(text: str) -> str:
    """In quotes where the format needs them."""
    if re.fullmatch(r"[\w.:+-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
