"""Embeddings of every atom and structure of a file or store, as one `.npz`, of any size."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError
from jmp_ds.inference.predict_file import job_of
from jmp_ds.inference.predictor import Predictor, Tags
from jmp_ds.inference.progress import counter
from jmp_ds.inference.resumable import INTERVAL, Resumable
from jmp_ds.inference.sources import Source

#: Rows that are held at once while the parts become one file.
_BLOCK = 65_536


def features_file(
    predictor: Predictor,
    source: str | Path,
    output: str | Path,
    *,
    tags: Tags = "none",
    show_progress: bool = True,
    interval: float = INTERVAL,
) -> int:
    """Write embeddings; after a kill the same call goes on where it was.

    The file holds `atoms` [all atoms, width], `first` int64 [structures + 1] (atoms of structure k are rows first[k] to
    first[k + 1] - 1) and `structures` [structures, width], the mean over its atoms; in the precision of the model.

    Args:
        predictor: of the task whose graphs are used.
        source: a store, or a file that ASE reads.
        output: ends with `.npz`.
        tags: as the predictor's.
        show_progress: draw a counter on standard error.
        interval: seconds between two points from which it can go on.

    Returns:
        The number of structures.

    Raises:
        UserError: what cannot be read, computed or written.
    """
    output = Path(output)
    if output.suffix != ".npz":
        raise UserError(f"{output}: features are written as .npz; give the output that ending")
    given, width = Source(source), predictor.bundle.config.emb_size_atom
    kind = np.dtype(str(predictor.dtype).removeprefix("torch."))
    job = job_of("features", given, predictor, tags)
    with (
        Resumable(output, job, ("atoms", "natoms", "structures"), interval=interval) as file,
        counter(show_progress) as bar,
    ):
        count = file.done
        line = bar.add_task("embedding", total=given.total, completed=count)
        frames = (each.atoms for each in given.read(count))
        for atoms, own in predictor.iterate_features(frames, first=count):
            file.write(own.astype(kind).tobytes(), "atoms")
            file.write((own.sum(axis=0) / max(len(atoms), 1)).astype(kind).tobytes(), "structures")
            file.write(np.int64(len(atoms)).tobytes(), "natoms")
            count += 1
            file.commit(count)
            bar.update(line, completed=count)
        file.commit(count, force=True)
        natoms = np.fromfile(file.part("natoms"), dtype=np.int64)
        first = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(natoms)])
        made = output.with_name(f"{output.name}.part.whole")
        with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _add(archive, "atoms", kind, (int(first[-1]), width), _blocks(file.part("atoms")))
            _add(archive, "structures", kind, (count, width), _blocks(file.part("structures")))
            _add(archive, "first", first.dtype, first.shape, iter([first.tobytes()]))
        file.finish(made)
    return count


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK * 64):
            yield block


def _add(
    archive: zipfile.ZipFile, name: str, kind: np.dtype[Any], shape: tuple[int, ...], blocks: Iterator[bytes]
) -> None:
    """One array of an `.npz`, block by block."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        for block in blocks:
            file.write(block)


def read_features(path: str | Path) -> list[NDArray[Any]]:
    """Embeddings of the atoms, one array [n, width] per structure, of a file that `features_file` wrote."""
    with np.load(path, allow_pickle=False) as held:
        return np.split(held["atoms"], held["first"][1:-1])
