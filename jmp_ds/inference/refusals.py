"""What a potential refuses to answer for: atoms without neighbours, and elements it was not trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jmp_ds.errors import UserError
from jmp_ds.tasks.specs import Task

#: What is done about a refusal, where the user knows better.
ALLOW_FAR, ALLOW_UNSEEN = "allow_far=True (--allow-far)", "allow_unseen=True (--allow-unseen)"


def refuse_far(degree: NDArray[np.int64], numbers: NDArray[np.int64], cutoff: float, where: str) -> None:
    """Refuse a structure of several atoms with an atom that has no neighbour.

    Args:
        degree: neighbours of every atom in the main graph.
        numbers: atomic numbers.
        cutoff: Å.
        where: name of the structure, or nothing.

    Raises:
        UserError: names the atom.
    """
    if len(numbers) > 1 and not degree.all():
        from ase.data import chemical_symbols

        atom = int(np.flatnonzero(degree == 0)[0])
        raise UserError(
            f"{where}atom {atom} ({chemical_symbols[numbers[atom]]}) has no neighbour within {cutoff:g} Å: the model knows "
            f"no force on it; if that is meant, say {ALLOW_FAR}"
        )


def refuse_unseen(numbers: NDArray[np.int64], known: frozenset[int] | None, task: Task, where: str) -> None:
    """Refuse elements that no structure of the task's training data had, where these are known.

    Raises:
        UserError: names the elements.
    """
    if known is None:
        return
    if unseen := sorted(set(numbers.tolist()) - known):
        from ase.data import chemical_symbols

        raise UserError(
            f"{where}{', '.join(chemical_symbols[z] for z in unseen)}: not among the elements that task {task.name} was "
            f"trained on ({', '.join(chemical_symbols[z] for z in sorted(known))}); its numbers would mean nothing. "
            f"If you know better, say {ALLOW_UNSEEN}"
        )
