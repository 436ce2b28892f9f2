"""Which ZeRO stage, with or without recomputation, and which ready configuration; what does not fit, and what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jmp_ds.planning.batches import with_edges
from jmp_ds.planning.devices import GIB, Cluster, Device
from jmp_ds.planning.plan import Prediction, Setting, predict
from jmp_ds.planning.states import STAGES, PrecisionName, Stage

#: Two settings whose steps differ by less than this share count as equally fast: then the one with less memory is taken.
_AS_FAST = 0.02


@dataclass(frozen=True)
class ReadyConfig:
    """A DeepSpeed configuration that comes with the project.

    Attributes:
        name: of the file, without `.json`.
        stage: of ZeRO.
        precision: of the training.
        plain: whether it neither offloads nor is made for CPU processes.
    """

    name: str
    stage: int
    precision: PrecisionName
    plain: bool


def ready_config(name: str, values: Mapping[str, Any]) -> ReadyConfig:
    """What a configuration is for.

    Args:
        name: of the file.
        values: its content.
    """
    zero = values.get("zero_optimization", {})
    precision: PrecisionName = "float32"
    for section, meant in (("torch_autocast", "bf16"), ("bf16", "deepspeed-bf16"), ("fp16", "deepspeed-fp16")):
        if values.get(section, {}).get("enabled", False):
            precision = meant  # type: ignore[assignment]
    plain = not name.startswith("cpu") and not any(key.startswith("offload") for key in zero)
    return ReadyConfig(name, int(zero.get("stage", 0)), precision, plain)


@dataclass(frozen=True)
class Choice:
    """What to run.

    Attributes:
        best: the setting to take; None where nothing fits.
        config: name of a ready configuration for it, or None.
        advice: sentences: what to use, what does not fit and why, what to change.
    """

    best: Prediction | None
    config: str | None
    advice: list[str]


def candidates(
    setting: Setting,
    device: Device,
    cluster: Cluster,
    stages: Sequence[Stage] = STAGES,
    recompute: Sequence[bool] = (False, True),
) -> list[Prediction]:
    """Predictions for stages with and without recomputation."""
    return [predict(replace(setting, stage=s, recompute=r), device, cluster) for r in recompute for s in stages]


def choose(
    found: Sequence[Prediction], device: Device, cluster: Cluster, configs: Sequence[ReadyConfig] = ()
) -> Choice:
    """The fastest setting that fits and is allowed; among equally fast ones the one with the least memory.

    Settings with a ready configuration come first, others only where none of those fits.
    """
    allowed = [p for p in found if p.fits and not p.refused]
    ready = [p for p in allowed if _config_of(p, configs)]
    best = _fastest(ready) or _fastest(allowed)
    if best is None:
        return Choice(None, None, [*_refusals(found), *_what_to_change(found, device, cluster)])
    config = _config_of(best, configs)
    return Choice(best, config, [_use(best, config), *_refusals(found), *_left_out(found)])


def _fastest(found: Sequence[Prediction]) -> Prediction | None:
    if not found:
        return None
    limit = (1 + _AS_FAST) * min(p.time.total for p in found)
    return min((p for p in found if p.time.total <= limit), key=lambda p: (p.memory.total, p.setting.stage))


def _config_of(found: Prediction, configs: Sequence[ReadyConfig]) -> str | None:
    wanted = (found.setting.stage, found.setting.precision)
    return next((c.name for c in configs if c.plain and (c.stage, c.precision) == wanted), None)


def _use(best: Prediction, config: str | None) -> str:
    s = best.setting
    name = config or f"a configuration of your own (no ready one has stage {s.stage} in {s.precision})"
    return (
        f"Use {name}: ZeRO stage {s.stage}, recompute {'on' if s.recompute else 'off'}; "
        f"{best.memory.total / GIB:.1f} of {best.limit / GIB:.1f} usable GiB per device, "
        f"about {best.time.total:.3g} s per step."
    )


def _refusals(found: Sequence[Prediction]) -> list[str]:
    """Why settings are not allowed at all."""
    return sorted({f"Stage {p.setting.stage} is out: {p.refused}." for p in found if p.refused})


def _left_out(found: Sequence[Prediction]) -> list[str]:
    """What does not fit, by recomputation."""
    lines = []
    for on in (False, True):
        over = [p for p in found if p.setting.recompute is on and not p.fits and not p.refused]
        if over:
            stages = ", ".join(str(p.setting.stage) for p in over)
            least = min(p.memory.total - p.limit for p in over)
            lines.append(
                f"Does not fit: stage {stages} with recompute {'on' if on else 'off'}, by {least / GIB:.1f} GiB or more."
            )
    return lines


def _what_to_change(found: Sequence[Prediction], device: Device, cluster: Cluster) -> list[str]:
    """Nothing fits: by how much, and what would help."""
    allowed = [p for p in found if not p.refused]
    if not allowed:
        return ["Nothing is left: ask for another stage."]
    least = min(allowed, key=lambda p: p.memory.total)
    s, states = least.setting, least.memory.states
    lines = [
        f"Nothing fits: even stage {s.stage} with recompute {'on' if s.recompute else 'off'} needs "
        f"{least.memory.total / GIB:.1f} GiB, and {least.limit / GIB:.1f} GiB are usable on {device.title}."
    ]
    room = least.limit - states.in_backward
    if states.in_step <= least.limit and room > 0:
        edges = int(s.batch.counts.main * room / (least.memory.activations + least.memory.workspace))
        if edges:
            lines.append(f"Take micro-batches of at most about {edges} edges (sampling.batch) and raise accumulation.")
            return lines
    return [*lines, _more_devices(least, allowed, device, cluster)]


def _more_devices(least: Prediction, allowed: Sequence[Prediction], device: Device, cluster: Cluster) -> str:
    """Parameters, gradients and optimiser alone are too large."""
    states = least.memory.states
    words = f"Parameters, gradients and optimiser alone take {max(states.in_backward, states.in_step) / GIB:.1f} GiB"
    world = least.setting.world
    while (world := 2 * world) <= 65536:
        for p in allowed:
            setting = replace(p.setting, world=world, batch=with_edges(p.setting.batch, 1))
            if predict(setting, device, cluster).fits:
                return (
                    f"{words}: take {world} devices or more at stage {setting.stage}, or 16-bit parameters, or offload."
                )
    return f"{words}, and more devices do not help: take a device with more memory, 16-bit parameters, or offload."
