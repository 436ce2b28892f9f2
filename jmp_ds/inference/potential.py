"""One task of a bundle as a potential: energies, their shares per atom, forces, and stress where it is a derivative.

Gradient forces need no weights of their own, so the network is built for the energy alone; forces and stress are then one
first derivative of it, by positions and by a strain of positions and cell together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import torch
from jmp_kernels import BackendName
from torch import Tensor, nn

from jmp_ds.bundle import Bundle, state_shapes
from jmp_ds.graphs.batch import Batch
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.normalise import denormalize, offset
from jmp_ds.tasks.specs import Task
from jmp_ds.tasks.strain import strained, stress_of


@dataclass(frozen=True)
class Values:
    """What a potential says of a batch of B structures with N atoms; float64, on the device.

    Attributes:
        structures: by label, [B] (`energy` in eV, scalars in their units); dipoles [B, 3], logits as the model has them.
        energies: [N], eV: what every atom adds to its structure's energy; None without an energy.
        forces: [N, 3], eV/Å; None without forces.
        stress: [B, 6], eV/Å³ in ASE's sign and order; None where it was not asked for or is no derivative of the energy.
    """

    structures: dict[str, Tensor] = field(default_factory=dict)
    energies: Tensor | None = None
    forces: Tensor | None = None
    stress: Tensor | None = None


class _Slopes(NamedTuple):
    """Derivatives of the normalised energies by positions [N, 3] and by strain [B, 3, 3]."""

    positions: Tensor
    strain: Tensor | None


class Potential:
    """Values of batches that hold structures of one task only.

    Attributes:
        task: whose heads and units are used.
        model: in evaluation mode, with this task alone; gradient forces are made here and not in it.
        conservative: whether forces are minus the gradient of the energy; only then there is a stress.
    """

    def __init__(
        self,
        bundle: Bundle,
        task: str | None,
        dtype: torch.dtype,
        device: torch.device,
        kernels: BackendName = "auto",
    ) -> None:
        """Build.

        Raises:
            UserError: there is no such task, the bundle's scale factors are not fitted, or the backend cannot run.
        """
        bundle.require_fitted()
        self.task = bundle.task(task)
        self.conservative = self.task.gradient_forces
        own = replace(self.task, forces=None, stress=None) if self.conservative else self.task
        self.model = _with_task(bundle, own).build(dtype, device, kernels).requires_grad_(False)

    def __call__(self, batch: Batch, *, stress: bool = False) -> Values:
        """Values of a batch, whose only task is this one.

        Args:
            batch: on the model's device.
            stress: whether stress is wanted; every structure then needs a cell with a volume.
        """
        if not self.conservative:
            with torch.no_grad(), _overheard(self._energy_head) as shares:
                outputs = self.model(batch)[self.task.name]
            return self._values(outputs, shares, batch)
        with torch.inference_mode(False), torch.enable_grad(), _overheard(self._energy_head) as shares:
            pos = batch.pos.detach().clone().requires_grad_()
            strain = pos.new_zeros(batch.num_structures, 3, 3).requires_grad_() if stress else None
            moved, place = (batch, pos) if strain is None else strained(batch, pos, strain)
            outputs = self.model(replace(moved, pos=place))[self.task.name]
            slopes = _slopes(outputs["energy"].sum(), pos, strain)
        return self._values({label: x.detach() for label, x in outputs.items()}, shares, batch, slopes)

    @property
    def _energy_head(self) -> nn.Module | None:
        heads = cast(nn.ModuleDict, self.model.heads[self.task.name])
        return heads["energy"] if self.task.energy is not None else None

    def _values(
        self, outputs: dict[str, Tensor], shares: list[Tensor], batch: Batch, slopes: _Slopes | None = None
    ) -> Values:
        """In units."""
        known = denormalize(self.task, outputs, batch)
        forces, stress = known.pop("forces", None), None
        if slopes is not None:
            scale = self.task.scale("energy")
            forces = -scale * slopes.positions.double()
            if slopes.strain is not None:
                stress = stress_of(scale * slopes.strain.double(), batch.cell)
        return Values(known, self._energies(shares, batch), forces, stress)

    def _energies(self, shares: list[Tensor], batch: Batch) -> Tensor | None:
        """Energy of every atom, eV: its share, its reference, and an equal part of the mean."""
        if not shares:
            return None
        norm = self.task.normalize_by("energy")
        rows = batch.rows[self.task.name]
        natoms = batch.natoms.index_select(0, batch.structure)
        single = replace(
            rows, structures=rows.atoms, atom_structure=torch.arange(batch.num_atoms, device=natoms.device)
        )
        references = offset(replace(norm, mean=0.0), batch, single)
        return shares[0].detach().double() * norm.std + references + norm.mean / natoms.double()


def _with_task(bundle: Bundle, task: Task) -> Bundle:
    """The bundle with one task, and those weights that it needs."""
    with torch.device("meta"):
        needed = state_shapes(MultiTaskModel(bundle.config, (task,)))
    return replace(bundle, tasks=(task,), state={name: x for name, x in bundle.state.items() if name in needed})


def _slopes(total: Tensor, pos: Tensor, strain: Tensor | None) -> _Slopes:
    """Derivatives of the sum of energies; zero where nothing depends on positions."""
    inputs = [pos] if strain is None else [pos, strain]
    if not total.requires_grad:
        found = [torch.zeros_like(x) for x in inputs]
    else:
        found = list(torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True))
    return _Slopes(found[0], found[1] if strain is not None else None)


@contextmanager
def _overheard(head: nn.Module | None) -> Iterator[list[Tensor]]:
    """What a head says of every atom while the context lasts, before it is summed over structures."""
    heard: list[Tensor] = []
    if head is None:
        yield heard
        return
    handle = head.register_forward_hook(lambda _module, _inputs, output: heard.append(output))
    try:
        yield heard
    finally:
        handle.remove()
