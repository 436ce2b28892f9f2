"""The suite's results as one file."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: What identifies a measured step, and how it compares; keys of `measure`.
ASKED = ("model", "batch", "precision", "forces", "kernels")
RATIOS = ("step_over_floor", "whole_step_over_floor", "speedup_over_enumerated", "whole_speedup_over_enumerated")


def write_summary(out: Path, outcomes: Sequence[DataclassInstance], *, gpu: bool) -> None:
    """OUTDIR/summary.json: machine, versions, date, how every part ended, and the main results of those that did."""
    steps = [_headline(json.loads(line)) for line in _lines(out / "steps.jsonl")]
    spread = out / "curves.json"
    summary = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(gpu=gpu),
        "parts": [asdict(outcome) for outcome in outcomes],
        "checks": {file.stem: _counted(file) for file in sorted(out.glob("verify-*.json"))},
        "curves": json.loads(spread.read_text(encoding="utf-8")) if spread.is_file() else None,
        "steps": steps,
        "kernels": sorted(str(file.relative_to(out)) for file in out.glob("kernels-*/kernels.csv")),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def machine(*, gpu: bool) -> dict[str, Any]:
    """Device and versions."""
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.machine(),
        "cuda": torch.version.cuda if gpu else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def _counted(file: Path) -> dict[str, int]:
    """How many checks passed."""
    results = json.loads(file.read_text(encoding="utf-8"))
    wrong = sum(bool(result["problems"]) for result in results)
    return {"passed": len(results) - wrong, "failed": wrong}


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    """What is looked at first in one measurement of a step."""
    if "error" in found:
        return found
    asked = found["request"]
    rates = ("model_flop_utilisation", "structures_per_s", "peak_bytes", "launches", "host_synchronisations")
    return {
        **{key: asked[key] for key in ASKED},
        "tf32": found["tf32"],
        "whole_seconds": found["seconds"]["whole"],
        **{key: found[key] for key in (*RATIOS, *rates) if key in found},
    }
