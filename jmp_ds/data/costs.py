"""What a structure costs: a linear model of its counts, and the table of costs that batches are cut and shared out by.

A cost is told in edges: the time that the model gives a structure, over the time that an edge took in the calibration's
batches. So a budget means about as much work as that many edges, whatever the structures are.

    index/<graph digest>-<cost digest>.npy     int32 [n]
    index/<graph digest>-<cost digest>.json    the model and the store's fingerprint; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jmp_ds.data.index import COLUMNS, RULES_VERSION, edge_counts
from jmp_ds.data.progress import tracked
from jmp_ds.data.store import Store
from jmp_ds.data.tables import is_current, read_table, write_table
from jmp_ds.errors import UserError
from jmp_ds.files import write_json
from jmp_ds.graphs.settings import GraphSettings

#: What a cost may depend on, in order.
COUNTS = ("atoms", *COLUMNS)
FORMAT = 1
_BLOCK = 1 << 20


@dataclass(frozen=True)
class CostModel:
    """Time of a batch: fixed + Σ coefficient · count, over its structures.

    Attributes:
        coefficients: seconds per count, by name in `COUNTS`, not negative; what is missing costs nothing.
        per_edge: seconds per main edge, all told, in the calibration's batches.
        fixed: seconds per batch.
        about: how it was measured: model, device, batches, residual.
    """

    coefficients: Mapping[str, float]
    per_edge: float
    fixed: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.coefficients) - set(COUNTS))
        if unknown:
            raise UserError(f"cost model: no count is called {unknown[0]!r}; there are {', '.join(COUNTS)}")
        values = [*self.coefficients.values(), self.fixed]
        if any(not v >= 0.0 for v in values) or not sum(self.coefficients.values()) > 0.0 or not self.per_edge > 0.0:
            raise UserError("cost model: coefficients must not be negative, one of them and `per_edge` positive")

    def seconds(self, counts: ArrayLike) -> NDArray[np.float64]:
        """Time of structures, without the fixed part. Args: counts [n, 7], columns as in `COUNTS`."""
        weights = np.array([self.coefficients.get(name, 0.0) for name in COUNTS])
        return np.asarray(counts, dtype=np.float64) @ weights

    def digest(self) -> str:
        """Hash of what costs depend on."""
        kept = {name: value for name, value in sorted(self.coefficients.items()) if value}
        return hashlib.sha256(json.dumps([kept, self.per_edge]).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write a small JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, **asdict(self)})


def load_cost_model(path: str | Path) -> CostModel:
    """What `CostModel.save` wrote.

    Raises:
        UserError: no such file, or not a cost model.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise UserError(f"{path}: a cost model of another format; make it again with `jmp-ds bench cost`")
        return CostModel(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a cost model as `jmp-ds bench cost` writes it ({error})") from error


def cost_table(
    store: Store, settings: GraphSettings, model: CostModel, *, cache: Path | None = None, progress: bool = False
) -> NDArray[np.int32]:
    """Costs of all structures of a store, in edges, at least 1; made once from the counts and kept beside them.

    Args:
        store, settings, cache: as for `edge_counts`.
        model: what counts cost.
        progress: show a bar.

    Returns:
        int32 [n], memory-mapped.

    Raises:
        UserError: the folder cannot be written.
    """
    counts = edge_counts(store, settings, cache=cache, progress=progress)
    stem = (cache or store.path / "index") / f"{settings.digest()}-{model.digest()}"
    array, note = stem.with_suffix(".npy"), stem.with_suffix(".json")
    expected = {"fingerprint": store.summary.fingerprint, "rules": RULES_VERSION}
    if not is_current(array, note, expected):
        blocks = tracked(_costs(store, counts, model), "costs", -(-len(store) // _BLOCK), progress)
        try:
            write_table(array, note, (len(store),), blocks, {**expected, "model": asdict(model)})
        except OSError as error:
            raise UserError(f"costs of {store.path} cannot be kept in {array.parent}: {error}") from error
    return read_table(array)


def _costs(store: Store, counts: NDArray[np.int32], model: CostModel) -> Iterator[NDArray[np.int32]]:
    """Costs block by block."""
    for start in range(0, len(store), _BLOCK):
        rows = slice(start, start + _BLOCK)
        seconds = model.seconds(np.column_stack([store.natoms[rows], counts[rows]]))
        yield np.clip(np.rint(seconds / model.per_edge), 1, np.iinfo(np.int32).max).astype(np.int32)
