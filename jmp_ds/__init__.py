"""jmp-ds: joint multi-domain pre-training of GemNet-OC, and its use.

Units everywhere: eV, Å, eV/Å, eV/Å³ (ASE's sign of stress); cell vectors are rows; forces are -dE/dpos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jmp_ds.version import __version__

if TYPE_CHECKING:
    from jmp_ds.inference.predictor import Predictor

__all__ = ["__version__", "load"]


def load(path: str, task: str | None = None, **options: Any) -> Predictor:
    """A trained model, ready to use: `jmp_ds.load("runs/final").predict([atoms])[0].energy`.

    Args:
        path: folder of a bundle.
        task: which of its tasks; may be left out where there is only one.
        options: `device`, `dtype`, `tags`, `edge_budget`, as for `jmp_ds.inference.predictor.Predictor`.
    """
    from jmp_ds.inference.predictor import Predictor  # heavy, and not needed for the parts that need torch alone

    return Predictor(path, task, **options)
