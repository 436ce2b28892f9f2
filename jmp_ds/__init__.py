"""jmp-ds: joint multi-domain pre-training of GemNet-OC, and its use.

Units everywhere: eV, Å, eV/Å, eV/Å³ (ASE's sign of stress); cell vectors are rows; forces are -dE/dpos.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def load(path: str, task: str | None = None, **options: Any) -> Any:
    """A trained model, ready to use: `jmp_ds.load("runs/final").predict([atoms])[0].energy`.

    Args:
        path: folder of a bundle.
        task: which of its tasks; may be left out where there is only one.
        options: `device`, `dtype`, `tags`, `edge_budget`, `kernels`, `graphs`; see `jmp_ds.inference.predictor.Predictor`.

    Returns:
        That `Predictor`.
    """
    # Found by name and late: every floor may import this package for its version, and most need no predictor.
    return import_module("jmp_ds.inference.predictor").Predictor(path, task, **options)
