"""Predictions for a file of structures, written to another file."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from jmp_kernels import BackendName
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jmp_ds.bundle import Bundle
from jmp_ds.errors import UserError
from jmp_ds.inference.extxyz import frame
from jmp_ds.inference.predictor import Predictor, Tags
from jmp_ds.planning import Graphs
from jmp_ds.tasks.specs import Task

if TYPE_CHECKING:
    from ase import Atoms

_log = logging.getLogger(__name__)


def predict_file(
    bundle: Bundle | str | Path,
    source: str | Path,
    output: str | Path,
    task: str | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    tags: Tags = "none",
    kernels: BackendName = "auto",
    graphs: Graphs = "auto",
    show_progress: bool = True,
) -> int:
    """Predict every frame of a file that ASE reads and write extended xyz, in order, as a whole or not at all.

    Args:
        bundle: or its folder.
        source: the structures; `@` and an index after the name select frames, as everywhere in ASE.
        output: extended xyz with `energy` (eV) and `forces` (eV/Å) to 17 significant digits.
        task, device, dtype, tags, kernels, graphs: as for `Predictor`.
        show_progress: draw a counter on standard error.

    Returns:
        The number of structures.

    Raises:
        UserError: what cannot be read, predicted or written.
    """
    predictor = Predictor(bundle, task, device=device, dtype=dtype, tags=tags, kernels=kernels, graphs=graphs)
    output, count, inert = Path(output), 0, 0
    with _written_whole(output) as file, _counter(show_progress) as bar:
        line = bar.add_task("predicting", total=None)
        for atoms, prediction in predictor.iterate(_frames(Path(source))):
            file.write(frame(atoms, prediction))
            inert += _is_inert(atoms, tags, predictor.task)
            count += 1
            bar.update(line, completed=count)
    if inert:
        _log.warning(
            "%s: in %d periodic structures no atom has a tag of %s, so the quadruplet interaction is empty in them; "
            "if their tags are not those of OCP, leave out `tags ocp`",
            *(source, inert, predictor.task.graph.qint_tags),
        )
    return count


def _is_inert(atoms: Atoms, tags: Tags, task: Task) -> bool:
    """Whether tags leave a periodic structure without any quadruplet."""
    return tags == "ocp" and bool(atoms.pbc.any()) and not np.isin(atoms.get_tags(), task.graph.qint_tags).any()


def _frames(source: Path) -> Iterator[Atoms]:
    """All frames of a file, in order."""
    import ase.io

    selects = not source.exists() and "@" in source.name
    if not (Path(str(source).rpartition("@")[0]) if selects else source).is_file():
        raise UserError(f"{source}: no such file")
    index: dict[str, Any] = {} if selects else {"index": ":"}
    try:
        yield from ase.io.iread(str(source), **index)
    except UserError:
        raise
    except Exception as error:  # readers of many formats, each with exceptions of its own
        raise UserError(f"{source}: ASE cannot read it ({type(error).__name__}: {error})") from error


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name only when all of it is on disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _counter(show: bool) -> Progress:
    """A counter of structures on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not show)
