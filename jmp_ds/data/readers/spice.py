"""SPICE release: HDF5, one group per molecule; bohr and Hartree; a gradient, of which forces are the negative.

Charged molecules (their charge stands only in the SMILES text) are refused unless told to ignore charges.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jmp_ds.data.readers.arrays import hdf5_names, hdf5_units, open_hdf5
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions, chosen_units, refuse_charged
from jmp_ds.data.record import BadRecord
from jmp_ds.data.units import ENERGY, LENGTH

ABOUT = About(
    title="SPICE release, HDF5",
    units="Hartree, bohr, Hartree/bohr (gradient)",
    energy="total electronic energy (level total, default) or formation energy (level formation)",
    level_of_theory="wB97M-D3(BJ)/def2-TZVPPD",
    licence="CC0",
    citation="Eastman et al., Sci. Data 10, 11 (2023)",
    patterns=("*.h5", "*.hdf5"),
    labels={"energy": "eV", "forces": "eV/Å"},
)
_CHARGE = re.compile(r"\[[^\]]*?([+-]+)(\d*)(?::\d+)?\]")


_KEYS = ("atomic_numbers", "conformations", "dft_total_gradient")


def units(path: Path, options: ReaderOptions) -> tuple[int, int]:
    """Groups (molecules) of the file.

    Raises:
        UserError: not such a file.
    """
    return hdf5_units(path, *_KEYS, _energy_key(options))


def _energy_key(options: ReaderOptions) -> str:
    return "formation_energy" if options.level == "formation" else "dft_total_energy"


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every conformer; the group is the molecule. Option level: `total` (default) or `formation` for the energy.

    Raises:
        UserError: not such a file.
    """
    key = _energy_key(options)
    collector = Collector({"energy": "formation energy" if options.level == "formation" else "total electronic energy"})
    with open_hdf5(path) as file:
        names = hdf5_names(file, *_KEYS, key)
        chosen = chosen_units(options, len(names))
        for at, name in zip(chosen, names[chosen.start : chosen.stop], strict=True):
            group = file[name]
            numbers = group["atomic_numbers"][()]
            pos = group["conformations"][()].astype(np.float64) * LENGTH["bohr"]
            energy = group[key][()] * ENERGY["Ha"]
            # What is stored is dE/dx, not the force.
            forces = group["dft_total_gradient"][()].astype(np.float64) * (-ENERGY["Ha"] / LENGTH["bohr"])
            smiles = _first_text(group["smiles"]) if "smiles" in group else ""
            subset = _first_text(group["subset"]) if "subset" in group else ""
            info = {"subset": subset} if subset else {}
            for i in range(len(energy)):
                where = f"{name}#{i}"
                try:
                    refuse_charged({"charge": smiles_charge(smiles)}, options)
                except BadRecord as bad:
                    collector.skip(bad, where)
                    continue
                labels = {"energy": energy[i], "forces": forces[i]}
                collector.add(where, pos=pos[i], atomic_numbers=numbers, id=where, group=name, labels=labels, info=info)
                if collector.full:
                    yield collector.take((at - chosen.start + (i + 1) / len(energy)) / len(chosen))
    yield collector.take(1.0)


def smiles_charge(smiles: str) -> int:
    """Sum of the formal charges of the bracketed atoms of a SMILES text, such as [NH4+], [O-:3], [Ca+2] or [Fe++]."""
    total = 0
    for signs, digits in _CHARGE.findall(smiles):
        sign = 1 if signs[0] == "+" else -1
        total += sign * (int(digits) if digits else len(signs))
    return total


def _first_text(dataset: Any) -> str:
    """First entry of a data set of texts."""
    value = np.asarray(dataset[()]).reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)
