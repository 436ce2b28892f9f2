"""What a converted store says about where it came from: meaning, units, licence, and the source files with checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jmp_ds.data.readers.base import Reader, ReaderOptions
from jmp_ds.files import sha256

_LISTED_SOURCES = 1000
_UNIT = "unit:"


def provenance(
    files: Sequence[Path], chosen: Reader, told: ReaderOptions, facts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Metadata of a store as plain JSON values.

    Args:
        files: the sources; each is read once more for its checksum.
        chosen: the format; what it says of itself gives way to what the files say.
        told: what the user said of the sources.
        facts: what the files said of themselves (see `readers.base.Block`), by key in the order of the files.
    """
    said = {key: "; ".join(values) for key, values in facts.items()}
    units = {**chosen.about.labels, **{k.removeprefix(_UNIT): v for k, v in said.items() if k.startswith(_UNIT)}}
    units.update({spec.name: spec.unit.name for spec in told.labels})
    text = {key: getattr(chosen.about, key) for key in ("energy", "level_of_theory", "licence", "citation")}
    text.update({key: value for key, value in said.items() if not key.startswith(_UNIT)})
    for spec in told.labels:
        if spec.name == "energy":
            text["energy"] = f"what the source calls {spec.key!r}"
    return {
        **{key: value for key, value in text.items() if value and (key != "energy" or "energy" in units)},
        "format": chosen.name,
        "length_unit": "Å",
        "label_units": units,
        "source_units": chosen.about.units,
        "sources": describe_sources([*files, *([told.table] if told.table else [])]),
        "options": {
            "labels": [f"{s.name}={s.key} x {s.unit.factor!r} -> {s.unit.name}" for s in told.labels],
            **{key: value for key, value in asdict(told).items() if value and key not in ("labels", "table")},
        },
    }


def describe_sources(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and checksum per source; a folder's checksum is over the names and checksums of its files."""
    described: list[dict[str, Any]] = []
    for file in files[:_LISTED_SOURCES]:
        if file.is_dir():
            members = sorted(p for p in file.rglob("*") if p.is_file())
            listing = "".join(f"{p.relative_to(file)}\n{sha256(p)}\n" for p in members)
            whole, size = hashlib.sha256(listing.encode()).hexdigest(), sum(p.stat().st_size for p in members)
        else:
            whole, size = sha256(file), file.stat().st_size
        described.append({"name": file.name, "bytes": size, "sha256": whole})
    if len(files) > _LISTED_SOURCES:
        described.append({"name": f"and {len(files) - _LISTED_SOURCES} more files"})
    return described
