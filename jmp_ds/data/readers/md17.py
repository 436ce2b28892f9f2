"""MD17 and sGDML: one molecule's molecular dynamics in an .npz with keys z, R, E, F; kcal/mol and Å.

QM7-X uses the same keys in eV (format `qm7x`): the keys say nothing about the units. An sGDML file may name its units
(`e_unit`, `r_unit`); then those are heeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jmp_ds.data.readers.arrays import need, open_npz
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.record import BadRecord
from jmp_ds.data.units import ENERGY, LENGTH, spell
from jmp_ds.errors import UserError

ABOUT = About(
    title="MD17 or sGDML .npz (z, R, E, F), one molecule",
    units="kcal/mol, Å, kcal/mol/Å",
    energy="total electronic energy",
    level_of_theory="PBE+TS (MD17) or as the file says (sGDML)",
    licence="free with citation",
    citation="Chmiela et al., Sci. Adv. 3, e1603015 (2017); Chmiela et al., Nat. Commun. 9, 3887 (2018)",
    patterns=("*.npz",),
    labels={"energy": "eV", "forces": "eV/Å"},
)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every frame. The frames are of one trajectory, so they get no group: a split by molecule could not divide them.

    Raises:
        UserError: keys are missing or shapes do not fit.
    """
    yield from trajectory(path, {"z": "z", "R": "R", "E": "E", "F": "F"})


def trajectory(path: Path, keys: dict[str, str]) -> Iterator[Block]:
    """Frames of one molecule, kcal/mol unless the file names its units.

    Args:
        path: an .npz file.
        keys: names in the file of z [n], R [f, n, 3], E [f] or [f, 1] and F [f, n, 3].

    Raises:
        UserError: keys are missing, shapes do not fit, or a named unit is unknown.
    """
    file = open_npz(path)
    arrays = need(file, keys, path)
    numbers, pos, forces = arrays["z"], arrays["R"], arrays["F"]
    energy = arrays["E"].reshape(-1)
    frames = len(energy)
    if numbers.ndim != 1 or pos.shape != (frames, len(numbers), 3) or forces.shape != pos.shape:
        raise UserError(
            f"{path}: shapes do not fit one molecule: z {numbers.shape}, R {pos.shape}, E {arrays['E'].shape}, "
            f"F {forces.shape}; padded files of many molecules are format qm7x"
        )
    text = {key: _text(file[key]) for key in ("name", "theory", "e_unit", "r_unit") if key in file}
    e_unit, r_unit = spell(text.get("e_unit") or "kcal/mol"), spell(text.get("r_unit") or "Å")
    if e_unit not in ENERGY or r_unit not in LENGTH:
        raise UserError(f"{path} names units {e_unit!r} and {r_unit!r}, which are not known")
    e, r = ENERGY[e_unit], LENGTH[r_unit]
    facts = {"level_of_theory": text["theory"]} if text.get("theory") else {}
    info = {"molecule": text["name"]} if text.get("name") else {}
    collector = Collector(facts)
    for i in range(frames):
        where = f"{path.stem}#{i}"
        labels = {"energy": energy[i] * e, "forces": forces[i] * (e / r)}
        collector.add(where, pos=pos[i] * r, atomic_numbers=numbers, id=where, labels=labels, info=info)
        if collector.full:
            yield collector.take((i + 1) / frames)
    yield collector.take(1.0)


def _text(array: np.ndarray) -> str:
    """A text that NumPy stored as an array without dimensions."""
    value = array.item() if array.size == 1 else ""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise BadRecord("unreadable", str(error)) from error
