"""The small demonstration set that comes with the package: packed to be small, unpacked to stores within a second or two.

One `NAME.npz` per set: positions, cells, forces and stress as integers on the grids they were put on when they were made
(labelling.py), so that unpacking gives the numbers of the stores they were packed from, bit for bit. No pickle.
MANIFEST.json says which command and versions made them, and their checksums.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from jmp_ds.data.demo.labelling import FORCE_GRID, LENGTH_GRID
from jmp_ds.data.record import Record, make_record
from jmp_ds.data.store import Store, StoreWriter, is_store
from jmp_ds.errors import UserError
from jmp_ds.files import sha256, write_atomically, write_json

MANIFEST = "MANIFEST.json"
FORMAT = 1
#: Records per transaction when a demonstration store is written.
BLOCK = 512


def demo_set_path() -> Path:
    """Folder of the demonstration set that comes with the package."""
    return Path(str(files("jmp_ds.data") / "demo_set"))


def demo_manifest(source: str | Path | None = None) -> dict[str, Any]:
    """What made the packed set: command, seed, versions, and per set its size, bytes, checksum and metadata.

    Raises:
        UserError: there is no manifest, or it is of another format.
    """
    path = (demo_set_path() if source is None else Path(source)) / MANIFEST
    if not path.is_file():
        raise UserError(f"demonstration data: {path} is missing; install the package again, or make the data anew")
    manifest: dict[str, Any] = json.loads(path.read_text())
    if manifest.get("format") != FORMAT:
        raise UserError(f"demonstration data: {path} has format {manifest.get('format')}, expected {FORMAT}")
    return manifest


def unpack_demo(
    out: str | Path,
    *,
    regenerate: bool = False,
    processes: int = 1,
    progress: bool = True,
    overwrite: bool = False,
    source: str | Path | None = None,
) -> dict[str, Path]:
    """Write the packed demonstration sets as stores `out`/NAME.

    Args:
        out: folder, made where it is missing.
        regenerate: compute the same sets anew, with the seed and sizes of the manifest (minutes; needs tblite).
        processes: for regenerating.
        progress: show bars while regenerating.
        overwrite: replace stores that are there already.
        source: packed set; None: the one that comes with the package.

    Returns: name of the set -> folder of its store.

    Raises:
        UserError: the packed set is damaged or missing, or a store is in the way.
    """
    manifest = demo_manifest(source)
    folder = demo_set_path() if source is None else Path(source)
    if regenerate:
        from jmp_ds.data.demo.generate import make_demo

        sizes = {name: int(entry["structures"]) for name, entry in manifest["sets"].items()}
        reports = make_demo(
            out,
            sizes=sizes,
            seed=int(manifest["seed"]),
            processes=processes,
            progress=progress,
            overwrite=overwrite,
            command=str(manifest["command"]),
        )
        return {name: report.path for name, report in reports.items()}
    stores = {name: Path(out) / name for name in manifest["sets"]}
    for name, entry in manifest["sets"].items():
        packed = folder / entry["file"]
        if not packed.is_file() or sha256(packed) != entry["sha256"]:
            raise UserError(f"demonstration data: {packed} is missing or damaged; install the package again")
        if is_store(stores[name]) and not overwrite:
            raise UserError(
                f"store {stores[name]}: there is a store already; choose another folder or ask for it to be replaced"
            )
    for name, entry in manifest["sets"].items():
        stores[name].parent.mkdir(parents=True, exist_ok=True)
        with StoreWriter(stores[name], entry["metadata"], overwrite=overwrite) as writer:
            append_in_blocks(writer, read_packed(folder / entry["file"]))
    return stores


def pack_demo(stores: str | Path, destination: str | Path, *, command: str) -> dict[str, Any]:
    """Pack the stores of `make_demo` into a folder with a manifest; how the package's own set was made.

    Args:
        stores: folder with one store per set.
        destination: folder, made where it is missing.
        command: what made the stores, for the manifest.

    Returns: the manifest.

    Raises:
        UserError: there are no such stores, they were not made together, or a number does not lie on its grid.
    """
    folder = Path(destination)
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {}
    seeds, versions = set(), set()
    for path in sorted(p for p in Path(stores).iterdir() if is_store(p)):
        store = Store(path)
        seeds.add(store.metadata["seed"])
        versions.add(json.dumps(store.metadata["versions"]))
        packed = folder / f"{path.name}.npz"
        write_atomically(packed, partial(_save, _arrays(list(store))))
        entries[path.name] = {
            "file": packed.name,
            "structures": len(store),
            "atoms": store.summary.atoms,
            "bytes": packed.stat().st_size,
            "sha256": sha256(packed),
            "fingerprint": store.summary.fingerprint,
            "metadata": store.metadata,
        }
    if len(seeds) != 1 or len(versions) != 1:
        raise UserError(f"demonstration data: {stores} holds no stores of one and the same run of `jmp-ds data demo`")
    manifest = {
        "format": FORMAT,
        "command": command,
        "seed": seeds.pop(),
        "versions": json.loads(versions.pop()),
        "sets": entries,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def append_in_blocks(writer: StoreWriter, records: Iterable[Record]) -> None:
    """Append in blocks of one size: a shard's bytes, and so the store's fingerprint, depend on its transactions."""
    for block in batched(records, BLOCK):
        writer.append(block)


def batched(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Consecutive records in lists of `size`, the last one shorter."""
    rest = iter(records)
    while block := list(islice(rest, size)):
        yield block


def read_packed(path: str | Path) -> Iterator[Record]:
    """Records of one packed set, in order.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
        texts: list[tuple[str, str, dict[str, str | float | int]]] = json.loads(data["texts"].tobytes().decode())
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"demonstration data: {path} cannot be read: {error}") from error
    ends = np.cumsum(data["natoms"])
    scalars = [name.removeprefix("scalar:") for name in data if name.startswith("scalar:")]
    for i, (name, group, info) in enumerate(texts):
        atoms = slice(int(ends[i] - data["natoms"][i]), int(ends[i]))
        labels: dict[str, NDArray[np.float64]] = {key: data[f"scalar:{key}"][i] for key in scalars}
        if "forces" in data:
            labels["forces"] = data["forces"][atoms] * FORCE_GRID
        if "stress" in data:
            labels["stress"] = data["stress"][i] * FORCE_GRID
        yield make_record(
            pos=data["pos"][atoms] * LENGTH_GRID,
            atomic_numbers=data["numbers"][atoms],
            id=name,
            cell=data["cell"][i] * LENGTH_GRID if data["pbc"][i].any() else None,
            pbc=data["pbc"][i],
            labels=labels,
            tags=data["tags"][atoms],
            fixed=data["fixed"][atoms],
            group=group,
            info=info,
        )


def _arrays(records: list[Record]) -> dict[str, NDArray[Any]]:
    """The arrays of one packed set."""
    texts = json.dumps([[r.id, r.group, dict(r.info)] for r in records], separators=(",", ":"))
    arrays: dict[str, NDArray[Any]] = {
        "natoms": np.array([r.natoms for r in records], dtype=np.int32),
        "numbers": np.concatenate([r.atomic_numbers for r in records]),
        "pos": _steps((r.pos for r in records), LENGTH_GRID),
        "pbc": np.stack([r.pbc for r in records]),
        "tags": np.concatenate([r.tags for r in records]),
        "fixed": np.concatenate([r.fixed for r in records]),
        "texts": np.frombuffer(texts.encode(), dtype=np.uint8),
    }
    if arrays["pbc"].any():
        arrays["cell"] = _steps((r.cell[None] for r in records), LENGTH_GRID)
    for name in records[0].labels:
        if name == "forces":
            arrays[name] = _steps((r.labels[name] for r in records), FORCE_GRID)
        elif name == "stress":
            arrays[name] = _steps((r.labels[name][None] for r in records), FORCE_GRID)
        else:
            arrays[f"scalar:{name}"] = np.array([float(r.labels[name]) for r in records])
    return arrays


def _save(arrays: dict[str, NDArray[Any]], file: BinaryIO) -> None:
    """Write the arrays as one compressed archive."""
    np.savez_compressed(file, allow_pickle=False, **arrays)


def _steps(values: Iterable[NDArray[np.float64]], grid: float) -> NDArray[np.int32]:
    """Arrays, concatenated, as whole steps of a grid; they must lie on it exactly."""
    array = np.concatenate(list(values))
    steps = np.rint(array / grid).astype(np.int32)
    if (steps * grid != array).any():
        raise UserError(
            f"demonstration data: numbers do not lie on the grid of {grid:g}; only demo stores can be packed"
        )
    return steps
