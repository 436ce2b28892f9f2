"""Anything ASE reads: extxyz, .traj, .db, VASP's vasprun.xml and OUTCAR (also gzipped), CIF and more.

Units are ASE's: eV, Å, eV/Å, eV/Å³; the exception is a .db whose own metadata names other units (SchNetPack's layout),
or a label for which the user names one. Labels are read from the stored results, never through `get_forces()`, which
would zero the forces of fixed atoms. `energy` is ASE's energy (extrapolated to zero smearing), not the free energy.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.db import connect
from ase.io import iread

from jmp_ds.data.readers.base import NOT_READ, About, Block, Collector, ReaderOptions, refuse_charged
from jmp_ds.data.record import BadRecord, FloatArray, InfoValue
from jmp_ds.data.units import LENGTH, spell, unit
from jmp_ds.errors import UserError

ABOUT = About(
    title="any file ASE reads (extxyz, traj, db, VASP output, CIF, ...)",
    units="eV, Å, eV/Å, eV/Å^3 (ASE); in a .db the units its metadata names",
    energy="ASE's energy: extrapolated to zero smearing where the code does so, not the free energy",
    patterns=(
        *("*.extxyz", "*.xyz", "*.traj", "*.db", "*vasprun.xml", "*vasprun.xml.gz", "*OUTCAR", "*OUTCAR.gz", "*.cif"),
        *("*.vasp", "*CONTCAR", "*POSCAR", "*.poscar"),
    ),
    labels={"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"},
)

#: Keys by which published files name what their frames belong to; the option group_key names another.
GROUP_KEYS = ("group_key", "traj_id", "mptrj_traj_id", "alexandria_id", "internal_id", "material_id", "sid", "smiles")
#: Files of one trajectory: the file is the group. VASP outputs are told by their names.
_TRAJECTORY = (".traj", "outcar", "outcar.gz", "vasprun.xml", "vasprun.xml.gz", "xdatcar")
_LONGEST_INFO = 200
#: Per-atom values with a meaning of their own in ASE.
_OWN_ARRAYS = ("numbers", "positions", "tags", "momenta", "masses", "initial_charges", "initial_magmoms")


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every structure of one file.

    Heeds the options labels (keys of info, arrays, a database row's data or key-value pairs), group_key, id_key, tags
    and ignore_charge. Labels `REF_energy`, `REF_forces` and `REF_stress` are taken instead of `energy`, `forces` and
    `stress` in a frame that has any of them, so that two levels of theory are never mixed.

    Raises:
        UserError: ASE cannot read the file.
    """
    frames = _rows(path) if path.suffix == ".db" else _frames(path)
    collector = Collector()
    count = 0
    while True:
        where = f"{path.name}#{count}"
        try:
            frame = next(frames)
        except StopIteration:
            break
        except UserError:
            raise
        except Exception as error:
            # ASE raises whatever its parsers stumble over; the file is at fault, so the user is told which and where.
            raise UserError(f"{path}: structure {count} cannot be read: {type(error).__name__}: {error}") from error
        count += 1
        try:
            if isinstance(frame, BadRecord):
                raise frame
            collector.facts.update(frame.facts)
            if ignored := unread(frame.atoms, options):
                collector.facts[NOT_READ] = ", ".join(ignored)
            fields = fields_of(frame.atoms, frame.results, frame.info, options)
        except BadRecord as bad:
            collector.skip(bad, where)
        else:
            fields["id"] = where if not fields["id"] else fields["id"]
            if not fields["group"] and path.name.lower().endswith(_TRAJECTORY):
                fields["group"] = path.name
            collector.add(where, **fields)
        if collector.full:
            yield collector.take()
    yield collector.take()


def fields_of(
    atoms: Atoms, results: Mapping[str, Any], facts: Mapping[str, Any], options: ReaderOptions
) -> dict[str, Any]:
    """What `make_record` needs, of one ASE structure.

    Args:
        atoms: the structure; its arrays may hold labels too.
        results: calculated properties in ASE's units.
        facts: the frame's info, or a row's key-value pairs and data.
        options: see `blocks`.

    Raises:
        BadRecord: a charge or spin, a label that was asked for but is absent, or a stress that is none.
    """
    charges = atoms.arrays.get("initial_charges")
    total = {} if charges is None else {"charge": round(float(np.sum(charges)), 3)}
    refuse_charged({**total, **facts}, options)
    labels = standard_labels({**results}, {**facts, **atoms.arrays})
    for spec in options.labels:
        value = _find(spec.key, results, facts, atoms.arrays)
        if value is None:
            present = sorted({*results, *facts, *atoms.arrays} - {"numbers", "positions"})
            raise BadRecord("missing_label", f"{spec.name}: no key {spec.key!r}; there are {present}")
        labels[spec.name] = spec.unit.factor * label_array(spec.name, value, per_atom=spec.key in atoms.arrays)
    return {
        "pos": atoms.positions,
        "atomic_numbers": atoms.numbers,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "labels": labels,
        "tags": atoms.get_tags() if options.tags == "ocp" else None,
        "fixed": fixed_atoms(atoms),
        "id": str(facts.get(options.id_key, "")) if options.id_key else "",
        "group": group_of(facts, options),
        "info": plain_info(facts),
    }


def unread(atoms: Atoms, options: ReaderOptions) -> list[str]:
    """Names of per-atom numbers that no label is made of, though they might be one under another name."""
    named = {spec.key for spec in options.labels}
    known = {*_OWN_ARRAYS, *ABOUT.labels, *(f"REF_{name}" for name in ABOUT.labels), *named}
    return sorted(key for key, array in atoms.arrays.items() if key not in known and array.dtype.kind == "f")


def standard_labels(results: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, FloatArray]:
    """Energy, forces and stress, whichever are there; see `blocks` on REF_ keys."""
    found: dict[str, Any] = {}
    if any(f"REF_{name}" in extra for name in ABOUT.labels):
        found = {name: extra[f"REF_{name}"] for name in ABOUT.labels if f"REF_{name}" in extra}
    else:
        for name in ABOUT.labels:
            value = results.get(name, extra.get(name))
            if value is not None:
                found[name] = value
    labels: dict[str, FloatArray] = {}
    for name, value in found.items():
        labels[name] = label_array(name, value)
    return labels


def label_array(name: str, value: Any, *, per_atom: bool = False) -> FloatArray:
    """A label's value in its shape: a list with one number is a number, unless it belongs to the one atom there is.

    Raises:
        BadRecord: it is not made of numbers, or a stress in no known shape.
    """
    if name == "stress":
        return stress_voigt(value)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadRecord("unreadable", f"label {name!r} is not made of numbers: {str(value)[:60]!r}") from error
    return array.reshape(()) if array.size == 1 and not per_atom else array


def stress_voigt(value: Any) -> FloatArray:
    """A stress as [6] in Voigt order xx, yy, zz, yz, xz, xy, from [6], [9] or [3, 3].

    Raises:
        BadRecord: another shape, or a tensor that is not symmetric to 1 % of its largest entry.
    """
    array = np.asarray(value, dtype=np.float64)
    if array.shape == (6,):
        return array
    if array.size != 9:
        raise BadRecord("shape", f"a stress has 6 or 9 entries, this one has shape {array.shape}")
    tensor = array.reshape(3, 3)
    if np.abs(tensor - tensor.T).max() > 0.01 * np.abs(tensor).max() + 1e-6:
        raise BadRecord("shape", f"the stress is not symmetric: {tensor.tolist()}")
    tensor = (tensor + tensor.T) / 2
    return np.array([tensor[0, 0], tensor[1, 1], tensor[2, 2], tensor[1, 2], tensor[0, 2], tensor[0, 1]])


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """Mask of atoms held in all three directions."""
    mask = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms) or (isinstance(constraint, FixCartesian) and np.all(constraint.mask)):
            mask[constraint.index] = True
    return mask


def group_of(facts: Mapping[str, Any], options: ReaderOptions) -> str:
    """The value of the option's key, or of the first known group key that is there.

    Raises:
        BadRecord: `missing_label` if the option names a key that is absent.
    """
    if options.group_key:
        if options.group_key not in facts:
            raise BadRecord("missing_label", f"no key {options.group_key!r} for the group; there are {sorted(facts)}")
        return str(facts[options.group_key])
    return next((str(facts[key]) for key in GROUP_KEYS if key in facts), "")


def plain_info(facts: Mapping[str, Any]) -> dict[str, InfoValue]:
    """Those facts that are short plain values; labels and arrays are left out."""
    info: dict[str, InfoValue] = {}
    for key, value in facts.items():
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
            value = value.item()
        if isinstance(value, bool | np.bool_):
            info[str(key)] = int(value)
        elif isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST_INFO):
            info[str(key)] = value
    return info


def _find(key: str, *places: Mapping[str, Any]) -> Any:
    """The first value under a key."""
    return next((place[key] for place in places if key in place and place[key] is not None), None)


@dataclass(frozen=True)
class _Frame:
    """One structure as read: calculated properties, other values, and what the file says about itself."""

    atoms: Atoms
    results: dict[str, Any]
    info: dict[str, Any]
    facts: dict[str, str] = field(default_factory=dict)


def _frames(path: Path) -> Iterator[_Frame | BadRecord]:
    """Frames of a file that is not a database."""
    for atoms in iread(path, index=":", do_not_split_by_at_sign=True):
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        yield _Frame(atoms, results, dict(atoms.info))


def _rows(path: Path) -> Iterator[_Frame | BadRecord]:
    """Rows of an ASE database; values that its metadata gives units for are converted."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    database = connect(str(path))
    metadata = dict(database.metadata)
    units = {str(k): unit(str(v)) for k, v in metadata.get("_property_unit_dict", {}).items()}
    distance = str(metadata.get("_distance_unit", "Å"))
    if spell(distance) not in LENGTH:
        raise UserError(f"{path}: its metadata gives lengths in {distance!r}, which is not a known unit")
    for row in database.select():
        atoms = row.toatoms()
        atoms.set_cell(atoms.cell * LENGTH[spell(distance)], scale_atoms=False)
        atoms.positions *= LENGTH[spell(distance)]
        try:
            data = decode_data(row.data)
        except BadRecord as bad:
            yield bad
            continue
        named = {key: np.asarray(value, float) * units[key].factor for key, value in data.items() if key in units}
        plain = {key: value for key, value in data.items() if key in named or key not in ABOUT.labels}
        results = dict(atoms.calc.results) if atoms.calc is not None else {}
        refs = metadata.get("atomrefs")
        facts = {"atomrefs": _atomrefs_note(refs, named, atoms.numbers)} if refs else {}
        yield _Frame(atoms, results, {**row.key_value_pairs, **plain, **named}, facts)


def decode_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """A row's data, with values that were stored as base64 text beside `_shape_X` and `_dtype_X` turned into arrays.

    Raises:
        BadRecord: `unreadable` if such a value does not fit its shape or type.
    """
    out: dict[str, Any] = {}
    for key, value in data.items():
        if key.startswith(("_shape_", "_dtype_")):
            continue
        if isinstance(value, str) and f"_dtype_{key}" in data:
            try:
                shape = [int(n) for n in str(data[f"_shape_{key}"]).strip("[]() ").split(",") if n.strip()]
                dtype = np.dtype(str(data[f"_dtype_{key}"]))
                if dtype.kind not in "fiub":
                    raise ValueError(f"dtype {dtype}")
                value = np.frombuffer(base64.b64decode(value, validate=True), dtype=dtype).reshape(shape)
            except (binascii.Error, KeyError, TypeError, ValueError) as error:
                raise BadRecord("unreadable", f"data value {key!r} cannot be decoded: {error}") from error
        out[key] = value
    return out


def _atomrefs_note(atomrefs: Mapping[str, Any], labels: Mapping[str, Any], numbers: np.ndarray) -> str:
    """Whether the file's per-element references have been subtracted from its energies, judged by a row's size."""
    if "energy" not in atomrefs or "energy" not in labels:
        return f"the source lists per-element references for {sorted(atomrefs)}; values are stored as they are in it"
    total = abs(float(np.asarray(atomrefs["energy"], float)[numbers].sum()))
    size = abs(float(np.asarray(labels["energy"]).sum())) / 27.2
    if size < 0.5 * total:
        return (
            "energies are stored as in the source: relative to its per-element references, which are subtracted already"
        )
    return "energies are stored as in the source: totals, its per-element references are not subtracted"
