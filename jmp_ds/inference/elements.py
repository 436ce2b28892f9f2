"""Which elements a task of a bundle was trained on, as far as the bundle tells."""

from __future__ import annotations

from jmp_ds.bundle import Bundle
from jmp_ds.tasks.specs import Task


def known_elements(bundle: Bundle, task: Task) -> frozenset[int] | None:
    """Atomic numbers; None where the bundle does not say.

    They are what the provenance of the task's data lists, or else the elements that have an energy reference.
    """
    data = bundle.provenance.get("data")
    listed = data.get(task.name, {}).get("elements") if isinstance(data, dict) else None
    if listed:
        return frozenset(int(z) for z in listed)
    references = task.normalize_by("energy").references
    return frozenset(z for z, reference in enumerate(references) if reference) or None
