"""The largest structure that one device can train on: what decides whether a graph must be divided over devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jmp_ds.models.counts import BatchCounts
from jmp_ds.planning.batches import BatchPlan, per_atom
from jmp_ds.planning.devices import Device
from jmp_ds.planning.plan import Setting, process_memory

#: Atoms for which the need per atom is taken; it is proportional to atoms.
_MANY = 10_000


@dataclass(frozen=True)
class Largest:
    """The largest structure.

    Attributes:
        atoms, edges: of one structure that fills the device; 0 where the model alone does not fit.
        per_atom: bytes.
        fixed: bytes that do not depend on the structure.
    """

    atoms: int
    edges: int
    per_atom: float
    fixed: int


def largest_structure(setting: Setting, device: Device, like: str = "slab225x4") -> Largest:
    """The largest structure with the proportions of a named batch (30 neighbours, published rules).

    Args:
        setting: everything but its batch counts.
        device: where.
        like: batch whose counts per atom are taken.
    """
    ratios = per_atom(like)
    counts = BatchCounts(**{**{k: int(v * _MANY) for k, v in ratios.items()}, "structures": 1, "atoms": _MANY})
    setting = replace(setting, batch=BatchPlan(like, counts))
    memory = process_memory(setting, setting.parameters)
    copies = 0 if setting.recompute else memory.activations - _activations_alone(setting)
    each = (memory.activations - copies + memory.workspace) / _MANY
    fixed, limit = memory.states.in_backward + copies, device.usable
    fits = memory.states.in_step <= limit
    atoms = max(int((limit - fixed) / each), 0) if fits else 0
    return Largest(atoms, int(atoms * ratios["main"]), each, max(fixed, memory.states.in_step))


def _activations_alone(setting: Setting) -> int:
    """What autograd keeps without copies of weights."""
    return process_memory(setting, 0).activations
