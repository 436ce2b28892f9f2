"""Constants of a linear model of time, fitted to what was measured."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fit_seconds(columns: Floats, seconds: Floats) -> Floats:
    """Coefficients, none negative, with the least squared relative error: min Σ (prediction / seconds - 1)².

    The solution is the plain one of some choice of columns, so all choices are tried: for a dozen columns at most.

    Args:
        columns: [m, k], what the time is made of; columns of zeros get the coefficient 0.
        seconds: [m], positive.

    Returns:
        [k], seconds per unit of each column.
    """
    relative = columns / seconds[:, None]
    scale = np.linalg.norm(relative, axis=0)
    present = np.flatnonzero(scale)
    best, found = np.inf, np.zeros(columns.shape[1])
    for size in range(1, len(present) + 1):
        for chosen in map(list, combinations(present, size)):
            picked = relative[:, chosen] / scale[chosen]
            values = np.linalg.lstsq(picked, np.ones(len(seconds)), rcond=None)[0]
            error = float(((picked @ values - 1.0) ** 2).sum())
            if (values >= 0.0).all() and error < best * (1.0 - 1e-9):
                best, found = error, np.zeros(columns.shape[1])
                found[chosen] = values / scale[chosen]
    return found
