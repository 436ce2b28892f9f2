"""Which ZeRO stage, with or without recomputation, and which ready configuration; what does not fit, and what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jmp_ds.planning.batches import with_edges
from jmp_ds.planning.devices import GIB, Cluster, Device
from jmp_ds.planning.offload import STAGE_OF, Offload
from jmp_ds.planning.plan import Prediction, Setting, predict
from jmp_ds.planning.states import STAGES, PrecisionName, Stage

_WORDS: dict[Offload, str] = {"optimiser": "optimiser states", "all": "optimiser states and parameters"}
#: Two settings whose steps differ by less than this share count as equally fast: then the one with less memory is taken.
_AS_FAST = 0.02


@dataclass(frozen=True)
class ReadyConfig:
    """A DeepSpeed configuration that comes with the project.

    Attributes:
        name: of the file, without `.json`.
        stage: of ZeRO.
        precision: of the training.
        offload: what it keeps in the machine's memory.
        for_cpu: whether it is made for CPU processes.
        for_one: whether it is made for a single process.
    """

    name: str
    stage: int
    precision: PrecisionName
    offload: Offload
    for_cpu: bool
    for_one: bool = False


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
    offload: Offload = "all" if "offload_param" in zero else "optimiser" if "offload_optimizer" in zero else "none"
    return ReadyConfig(
        name, int(zero.get("stage", 0)), precision, offload, name.startswith("cpu"), name.startswith("one_gpu")
    )


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


def offloaded(
    setting: Setting,
    device: Device,
    cluster: Cluster,
    kinds: Sequence[Offload] = tuple(STAGE_OF),
    recompute: Sequence[bool] = (False, True),
) -> list[Prediction]:
    """Predictions with states in the machine's memory, each kind at its stage, with and without recomputation."""
    settings = [replace(setting, stage=STAGE_OF[k], offload=k, recompute=r) for r in recompute for k in kinds]
    return [predict(each, device, cluster) for each in settings]


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
    s = found.setting
    wanted = (s.stage, s.precision, s.offload)
    fitting = (c for c in configs if not c.for_cpu and (s.world == 1 or not c.for_one))
    return next((c.name for c in fitting if (c.stage, c.precision, c.offload) == wanted), None)


def _use(best: Prediction, config: str | None) -> str:
    s = best.setting
    beside = "" if s.offload == "none" else f" with offload of {_WORDS[s.offload]}"
    name = config or f"a configuration of your own (no ready one has stage {s.stage} in {s.precision}{beside})"
    return (
        f"Use {name}: ZeRO stage {s.stage}, recompute {'on' if s.recompute else 'off'}; "
        f"{best.memory.total / GIB:.1f} of {best.limit / GIB:.1f} usable GiB per device, {_of_machine(best)}"
        f"about {best.time.total:.3g} s per step."
    )


def _of_machine(p: Prediction) -> str:
    """What the machine's memory has to hold, where anything is offloaded."""
    if p.setting.offload == "none":
        return ""
    return f"{p.host / GIB:.1f} of {p.host_limit / GIB:.1f} usable GiB per machine for {_WORDS[p.setting.offload]}, "


def _refusals(found: Sequence[Prediction]) -> list[str]:
    """Why settings are not allowed at all."""
    return sorted({f"Stage {p.setting.stage} is out: {p.refused}." for p in found if p.refused})


def _left_out(found: Sequence[Prediction]) -> list[str]:
    """What does not fit, by recomputation."""
    lines = []
    for on in (False, True):
        over = [p for p in found if p.setting.recompute is on and p.memory.total > p.limit and not p.refused]
        if over:
            stages = ", ".join(_named(p) for p in over)
            least = min(p.memory.total - p.limit for p in over)
            lines.append(
                f"Does not fit: stage {stages} with recompute {'on' if on else 'off'}, by {least / GIB:.1f} GiB or more."
            )
    return [*lines, *_over_host(found)]


def _named(p: Prediction) -> str:
    s = p.setting
    return str(s.stage) if s.offload == "none" else f"{s.stage} with offload of {_WORDS[s.offload]}"


def _over_host(found: Sequence[Prediction]) -> list[str]:
    """What the machine's memory cannot hold, by kind."""
    needs = {p.setting.offload: p for p in found if p.host > p.host_limit and not p.refused}
    return [
        f"Does not fit: {_WORDS[kind]} take {p.host / GIB:.1f} GiB of each machine's memory, {p.host_limit / GIB:.1f} GiB "
        "are usable: take more machines, or fewer processes on each, or one with more memory (--host-memory)."
        for kind, p in needs.items()
    ]


def _what_to_change(found: Sequence[Prediction], device: Device, cluster: Cluster) -> list[str]:
    """Nothing fits: by how much, and what would help."""
    allowed = [p for p in found if not p.refused]
    if not allowed:
        return ["Nothing is left: ask for another stage."]
    if _over_host(allowed) and any(p.memory.total <= p.limit for p in allowed):
        return ["Nothing fits on the devices alone.", *_over_host(allowed)]
    least = min(allowed, key=lambda p: p.memory.total)
    s, states = least.setting, least.memory.states
    lines = [
        f"Nothing fits: even stage {_named(least)}, recompute {'on' if s.recompute else 'off'} needs "
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
