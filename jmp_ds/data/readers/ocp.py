"""Pickled records of PyTorch Geometric: LMDB files of OC20 and OC22 (S2EF), and of sets prepared in the same way.

LMDB files hold pickled `Data` under the keys 0, 1, ... and perhaps `length`; a file .pkl or .pt holds a list of them.
They are read by a restricted unpickler (`jmp_ds.record_pickle`), never by pickle or torch.load. What `y` is, the record
does not say: the adsorption energy in OC20's S2EF, the total energy in OC22's and in molecular sets prepared this way.
Tags are OCP's (0 bulk, 1 surface, 2 adsorbate).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from jmp_ds.data.environments import read_only
from jmp_ds.data.readers.ase_any import label_array, plain_info
from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions, chosen_units
from jmp_ds.data.record import BadRecord
from jmp_ds.errors import UserError
from jmp_ds.legacy_pickle import Placeholder, RefusedFile, read_torch_file
from jmp_ds.record_pickle import fields_of, read_record

ABOUT = About(
    title="pickled records of PyTorch Geometric: OC20/OC22 *.lmdb, lists in *.pkl or *.pt",
    units="eV, Å, eV/Å",
    energy="the records' y: adsorption energy in OC20 S2EF, total energy in OC22 and in molecular sets",
    patterns=("*.lmdb", "*.pkl", "*.pt"),
    labels={"energy": "eV", "forces": "eV/Å"},
)
PORTION = 5_000
#: A record larger than this is none.
_LARGEST = 256 << 20
_TAKEN = {"pos", "cell", "atomic_numbers", "z", "natoms", "tags", "fixed", "force", "forces", "y", "pbc"}
_GRAPHS = {"edge_index", "cell_offsets", "distances", "neighbors", "edge_attr", "x"}


def units(path: Path, options: ReaderOptions) -> tuple[int, int]:
    """Records of an LMDB file; a pickled list is one portion.

    Raises:
        UserError: not such a file.
    """
    return (_length(path), PORTION) if path.suffix == ".lmdb" else (1, 1)


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every record; the group is the system (`sid`), so that a relaxation is never cut by a split.

    Heeds level (`relaxed`: `y_relaxed` is the energy), labels (keys of the record), group_key, id_key and span.

    Raises:
        UserError: not such a file, or it asks for code to be run.
    """
    collector = Collector()
    for at, count, record in _records(path, options):
        where = f"{path.name}#{at}"
        try:
            collector.add(where, **_fields(record, where, options))
        except BadRecord as bad:
            collector.skip(bad, where)
        if collector.full:
            yield collector.take((at + 1) / count)
    yield collector.take(1.0)


def _fields(record: Any, where: str, options: ReaderOptions) -> dict[str, Any]:
    """What `make_record` needs, of the fields of one record.

    Raises:
        BadRecord: a field is missing or makes no sense.
    """
    if not isinstance(record, Mapping):
        raise BadRecord("unreadable", f"holds {type(record).__name__}, not a structure")
    numbers = record.get("atomic_numbers", record.get("z"))
    if numbers is None or "pos" not in record:
        raise BadRecord("unreadable", f"no atomic_numbers and pos; there are {sorted(record)}")
    cell = np.asarray(record["cell"], dtype=np.float64).reshape(3, 3) if "cell" in record else None
    labels = _labels(record, options)
    info = {key: value for key, value in record.items() if key not in _TAKEN | _GRAPHS}
    group_key = options.group_key or "sid"
    if options.group_key and options.group_key not in record:
        raise BadRecord("missing_label", f"no key {options.group_key!r} for the group; there are {sorted(record)}")
    return {
        "pos": record["pos"],
        "atomic_numbers": np.asarray(numbers).reshape(-1),
        "cell": cell,
        "pbc": _periodic(record, cell),
        "labels": labels,
        "tags": None if "tags" not in record else np.asarray(record["tags"]).reshape(-1),
        "fixed": None if "fixed" not in record else np.asarray(record["fixed"]).reshape(-1) != 0,
        "id": str(_plain(record.get(options.id_key, where))) if options.id_key else where,
        "group": str(_plain(record[group_key])) if group_key in record else "",
        "info": plain_info(info),
    }


def _labels(record: Mapping[str, Any], options: ReaderOptions) -> dict[str, Any]:
    """Energy and forces as the format has them, and what the user names."""
    labels: dict[str, Any] = {}
    energy = record.get("y_relaxed" if options.level == "relaxed" else "y")
    forces = record.get("force", record.get("forces"))
    if energy is not None and np.size(energy) == 1:
        labels["energy"] = label_array("energy", energy)
    if forces is not None and options.level != "relaxed":
        labels["forces"] = forces
    for spec in options.labels:
        if spec.key not in record:
            raise BadRecord("missing_label", f"{spec.name}: no key {spec.key!r}; there are {sorted(record)}")
        labels[spec.name] = spec.unit.factor * label_array(spec.name, record[spec.key])
    return labels


def _periodic(record: Mapping[str, Any], cell: Any) -> Any:
    """Periodicity: as the record says; slabs do not say and are periodic if they have a cell."""
    if "pbc" in record:
        return np.asarray(record["pbc"]).reshape(-1) != 0
    return None if cell is None or not np.abs(cell).max() > 0 else [True] * 3


def _plain(value: Any) -> Any:
    """A number or text that may be an array of one entry."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _records(path: Path, options: ReaderOptions) -> Iterator[tuple[int, int, Any]]:
    """(position, how many, record) of the chosen ones."""
    if path.suffix == ".lmdb":
        yield from _of_lmdb(path, options)
        return
    listed = _listed(path)
    for at, record in enumerate(listed):
        yield at, len(listed), record


def _of_lmdb(path: Path, options: ReaderOptions) -> Iterator[tuple[int, int, Any]]:
    count = _length(path)
    with read_only(path, readahead=True).begin(buffers=True) as transaction:
        for at in chosen_units(options, count):
            data = transaction.get(str(at).encode())
            if data is None:
                raise UserError(f"{path}: there is no record {at} of {count}; is the file complete?")
            if len(data) > _LARGEST:
                raise UserError(f"{path}: record {at} has {len(data)} bytes, which no structure needs")
            try:
                yield at, count, read_record(bytes(data))
            except RefusedFile as error:
                raise UserError(f"{path}: record {at} {error}") from None


def _length(path: Path) -> int:
    """Records in an LMDB file: what `length` says, but never more than there are."""
    try:
        environment = read_only(path, readahead=True)
        entries = int(environment.stat()["entries"])
        with environment.begin() as transaction:
            stored = transaction.get(b"length")
    except lmdb.Error as error:
        raise UserError(f"{path}: cannot be read as LMDB: {error}") from error
    if stored is None:
        return entries
    try:
        length = int(_plain(read_record(stored)))
    except (RefusedFile, TypeError, ValueError) as error:
        raise UserError(f"{path}: its `length` cannot be read: {error}") from None
    if not 0 <= length <= entries - 1:
        raise UserError(f"{path}: `length` says {length} records, the file holds {entries - 1}")
    return length


def _listed(path: Path) -> list[Any]:
    """Records of a pickled list, by torch.save or pickle alone."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped or path.suffix == ".pt":
        value = read_torch_file(path)
        listed = [_from_torch(item) for item in value] if isinstance(value, list | tuple) else value
    else:
        try:
            listed = read_record(path.read_bytes())
        except RefusedFile as error:
            raise UserError(f"{path} {error}") from None
    if not isinstance(listed, list):
        raise UserError(f"{path} holds no list of records")
    return listed


def _from_torch(item: Any) -> Any:
    """Fields of one entry of a torch.save list, tensors as arrays."""
    fields = fields_of(item) if isinstance(item, Placeholder) else item
    if not isinstance(fields, Mapping):
        return fields
    return {str(key): value.numpy() if hasattr(value, "numpy") else value for key, value in fields.items()}
