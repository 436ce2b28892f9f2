"""Readers, one file per on-disk format: files in, blocks of records out, and what was skipped and why.

A reader is a module with `ABOUT` (what the format is, its units, its level of theory) and `blocks(path, options)`; where
parts of a file can be read apart from one another, also `units(path, options)` (see `base.Reader`).
Units are never guessed from the names of keys: the person who converts names the format, and the format states its
units.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from jmp_ds.errors import UserError

if TYPE_CHECKING:
    from jmp_ds.data.readers.base import Reader

#: Value of --format -> the module here that reads it.
READERS = {
    "ase": "ase_any",
    "s2ef": "s2ef",
    "ani1": "ani1",
    "ani1x": "ani1x",
    "ani2x": "ani2x",
    "qm7x": "qm7x",
    "qm9": "qm9",
    "qm7": "qm7",
    "qdf": "qdf",
    "transition1x": "transition1x",
    "md17": "md17",
    "rmd17": "rmd17",
    "md22": "md22",
    "spice": "spice",
    "mlearn": "mlearn",
    "table": "table",
    "ocp": "ocp",
    "aselmdb": "aselmdb",
    "qm9-pyg": "qm9_pyg",
    "qmof": "qmof",
    "pdbbind": "pdbbind",
    "cif": "cif",
}


def reader(name: str) -> Reader:
    """The reader of a format; its module (and the libraries it needs) is imported only now.

    Raises:
        UserError: no such format; the message lists the known ones.
    """
    from jmp_ds.data.readers.base import Reader

    if name not in READERS:
        raise UserError(f"unknown format {name!r}; known are {', '.join(sorted(READERS))}")
    module = importlib.import_module(f"jmp_ds.data.readers.{READERS[name]}")
    return Reader(name=name, about=module.ABOUT, blocks=module.blocks, units=getattr(module, "units", None))
