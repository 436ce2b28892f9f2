"""Crystal structures as table cells hold them: pymatgen dictionaries, CIF and POSCAR text, pymatgen's printed form.

All are periodic along all three axes unless a dictionary says otherwise.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import cellpar_to_cell
from ase.io.cif import CIFBlock, parse_cif
from ase.io.vasp import read_vasp

from jmp_ds.data.readers.arrays import numbers_of
from jmp_ds.data.record import BadRecord

_OPERATIONS = ("_space_group_symop_operation_xyz", "_space_group_symop.operation_xyz", "_symmetry_equiv_pos_as_xyz")
_SPACE_GROUPS = (
    *("_space_group_it_number", "_space_group.it_number", "_symmetry_int_tables_number"),
    *("_symmetry_space_group_name_h-m", "_space_group_name_h-m_alt"),
)
_OXIDATION = re.compile(r"[0-9.]*[+-]$")
#: Isotopes that tables write as elements.
_ISOTOPES = {"D": "H", "T": "H"}


def structure_fields(value: Any) -> dict[str, Any]:
    """pos (Å), atomic_numbers, cell (Å, rows) and pbc of a table's cell, whatever of the above it holds.

    Raises:
        BadRecord: `unreadable`, or `disordered` for partial occupation.
    """
    try:
        if isinstance(value, Mapping):
            return from_dict(value)
        text = str(value)
        head = text.lstrip()
        if head.startswith("{"):
            return structure_fields(_dictionary(head))
        if "_cell_length_a" in text:
            return from_cif(text)
        if head.startswith(("Full Formula", "Structure Summary")) or "\nSites (" in text:
            return from_printed(text)
        return from_poscar(text)
    except BadRecord:
        raise
    except Exception as error:
        # The parsers of ASE raise whatever they stumble over; here one structure of a table is at fault.
        raise BadRecord("unreadable", f"{type(error).__name__}: {error}; text begins {str(value)[:40]!r}") from error


def from_dict(value: Mapping[str, Any]) -> dict[str, Any]:
    """A pymatgen `Structure` or `Molecule` as a dictionary, or one that holds a structure under `structure` or `poscar`.

    Raises:
        BadRecord: `disordered`.
    """
    if "sites" not in value:
        # Tables of the Materials Project keep both; the POSCAR text is the one without symmetry to be applied.
        return structure_fields(value["poscar"] if "poscar" in value else value["structure"])
    symbols, cartesian = [], []
    cell = np.array(value["lattice"]["matrix"], dtype=float) if "lattice" in value else None
    for site in value["sites"]:
        species = site["species"]
        if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
            raise BadRecord("disordered", f"a site holds {species}")
        symbols.append(_element(species[0]["element"]))
        # Cartesian coordinates are stored rounded or stale in some tables; the fractional ones define a crystal.
        cartesian.append(np.array(site["abc"]) @ cell if cell is not None and "abc" in site else np.array(site["xyz"]))
    pbc = value.get("lattice", {}).get("pbc", [True] * 3) if cell is not None else [False] * 3
    return {"pos": np.array(cartesian), "atomic_numbers": numbers_of(symbols), "cell": cell, "pbc": pbc}


def from_cif(text: str) -> dict[str, Any]:
    """The first structure of a CIF text, symmetry applied.

    A file without symmetry (space group P 1, all that computed structures usually have) is taken as it stands: ASE's way
    through the symmetry operations takes half a second for 250 atoms.

    Raises:
        BadRecord: `disordered` if a site is not fully occupied, `unreadable` if there is no structure.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = next((b for b in parse_cif(io.StringIO(text)) if b.has_structure()), None)
        if block is None:
            raise BadRecord("unreadable", "the CIF text holds no structure")
        for occupancy in block.get("_atom_site_occupancy") or []:
            if isinstance(occupancy, int | float) and abs(occupancy - 1) > 1e-6:
                raise BadRecord("disordered", f"a site is occupied to {occupancy:g}")
        if not _has_symmetry(block):
            return {**_fields(block.get_unsymmetrized_structure()), "pbc": [True] * 3}
        return _fields(block.get_atoms(fractional_occupancies=False))


def _has_symmetry(block: CIFBlock) -> bool:
    """Whether anything but the identity is to be applied to the sites."""
    for key in _OPERATIONS:
        if key in block:
            operations = [block[key]] if isinstance(block[key], str) else block[key]
            return any(re.sub(r"[\s'\"+]", "", str(op)).lower() != "x,y,z" for op in operations)
    groups = [str(block[key]).strip("' ") for key in _SPACE_GROUPS if key in block]
    return any(group not in ("1", "P 1", "P1") for group in groups)


def from_poscar(text: str) -> dict[str, Any]:
    """A POSCAR text of VASP 5."""
    return _fields(read_vasp(io.StringIO(text)))


def from_printed(text: str) -> dict[str, Any]:
    """What pymatgen prints for a structure: abc, angles and fractional coordinates, which carry six decimals or fewer.

    Raises:
        BadRecord: `unreadable` or `disordered`.
    """
    lines = text.strip().splitlines()
    rows = {line.split(":")[0].strip(): line.split(":", 1)[1] for line in lines if ":" in line}
    lengths, angles = (np.array(rows[key].split()[:3], dtype=float) for key in ("abc", "angles"))
    count = int(next(re.findall(r"\((\d+)\)", line)[0] for line in lines if line.startswith("Sites")))
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("---")) + 1
    sites = [line.split() for line in lines[start : start + count]]
    if len(sites) != count:
        raise BadRecord("unreadable", f"{len(sites)} sites are printed where {count} are announced")
    if any(":" in site[1] for site in sites):
        raise BadRecord("disordered", "a printed site holds several elements")
    cell = cellpar_to_cell([*lengths, *angles])
    fractional = np.array([site[2:5] for site in sites], dtype=float)
    numbers = numbers_of([_element(site[1]) for site in sites])
    return {"pos": fractional @ cell, "atomic_numbers": numbers, "cell": cell, "pbc": [True] * 3}


def _dictionary(text: str) -> Any:
    """A dictionary written as JSON, or as a literal by Python 2 (u'...'); literals are parsed, nothing is executed."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return ast.literal_eval(text)


def _element(symbol: str) -> str:
    """The element of a species such as Fe2+ or D."""
    bare = _OXIDATION.sub("", symbol)
    return _ISOTOPES.get(bare, bare)


def _fields(atoms: Atoms) -> dict[str, Any]:
    return {"pos": atoms.positions, "atomic_numbers": atoms.numbers, "cell": atoms.cell.array, "pbc": atoms.pbc}
