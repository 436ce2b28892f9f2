"""Predictions for a file or store of structures, written to another file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jmp_kernels import BackendName

from jmp_ds.bundle import Bundle, load_bundle
from jmp_ds.inference.extxyz import frame
from jmp_ds.inference.predictor import EDGE_BUDGET, Predictor, Tags
from jmp_ds.inference.progress import counter
from jmp_ds.inference.resumable import INTERVAL, Resumable
from jmp_ds.inference.sources import Source, digest
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
    edge_budget: int = EDGE_BUDGET,
    kernels: BackendName = "auto",
    graphs: Graphs = "auto",
    show_progress: bool = True,
    interval: float = INTERVAL,
) -> int:
    """Predict every structure and write extended xyz, in order; after a kill the same call goes on where it was.

    Args:
        bundle: or its folder.
        source: a store, or a file that ASE reads; `@` and an index after its name select frames, as everywhere in ASE.
        output: extended xyz with `energy` (eV), `forces` (eV/Å) and `stress` (eV/Å³) to 17 significant digits.
        task, device, dtype, tags, edge_budget, kernels, graphs: as for `Predictor`; tags of a store are always OCP's.
        show_progress: draw a counter on standard error.
        interval: seconds between two points from which it can go on.

    Returns:
        The number of structures in the output.

    Raises:
        UserError: what cannot be read, predicted or written.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    given = Source(source)
    tags = "ocp" if given.is_store else tags
    predictor = Predictor(
        bundle, task, device=device, dtype=dtype, tags=tags, edge_budget=edge_budget, kernels=kernels, graphs=graphs
    )
    job = job_of("predict", given, predictor, tags)
    with Resumable(Path(output), job, interval=interval) as file, counter(show_progress) as bar:
        count, inert = file.done, int(file.state.get("inert", 0))
        line = bar.add_task("predicting", total=given.total, completed=count)
        for atoms, prediction in predictor.iterate(_atoms(given, count), first=count):
            file.write(frame(atoms, prediction).encode())
            inert += _is_inert(atoms, tags, predictor.task)
            count += 1
            file.commit(count, {"inert": inert})
            bar.update(line, completed=count)
        file.finish()
    if inert:
        _log.warning(
            "%s: in %d periodic structures no atom has a tag of %s, so the quadruplet interaction is empty in them; "
            "if their tags are not those of OCP, leave out `tags ocp`",
            *(source, inert, predictor.task.graph.qint_tags),
        )
    return count


def job_of(kind: str, source: Source, predictor: Predictor, tags: Tags, **more: Any) -> dict[str, Any]:
    """What decides the output of a job, for its journal."""
    about = {"bundle": digest(predictor.bundle), "task": predictor.task.name, "dtype": str(predictor.dtype)}
    return {"kind": kind, **source.identity(), **about, "tags": tags, **more}


def _atoms(source: Source, start: int) -> Iterator[Atoms]:
    return (given.atoms for given in source.read(start))


def _is_inert(atoms: Atoms, tags: Tags, task: Task) -> bool:
    """Whether tags leave a periodic structure without any quadruplet."""
    return tags == "ocp" and bool(atoms.pbc.any()) and not np.isin(atoms.get_tags(), task.graph.qint_tags).any()
