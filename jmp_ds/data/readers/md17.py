"""MD17 and sGDML: one molecule's molecular dynamics in an .npz with keys z, R, E, F; kcal/mol and Å.

QM7-X uses the same keys in eV (format `qm7x`): the keys say nothing about the units. An sGDML file may name its units
(`e_unit`, `r_unit`); then those are heeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jmp_ds.data.readers.arrays import need, open_npz
from jmp_ds.data.readers.base import BLOCK_SIZE, About, Block, Collector, ReaderOptions, chosen_units
from jmp_ds.data.readers.npz_rows import NpzFile
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


KEYS = {"z": "z", "R": "R", "E": "E", "F": "F"}
PORTION = 10_000


def units(path: Path, options: ReaderOptions) -> tuple[int, int]:
    """Frames of the file.

    Raises:
        UserError: not such a file.
    """
    return frames_of(path, KEYS)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every frame. The frames are of one trajectory, so they get no group: a split by molecule could not divide them.

    Raises:
        UserError: keys are missing or shapes do not fit.
    """
    yield from trajectory(path, KEYS, options)


def frames_of(path: Path, keys: dict[str, str]) -> tuple[int, int]:
    """Frames of a file with these keys, and how many make a portion."""
    need(open_npz(path), {"E": keys["E"]}, path)
    with NpzFile(path) as file:
        return int(np.prod(file.rows(keys["E"]).shape)), PORTION


def trajectory(path: Path, keys: dict[str, str], options: ReaderOptions) -> Iterator[Block]:
    """Frames of one molecule, kcal/mol unless the file names its units.

    Args:
        path: an .npz file.
        keys: names in the file of z [n], R [f, n, 3], E [f] or [f, 1] and F [f, n, 3].
        options: heeds span.

    Raises:
        UserError: keys are missing, shapes do not fit, or a named unit is unknown.
    """
    small = open_npz(path)
    numbers = need(small, {"z": keys["z"]}, path)["z"]
    text = {key: _text(small[key]) for key in ("name", "theory", "e_unit", "r_unit") if key in small}
    e, r = _factors(path, text)
    missing = [key for key in keys.values() if key not in small]
    if missing:
        raise UserError(f"{path} lacks {missing}, it has {sorted(small)}; is the format the right one?")
    info = {"molecule": text["name"]} if text.get("name") else {}
    collector = Collector({"level_of_theory": text["theory"]} if text.get("theory") else {})
    with NpzFile(path) as file:
        rows = {name: file.rows(keys[name]) for name in "REF"}
        frames = int(np.prod(rows["E"].shape))
        if numbers.ndim != 1 or rows["R"].shape != (frames, len(numbers), 3) or rows["F"].shape != rows["R"].shape:
            raise UserError(
                f"{path}: shapes do not fit one molecule: z {numbers.shape}, R {rows['R'].shape}, E {rows['E'].shape}, "
                f"F {rows['F'].shape}; padded files of many molecules are format qm7x"
            )
        chosen = chosen_units(options, frames)
        for array in rows.values():
            array.skip(chosen.start)
        for start in range(chosen.start, chosen.stop, BLOCK_SIZE):
            count = min(BLOCK_SIZE, chosen.stop - start)
            pos, forces = rows["R"].read(count) * r, rows["F"].read(count) * (e / r)
            energy = rows["E"].read(count).reshape(-1) * e
            for i in range(count):
                where = f"{path.stem}#{start + i}"
                labels = {"energy": energy[i], "forces": forces[i]}
                collector.add(where, pos=pos[i], atomic_numbers=numbers, id=where, labels=labels, info=info)
            yield collector.take((start + count - chosen.start) / len(chosen))
    yield collector.take(1.0)


def _factors(path: Path, text: dict[str, str]) -> tuple[float, float]:
    """eV per unit of energy and Å per unit of length in a file.

    Raises:
        UserError: it names units that are not known.
    """
    e_unit, r_unit = spell(text.get("e_unit") or "kcal/mol"), spell(text.get("r_unit") or "Å")
    if e_unit not in ENERGY or r_unit not in LENGTH:
        raise UserError(f"{path} names units {e_unit!r} and {r_unit!r}, which are not known")
    return ENERGY[e_unit], LENGTH[r_unit]


def _text(array: np.ndarray) -> str:
    """A text that NumPy stored as an array without dimensions."""
    value = array.item() if array.size == 1 else ""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise BadRecord("unreadable", str(error)) from error
