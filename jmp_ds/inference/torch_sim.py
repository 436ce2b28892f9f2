"""A bundle as a model of TorchSim (package `torch-sim-atomistic`, extra `torchsim`), which moves many structures at once.

Import this module only where that package is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jmp_kernels import BackendName
from torch import Tensor

from jmp_ds.bundle import Bundle, load_bundle
from jmp_ds.errors import UserError
from jmp_ds.graphs.assemble import Structure, assemble
from jmp_ds.inference.elements import known_elements
from jmp_ds.inference.potential import Potential
from jmp_ds.inference.predictor import device_of, dtype_of
from jmp_ds.inference.refusals import refuse_far, refuse_unseen

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise UserError("TorchSim is not installed: pip install torch-sim-atomistic") from error

if TYPE_CHECKING:
    from torch_sim.state import SimState


class JMPTorchSim(ModelInterface):
    """Energies [B], forces [N, 3] and, with gradient forces, stress [B, 3, 3], of a TorchSim state.

    Attributes:
        task: that is computed.
        compute_stress: whether there is a stress; it cannot be switched on where forces are not a gradient.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        task: str | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
        allow_far: bool = False,
        allow_unseen: bool = False,
        kernels: BackendName = "auto",
    ) -> None:
        """Load and build. Args: as for `JMPCalculator`.

        Raises:
            UserError: a bundle, task, device, precision or backend that there is not, or a task without energy and forces.
        """
        super().__init__()
        found = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self._device = device_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = dtype_of(dtype)
        self._potential = Potential(found, task, self._dtype, self._device, kernels)
        self.task = self._potential.task
        if self.task.energy is None or self.task.forces is None:
            raise UserError(f"task {self.task.name} has no energy with forces")
        self._compute_forces, self._compute_stress = True, self._potential.conservative
        self._memory_scales_with = "n_atoms"  # caps on neighbours
        self._allow_far = allow_far
        self._elements = None if allow_unseen else known_elements(found, self.task)

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Everything that can be had of the structures of a state, which is left as it is.

        Raises:
            UserError: what the model cannot answer for, with the structure's number.
        """
        if isinstance(state, dict):
            raise UserError("give a SimState, such as torch_sim.io.atoms_to_state makes")
        structures = self._structures(state)
        batch = assemble(structures, [0] * len(structures), [(self.task.name, self.task.graph)]).to(self._device)
        degree = torch.diff(batch.graph.main.by_target.first).cpu().split([s.natoms for s in structures])
        for k, (structure, own) in enumerate(zip(structures, degree, strict=True)):
            refuse_unseen(structure.atomic_numbers, self._elements, self.task, f"structure {k}: ")
            if not self._allow_far:
                refuse_far(own.numpy(), structure.atomic_numbers, self.task.graph.cutoff, f"structure {k}: ")
        values = self._potential(batch, stress=self._compute_stress)
        found = {"energy": values.structures["energy"], "forces": values.forces}
        if values.stress is not None:
            found["stress"] = values.stress[:, [0, 5, 4, 5, 1, 3, 4, 3, 2]].view(-1, 3, 3)
        answer = {name: x.to(self._dtype) for name, x in found.items() if x is not None}
        if not all(bool(torch.isfinite(x).all()) for x in answer.values()):
            raise UserError("the prediction is not finite; are atoms on top of each other?")
        return answer

    def _structures(self, state: SimState) -> list[Structure]:
        """On the host; TorchSim's cells have their vectors as columns."""
        natoms = torch.bincount(state.system_idx, minlength=state.n_systems).tolist()
        pos = state.positions.detach().double().cpu().split(natoms)
        numbers = state.atomic_numbers.cpu().long().split(natoms)
        cells = state.row_vector_cell.detach().double().cpu().numpy()
        pbc = torch.as_tensor(state.pbc).cpu().expand(3).numpy()
        return [
            Structure(pos=p.numpy(), atomic_numbers=z.numpy(), cell=cell, pbc=pbc)
            for p, z, cell in zip(pos, numbers, cells, strict=True)
        ]
