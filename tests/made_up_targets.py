"""Stores and splits of the form that recipes ask for, with made-up structures and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jmp_ds.config.described import alone
from jmp_ds.config.targets import Target
from jmp_ds.data.record import make_record
from jmp_ds.data.store import StoreWriter

#: What makes a run small: a tiny network, and one epoch.
SMALL = ("model.preset=tiny", "layerwise_lr=null", "train.epochs=1", "run.threads=1")
#: The parts of a store of ten structures.
PARTS = {"train": range(5), "val": range(5, 8), "test": range(8, 10)}

_START = np.array([[0.0, 0.0, 0.0], [1.25, 0.0, 0.0], [-0.6, 0.9, 0.1]])


def overrides_of(target: Target) -> tuple[str, ...]:
    """`SMALL`, and the published envelope where the published cutoff needs it."""
    far = target.family == "qmof"
    return (*SMALL, "model.graph.envelope=jmp") if far else SMALL


def write_data(target: Target, folder: Path, folds: tuple[int, ...] = (0,)) -> None:
    """The store of a target and its splits, in folders of the names that the recipe has; what is there stays."""
    if not (folder / target.store).exists():
        _write_store(target, folder / target.store)
    for fold in folds if target.folds else (None,):
        place = folder / target.split_folder(fold)
        place.mkdir(parents=True, exist_ok=True)
        for part, numbers in PARTS.items():
            np.save(place / f"{part}.npy", (np.array(list(numbers)) + 2 * (fold or 0)) % 10)


def _write_store(target: Target, path: Path) -> None:
    """Ten stretched molecules, or crystals, with every label that the targets of this store have."""
    periodic = target.family in ("matbench", "qmof")
    rng = np.random.default_rng(0)
    records = []
    for k in range(10):
        pos = _START * (1.0 + 0.03 * k) + 0.05 * rng.normal(size=_START.shape)
        records.append(
            make_record(
                pos=pos,
                atomic_numbers=[6, 8, 1],
                cell=np.eye(3) * 8.0 if periodic else np.zeros((3, 3)),
                pbc=[periodic] * 3,
                labels=_labels(target, pos, k),
                id=f"s{k}",
            )
        )
    with StoreWriter(path, {"level_of_theory": "made up"}) as writer:
        writer.append(records)


def _labels(target: Target, pos: np.ndarray, number: int) -> dict[str, Any]:
    shift = pos - _START
    task = alone(target, None).config.tasks[target.task]
    if task.forces is not None:
        return {"energy": -40.0 + float((shift**2).sum()), "forces": -2.0 * shift}
    if task.classification is not None:
        return {"y": float(number % 2)}
    if target.family == "qm9":
        names = ("mu", "alpha", "eps_HOMO", "eps_LUMO", "delta_eps", "R_2_Abs", "ZPVE", "U_0", "U", "H", "G", "c_v")
        return {name: 3.0 + k + float(shift[0, 0]) for k, name in enumerate(names)}
    return {task.of_structures[0].label: 1.0 + float(shift[1, 0])}
