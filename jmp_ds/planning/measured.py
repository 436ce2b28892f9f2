"""A device as `jmp-ds bench step --json` found it: three constants fitted to whole steps."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jmp_ds.errors import UserError
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.counts import BatchCounts, Forces
from jmp_ds.models.presets import PRESETS
from jmp_ds.planning.batches import head_rows
from jmp_ds.planning.devices import Device
from jmp_ds.planning.duration import OPTIMISER_TRAFFIC, Work, work_of
from jmp_ds.planning.fitting import fit_seconds
from jmp_ds.planning.states import PRECISIONS, PrecisionName


@dataclass(frozen=True)
class MeasuredStep:
    """One file of `jmp-ds bench step`.

    Attributes:
        path: the file.
        config: of the network, recomputation as measured.
        counts: of the batch.
        forces, precision: as measured.
        parameters: of the network.
        network, optimiser: seconds of forward and backward, and of the optimiser.
        saved, peak: bytes kept, and bytes above the level before; None where not measured.
        device: its name in the file.
        on_gpu: whether it was one.
    """

    path: Path
    config: BackboneConfig
    counts: BatchCounts
    forces: Forces
    precision: PrecisionName
    parameters: int
    network: float
    optimiser: float
    saved: int | None
    peak: int | None
    device: str
    on_gpu: bool

    @property
    def work(self) -> Work:
        """What the step takes, by our counts."""
        heads = head_rows(self.counts, 1, self.forces)
        return work_of(self.config, self.counts, heads, self.forces, itemsize=PRECISIONS[self.precision].feature)


def read_step(path: Path) -> MeasuredStep:
    """Read a file.

    Raises:
        UserError: not a file of `jmp-ds bench step --json`, or one whose network or precision cannot be planned for.
    """
    try:
        return _step(path, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"--measured {path}: cannot be read ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--measured {path}: not a file of `jmp-ds bench step --json` ({type(error).__name__}: {error})"
        ) from None


def _step(path: Path, found: dict[str, Any]) -> MeasuredStep:
    asked, seconds = found["request"], found["seconds"]
    if asked["precision"] not in PRECISIONS:
        raise ValueError(f"precision {asked['precision']} is not planned for")
    config = replace(PRESETS[asked["model"]], recompute=asked["recompute"], direct_forces=asked["forces"] == "direct")
    return MeasuredStep(
        path=path,
        config=config,
        counts=BatchCounts(**found["counts"]),
        forces=asked["forces"],
        precision=asked["precision"],
        parameters=int(found["parameters"]),
        network=float(seconds["forward"] + seconds["backward"]),
        optimiser=float(seconds["optimiser"]),
        saved=found.get("saved_bytes"),
        peak=found.get("peak_bytes"),
        device=str(found["machine"]["device"]),
        on_gpu=str(asked["device"]).startswith("cuda"),
    )


def fitted_device(steps: Sequence[MeasuredStep], precision: PrecisionName, memory: int) -> Device:
    """A device whose rates make the files' steps as long as they were, each within its relative error.

    Three files or more of the precision fix three constants (products, passes over memory, starting operations); fewer fix
    the rate of products alone, so that time grows with products.

    Args:
        steps: files, all of one device.
        precision: of the plan.
        memory: bytes of the device.

    Raises:
        UserError: no file in this precision, or files of several devices.
    """
    products = PRECISIONS[precision].products
    ours = [step for step in steps if PRECISIONS[step.precision].products == products]
    if not ours:
        there = ", ".join(sorted({step.precision for step in steps}))
        raise UserError(f"--measured: no file has precision {precision} (there is {there}); measure a step in it")
    names = sorted({step.device for step in steps})
    if len(names) > 1:
        raise UserError(f"--measured: the files are of several devices ({', '.join(names)}); give those of one")
    works = [step.work for step in ours]
    columns = np.array([[w.flops, w.kept, w.operations] for w in works], dtype=np.float64)
    seconds = np.array([step.network for step in ours])
    if len(ours) < 3:
        columns[:, 1:] = 0.0
    per_flop, per_byte, per_operation = fit_seconds(columns, seconds).tolist()
    largest = max(step.parameters for step in ours)
    rates = [OPTIMISER_TRAFFIC * s.parameters / s.optimiser for s in ours if s.parameters == largest]
    bandwidth = statistics.median(rates)
    return Device(
        name="measured",
        title=names[0],
        memory=memory,
        flops={products: 1 / max(per_flop, 1e-18)},
        bandwidth=bandwidth,
        passes=per_byte * bandwidth,
        per_operation=per_operation,
        concurrent=False,
        roofline=False,
        measured=True,
        source=f"fitted to {len(ours)} files of jmp-ds bench step",
    )
