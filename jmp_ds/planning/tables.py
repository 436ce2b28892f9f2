"""A plan as tables for people; every number with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jmp_ds.data.inspect import Table
from jmp_ds.planning.devices import GIB, Device
from jmp_ds.planning.largest import Largest
from jmp_ds.planning.plan import Prediction


def memory_table(found: Sequence[Prediction]) -> Table:
    """Memory per device by component; one row per setting."""
    columns = ("ZeRO", "recompute", "parameters", "gradients", "masters", "moments", "average", "buckets",
               "activations", "workspace", "step", "peak", "machine", "fits")  # fmt: skip
    rows = []
    for p in found:
        m, s = p.memory, p.memory.states
        sizes = (s.parameters + s.gathered, s.gradients, s.masters, s.moments, s.average, s.buckets,
                 m.activations, m.workspace, s.in_step, m.total)  # fmt: skip
        machine = "-" if p.setting.offload == "none" else _gib(p.host)
        rows.append((*_of(p), *(_gib(size) for size in sizes), machine, _verdict(p)))
    limit, host = found[0].limit / GIB, found[0].host_limit / GIB
    title = (
        f"memory per device in GiB; {limit:.1f} usable. peak: the larger of the backward pass and the optimiser's step. "
        f"machine: what is offloaded, of all its processes; {host:.0f} usable"
    )
    return Table(title, columns, tuple(rows))


def time_table(found: Sequence[Prediction], structures: float | None, epochs: float, edges: float | None) -> Table:
    """Time of an optimiser step by component, and of a data set; one row per setting.

    Args:
        found: predictions.
        structures: of the data set, or None.
        epochs: number of epochs.
        edges: main edges per structure of the data set, or None for those of the batch.
    """
    columns = ("ZeRO", "recompute", "products", "passes", "starting", "optimiser", "collectives", "transfers", "step",
               "structures/s", "device-hours")  # fmt: skip
    rows = []
    for p in found:
        t = p.time
        parts = (t.products, t.passes, t.starting, t.optimiser, t.collectives, t.transfers, t.total)
        hours = "-" if structures is None else f"{p.device_hours(structures, epochs, edges):.4g}"
        rows.append((*_of(p), *(f"{1e3 * part:.4g}" for part in parts), f"{p.structures_per_s:.4g}", hours))
    return Table("time of an optimiser step in ms", columns, tuple(rows))


def sweep_table(found: Sequence[tuple[int, Prediction | None, str]]) -> Table:
    """The best setting for every number of devices.

    Args:
        found: devices, the setting or None, and what it would run with or why nothing fits.
    """
    rows: list[tuple[str, ...]] = []
    columns = ("devices", "ZeRO", "recompute", "peak (GiB)", "step (ms)", "collectives (ms)", "structures/s", "with")
    for world, p, words in found:
        if p is None:
            rows.append((str(world), "-", "-", "-", "-", "-", "-", words))
            continue
        figures = (1e3 * p.time.total, 1e3 * p.time.collectives, p.structures_per_s)
        rows.append((str(world), *_of(p), _gib(p.memory.total), *(f"{f:.4g}" for f in figures), words))
    return Table("by number of devices, the same micro-batch on each", columns, tuple(rows))


def largest_table(found: Sequence[tuple[str, Largest]], device: Device) -> Table:
    """Largest structure per device.

    Args:
        found: what the row is for, and the structure.
        device: on what.
    """
    rows = tuple(
        (what, f"{x.atoms:,}", f"{x.edges:,}", f"{x.per_atom / 2**20:.3g}", _gib(x.fixed)) for what, x in found
    )
    columns = ("", "atoms", "edges", "MiB per atom", "GiB besides")
    return Table(f"largest structure on one {device.title}, slab of 30 neighbours", columns, rows)


def as_json(p: Prediction, structures: float | None, epochs: float, edges: float | None) -> dict[str, Any]:
    """A prediction as plain values; bytes and seconds."""
    s, m = p.setting, p.memory
    return {
        "stage": s.stage,
        "offload": s.offload,
        "host_bytes": p.host,
        "host_usable_bytes": p.host_limit,
        "recompute": s.recompute,
        "fits": p.fits,
        "refused": p.refused,
        "usable_bytes": p.limit,
        "peak_bytes": m.total,
        "bytes": {**asdict(m.states), "activations": m.activations, "workspace": m.workspace},
        "seconds": {**asdict(p.time), "total": p.time.total},
        "structures_per_s": p.structures_per_s,
        "device_hours": None if structures is None else p.device_hours(structures, epochs, edges),
    }


def _of(p: Prediction) -> tuple[str, str]:
    s = p.setting
    stage = str(s.stage) if s.offload == "none" else f"{s.stage}, offload {s.offload}"
    return stage, "on" if s.recompute else "off"


def _gib(size: float) -> str:
    return f"{size / GIB:.3g}" if size < 100 * GIB else f"{size / GIB:.0f}"


def _verdict(p: Prediction) -> str:
    return "refused" if p.refused else "yes" if p.fits else "no"
