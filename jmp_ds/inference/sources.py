"""Structures to compute, from any file that ASE reads or from a store, with their labels, from any number on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.bundle import Bundle
from jmp_ds.errors import UserError

if TYPE_CHECKING:
    from ase import Atoms

    from jmp_ds.data.record import Record

#: Names under which files carry the values to compare with, the safest first.
LABEL_NAMES = {"energy": ("REF_energy",), "forces": ("REF_forces",), "stress": ("REF_stress",)}
_MARKER = "complete.json"


@dataclass(frozen=True)
class Given:
    """One structure and what is known of it.

    Attributes:
        atoms: the structure.
        labels: `energy` (eV), `forces` [n, 3] (eV/Å), `stress` [6] (eV/Å³) and scalars, as far as they are there.
        fixed: bool [n], atoms that were held in place.
        unread: entries of a file's `info` that are no numbers; where a label was meant, messages show them.
    """

    atoms: Atoms
    labels: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    fixed: NDArray[np.bool_] | None = None
    unread: Mapping[str, Any] = field(default_factory=dict)


class Source:
    """Structures in the order of a file or store.

    Attributes:
        path: as given.
        is_store: whether it is a store, whose tags are OCP's.
        total: how many there are; None where a file does not tell without being read.
    """

    def __init__(self, path: str | Path) -> None:
        """Look at it.

        Raises:
            UserError: there is no such file or store.
        """
        self.path = Path(path)
        self.is_store = (self.path / _MARKER).is_file()
        self.total: int | None = None
        self._selects = not self.path.exists() and "@" in self.path.name
        if self.is_store:
            from jmp_ds.data.store import Store  # needs lmdb, which predictions from files do without

            self._store = Store(self.path).with_readahead()
            self.total = len(self._store)
        elif not self._file.is_file():
            raise UserError(f"{path}: no such file or store")

    @property
    def _file(self) -> Path:
        return Path(str(self.path).rpartition("@")[0]) if self._selects else self.path

    def identity(self) -> dict[str, Any]:
        """What tells this source from another, and from itself after a change; plain JSON values."""
        if self.is_store:
            return {"source": str(self.path.resolve()), "contents": self._store.summary.fingerprint}
        facts = self._file.stat()
        return {"source": str(self.path.resolve()), "contents": f"{facts.st_size} bytes, {facts.st_mtime_ns}"}

    def read(self, start: int = 0) -> Iterator[Given]:
        """From number `start` on.

        Raises:
            UserError: the file cannot be read.
        """
        if self.is_store:
            yield from (_of_record(record) for record in self._store.range(start, len(self._store)))
            return
        import ase.io

        index: dict[str, Any] = {} if self._selects else {"index": f"{start}:"}
        try:
            frames = ase.io.iread(str(self.path), **index)
            for atoms in islice(frames, start, None) if self._selects else frames:
                yield _of_atoms(atoms)
        except UserError:
            raise
        except Exception as error:  # readers of many formats, each with exceptions of its own
            raise UserError(f"{self.path}: ASE cannot read it ({type(error).__name__}: {error})") from error


def digest(bundle: Bundle) -> str:
    """Short hash of everything in a bundle that decides predictions."""
    found = hashlib.sha256(repr((bundle.config.to_dict(), [t.to_dict() for t in bundle.tasks])).encode())
    for name in sorted(bundle.state):
        found.update(name.encode())
        found.update(bundle.state[name].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _of_record(record: Record) -> Given:
    """A record of a store."""
    from ase import Atoms
    from ase.constraints import FixAtoms

    atoms = Atoms(record.atomic_numbers, record.pos, cell=record.cell, pbc=record.pbc, tags=record.tags)
    atoms.info = {**record.info, "id": record.id}
    if record.fixed.any():
        atoms.set_constraint(FixAtoms(mask=record.fixed))
    return Given(atoms, record.labels, record.fixed)


def _of_atoms(atoms: Atoms) -> Given:
    """ASE's atoms: results of their calculator without the effect of constraints, then entries of `info` and `arrays`."""
    from ase.constraints import FixAtoms

    results = dict(getattr(atoms.calc, "results", {}))
    labels: dict[str, Any] = {k: v for k, v in atoms.info.items() if isinstance(v, (int, float, np.number, np.bool_))}
    unread = {k: v for k, v in atoms.info.items() if k not in labels}
    labels |= {name: results[name] for name in LABEL_NAMES if results.get(name) is not None}
    for name, others in LABEL_NAMES.items():
        for other in others:
            found = atoms.arrays.get(other, atoms.info.get(other))
            if found is not None:
                labels[name] = found
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    return Given(atoms, {k: np.asarray(v, dtype=np.float64) for k, v in labels.items()}, fixed, unread)
