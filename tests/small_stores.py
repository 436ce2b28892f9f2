"""Small stores and configuration files for tests of the trainers and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jmp_ds.data.record import make_record
from jmp_ds.data.store import StoreWriter


def write_store(
    path: Path, *, seed: int = 0, structures: int = 24, periodic: bool = False, forces: bool = True
) -> Path:
    """Distorted molecules (or small cells) with a smooth made-up energy, its forces, and a scalar `gap`."""
    rng = np.random.default_rng(seed)
    numbers = np.array([6, 8, 1, 1]) if not periodic else np.array([12, 8, 12, 8])
    start = np.array([[0.0, 0.0, 0.0], [1.25, 0.0, 0.0], [-0.6, 0.9, 0.0], [-0.6, -0.9, 0.2]]) * (
        1.6 if periodic else 1.0
    )
    cell = np.eye(3) * 4.2 if periodic else np.zeros((3, 3))
    records = []
    for i in range(structures):
        pos = start + 0.1 * rng.normal(size=start.shape)
        shift = pos - start
        labels: dict[str, Any] = {
            "energy": -10.0 * seed - 40.0 + float((shift**2).sum()),
            "gap": 5.0 + float(shift[0, 0]),
        }
        if forces:
            labels["forces"] = -2.0 * shift
        records.append(
            make_record(pos=pos, atomic_numbers=numbers, cell=cell, pbc=[periodic] * 3, labels=labels, id=f"s{i}")
        )
    with StoreWriter(path, {"level_of_theory": "made up"}) as writer:
        writer.append(records)
    return path


def write_pretrain(folder: Path, **changes: Any) -> Path:
    """A pre-training file over two small stores, which are written beside it."""
    write_store(folder / "molecules", seed=1)
    write_store(folder / "crystals", seed=2, periodic=True)
    graph = {"cutoff": 5.0, "max_neighbors": 6}
    values: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "threads": 1},
        "model": {"preset": "tiny"},
        "tasks": {
            name: {"store": str(folder / name), "graph": graph, "energy": {"weight": 1}, "forces": {"weight": 5}}
            for name in ("molecules", "crystals")
        },
        "sampling": {"batch": {"edges": 150}},
        "train": {"epochs": 1},
    }
    file = folder / "pretrain.yaml"
    file.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return file


def write_finetune(folder: Path, source: Any, **changes: Any) -> Path:
    """A fine-tuning file over one small store, which is written beside it."""
    if not (folder / "target").exists():
        write_store(folder / "target", seed=3)
    values: dict[str, Any] = {
        "run": {"dir": str(folder / "tuned"), "threads": 1},
        "from": source,
        "tasks": {
            "target": {
                "store": str(folder / "target"),
                "graph": {"cutoff": 5.0, "max_neighbors": 6},
                "forces": {"kind": "gradient", "weight": 10},
                "split": {"train": 12, "val": 6, "test": 6},
            }
        },
        "sampling": {"batch": {"structures": 4}},
        "train": {"epochs": 1},
    }
    file = folder / "finetune.yaml"
    file.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return file
