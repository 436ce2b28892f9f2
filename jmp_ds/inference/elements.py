"""Which elements a task of a bundle was trained on, as far as the bundle tells."""

from __future__ import annotations

from jmp_ds.bundle import Bundle
from jmp_ds.tasks.specs import Task


def known_elements(bundle: Bundle, task: Task) -> frozenset[int] | None:
    """Atomic numbers; None where the bundle does not say."""
    return frozenset(bundle.elements.get(task.name, ())) or None
