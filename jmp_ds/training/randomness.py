"""Random states, owned by the training loop: seeded per process, saved with checkpoints, kept aside in validation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int, rank: int, *more: int) -> None:
    """Seed Python, NumPy and torch for one process; different ranks, and different further numbers, draw different
    numbers.
    """
    word = int(np.random.SeedSequence([seed, rank, *more]).generate_state(1, np.uint32)[0])
    random.seed(word)
    np.random.seed(word)  # noqa: NPY002 - libraries below us draw from the global generator
    torch.manual_seed(word)


def random_state() -> dict[str, Any]:
    """All generators' states as tensors and numbers, so that they can be read back without unpickling objects."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(int(w) for w in python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace: validation must not change what training draws."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
