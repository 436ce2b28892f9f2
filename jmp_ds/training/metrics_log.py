"""Numbers over the run: one JSON object per line in metrics.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmp_ds.files import write_text

NAME = "metrics.jsonl"
_log = logging.getLogger(__name__)


class MetricsLog:
    """Writes numbers, in the first process only.

    Args:
        run_dir: the run folder.
        step: where the run continues; lines of later steps, written before an interruption, are removed.
        enabled: False in all processes but the first.
    """

    def __init__(self, run_dir: Path, step: int = 0, enabled: bool = True) -> None:
        self._path = run_dir / NAME
        self._board: Any = None
        self._enabled = enabled
        if not enabled:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        if self._path.is_file():
            write_text(self._path, "".join(_lines_until(self._path, step)))
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)
        except ImportError:
            _log.warning("tensorboard is not installed: curves go to %s only", self._path)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line.

        Args:
            kind: `train`, `validate` or `event`.
            step: optimizer steps so far.
            values: numbers become curves `kind/name`; anything JSON is kept in the line. Numbers that are not finite
                become null, because JSON has none.
        """
        if not self._enabled:
            return
        line = {"kind": kind, "step": step, **{k: _plain(v) for k, v in values.items()}}
        with self._path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        if self._board is not None:
            self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of a run; a last line cut off by a crash is left out."""
    path = run_dir / NAME
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _lines_until(path: Path, step: int) -> list[str]:
    """Whole lines up to a step."""
    return [json.dumps(v, ensure_ascii=False) + "\n" for v in read_metrics(path.parent) if v["step"] <= step]


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
