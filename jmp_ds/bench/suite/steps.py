"""Steps of the suite: `python -m jmp_ds.bench.suite.steps DEVICE OUTDIR [--trial]`.

One line of JSON per measurement goes into OUTDIR/steps.jsonl as soon as it is there; steps.csv holds the main columns.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from jmp_ds.bench.measure import StepRequest, measure
from jmp_ds.bench.suite.summary import ASKED, RATIOS
from jmp_ds.errors import UserError

MODELS = ("jmp-s", "jmp-l")
BATCHES = ("oc20x8", "slab225x4", "ani64", "mixed", "slab98")


def requests(device: str) -> Iterator[StepRequest]:
    """What is measured on a GPU: the targets' batches in bf16 first."""
    for precision in ("bf16", "float32"):
        for batch in BATCHES:
            for model in MODELS:
                yield StepRequest(model=model, batch=batch, precision=precision, device=device, compare="enumerated")
    for model in MODELS:
        yield StepRequest(model=model, batch="aspirin4", forces="gradient", device=device, compare="enumerated")


def trial(device: str) -> Iterator[StepRequest]:
    """One small step."""
    yield StepRequest(model="tiny", batch="aspirin4", device=device, compare="enumerated", repeats=1)


def attempt(request: StepRequest) -> dict[str, Any]:
    """Measure; without the enumerated form where memory does not hold it; else what went wrong."""
    try:
        return _measured(request)
    except (UserError, torch.OutOfMemoryError) as error:
        told = str(error).splitlines()[0]
    if request.compare:
        return attempt(replace(request, compare="")) | {"enumerated_left_out": told}
    return {"request": asdict(request), "error": told}


def _measured(request: StepRequest) -> dict[str, Any]:
    gc.collect()
    if request.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return measure(request)


def row(found: dict[str, Any]) -> dict[str, Any]:
    """Main columns of a measurement."""
    asked = found["request"]
    seconds = found.get("seconds", {})
    rates = ("model_flop_utilisation", "structures_per_s", "atoms_per_s", "peak_bytes", "saved_bytes_per_edge")
    counts = ("launches", "host_synchronisations")
    return {
        **{key: asked[key] for key in ASKED},
        "tf32": found["tf32"],
        **{f"{part}_s": seconds.get(part) for part in ("graph", "forward", "backward", "optimiser", "whole", "floor")},
        **{key: found.get(key) for key in (*RATIOS, *rates, *counts)},
        "enumerated_step_over_floor": found.get("enumerated", {}).get("step_over_floor"),
        "note": found.get("error") or found.get("enumerated_left_out", ""),
        "device": found.get("machine", {}).get("device"),
        "torch": torch.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where a step failed for another reason than memory."""
    parser = argparse.ArgumentParser(prog="python -m jmp_ds.bench.suite.steps")
    parser.add_argument("device")
    parser.add_argument("out", type=Path)
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no step after so many")
    given = parser.parse_args(arguments)
    torch.set_float32_matmul_precision("high")  # float32 with TF32, as it is trained on a GPU
    wanted = list(trial(given.device) if given.trial else requests(given.device))
    lines, rows, failed = given.out / "steps.jsonl", [], False
    lines.write_text("", encoding="utf-8")
    begin = time.monotonic()
    for request in wanted:
        if time.monotonic() - begin > given.seconds:
            sys.stdout.write(f"{_named(request)}: left out, the {given.seconds:.0f} s are over\n")
            continue
        try:
            found = attempt(request)
        except Exception as error:  # one step that fails must not hide the others
            found, failed = {"request": asdict(request), "error": f"{type(error).__name__}: {error}"}, True
        found["tf32"] = request.precision == "float32" and given.device.startswith("cuda")
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        rows.append(row(found))
        _write(given.out / "steps.csv", rows)
        ratio = found.get("step_over_floor", found.get("error"))
        sys.stdout.write(f"{_named(request)}: step/floor {ratio}\n")
        sys.stdout.flush()
    return int(failed)


def _named(request: StepRequest) -> str:
    return f"{request.model} {request.batch} {request.precision} {request.forces}"


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)


if __name__ == "__main__":
    sys.exit(main())
