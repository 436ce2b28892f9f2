"""QMOF as published: a folder with qmof.json (properties) and qmof_structure_data.json (structures); eV and Å.

Both are read entry by entry: the structures alone take 3 GB of text. Entries belong together by `qmof_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jmp_ds.data.readers.base import About, Block, Collector, ReaderOptions
from jmp_ds.data.readers.json_items import items
from jmp_ds.data.readers.structures import structure_fields
from jmp_ds.data.readers.table import labels_of
from jmp_ds.data.record import BadRecord
from jmp_ds.data.units import LabelSpec, unit
from jmp_ds.errors import UserError

ABOUT = About(
    title="QMOF database: a folder with qmof.json and qmof_structure_data.json",
    units="Å; eV",
    level_of_theory="PBE-D3(BJ)",
    licence="CC BY 4.0",
    citation="Rosen et al., Matter 4, 1578 (2021); Rosen et al., npj Comput. Mater. 8, 112 (2022)",
    patterns=("qmof_structure_data.json", "qmof_structure_data.json.gz"),
    folder=True,
    labels={"gap": "eV"},
)
_GAP = LabelSpec("gap", "outputs.pbe.bandgap", unit("eV"))


def blocks(path: Path, options: ReaderOptions) -> Iterator[Block]:
    """Every structure in the order of the structure file; `info` holds its position there.

    Heeds labels: keys are paths of qmof.json such as `outputs.pbe.bandgap` (the default, as `gap`) or
    `outputs.pbe.energy_total`.

    Raises:
        UserError: a file is missing or no JSON list.
    """
    structures = _find(path, "qmof_structure_data.json")
    specs = options.labels or (_GAP,)
    properties = {str(entry.get("qmof_id")): _chosen(entry, specs) for entry in items(_find(path, "qmof.json"))}
    collector = Collector({f"unit:{spec.name}": spec.unit.name for spec in specs})
    for at, entry in enumerate(items(structures)):
        name = str(entry.get("qmof_id", "")) if isinstance(entry, Mapping) else ""
        where = f"{structures.name}#{at}"
        try:
            if name not in properties or "structure" not in entry:
                raise BadRecord("missing_label", f"{name!r} has no structure, or is not in qmof.json")
            fields = structure_fields(entry["structure"])
            labels = labels_of(properties[name], specs)
            collector.add(where, **fields, labels=labels, id=name, group=name, info={"position": at})
        except BadRecord as bad:
            collector.skip(bad, where)
        if collector.full:
            yield collector.take(min(1.0, (at + 1) / max(1, len(properties))))
    yield collector.take(1.0)


def _chosen(entry: Any, specs: tuple[LabelSpec, ...]) -> dict[str, Any]:
    """The values at the labels' paths; keys may be flat (`outputs.pbe.bandgap`) or nested."""
    found: dict[str, Any] = {}
    for spec in specs:
        value: Any = entry.get(spec.key) if spec.key in entry else entry
        if value is entry:
            for part in spec.key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        found[spec.key] = value
    return found


def _find(path: Path, name: str) -> Path:
    """A file of the database, packed or not, in the folder or beside the file that was named."""
    folder = path if path.is_dir() else path.parent
    for candidate in (name, f"{name}.gz", f"{name}.xz"):
        found = sorted(folder.rglob(candidate))
        if found:
            return found[0]
    raise UserError(f"{folder} holds no {name}; the database is distributed as one archive with both files")
