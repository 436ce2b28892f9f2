"""The whole network: one backbone, and for every task its heads on its own rows of the batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from jmp_kernels import DenseOnce, DenseTwice, Messages, Operators, TorchMessages
from torch import Tensor, nn

from jmp_ds.errors import UserError
from jmp_ds.graphs.batch import Batch, StructureRows, TaskRows
from jmp_ds.models.backbone import Backbone, BackboneOutput
from jmp_ds.models.config import BackboneConfig
from jmp_ds.tasks import heads
from jmp_ds.tasks.specs import ClassTarget, DipoleTarget, ExtentTarget, Reduction, Task
from jmp_ds.tasks.strain import strained, stress_of

Outputs = dict[str, dict[str, Tensor]]

#: Ends the name of the head that gives a dipole's vectors of atoms.
ATOMIC = "_atomic"


class _Differentiable(NamedTuple):
    """Positions and strain that energies are differentiated by, and whether the caller records gradients."""

    pos: Tensor
    strain: Tensor | None
    recorded: bool


class MultiTaskModel(nn.Module):
    """Backbone and heads of several tasks.

    Parameters are named `backbone.*` and `heads.TASK.LABEL.*`. Outputs are normalised; `jmp_ds.tasks.normalise` gives
    them units. Every head runs in every forward pass, with zero rows if need be, so all ranks use the same parameters.

    Attributes:
        tasks: as given.
        config: of the backbone; its force branch exists iff a head reads features of edges.
    """

    def __init__(self, config: BackboneConfig, tasks: Sequence[Task], messages: Messages | None = None) -> None:
        """Build with fresh weights.

        Args:
            config: of the backbone.
            tasks: what is predicted.
            messages: what message passing is computed by; the default is PyTorch, which runs anywhere.

        Raises:
            UserError: no task, names that cannot be used, or tasks that do not fit into one model.
        """
        super().__init__()
        check_tasks(tasks)
        self.tasks = tuple(tasks)
        self.config = replace(config, direct_forces=any(task.edge_features for task in tasks))
        twice = any(task.gradient_forces for task in tasks)
        self.operators = Operators(messages or TorchMessages(), DenseTwice() if twice else DenseOnce())
        self.backbone = Backbone(self.config, self.tasks[0].graph.dihedral, self.operators)
        own = {task.name: _heads_of(task, self.config, self.operators) for task in self.tasks}
        self.heads = nn.ModuleDict(own)

    def units(self) -> list[nn.Module]:
        """Parts whose weights are used only while they run (see `Backbone.units`), heads included."""
        return [
            *self.backbone.units(),
            *(mlp for own in self.heads.values() for mlp in cast(nn.ModuleDict, own).values()),
        ]

    def forward(self, batch: Batch) -> Outputs:
        """Normalised predictions: task → label → tensor on that task's rows.

        Args:
            batch: its `rows` must name every task of the model.

        Returns:
            `energy` [B_t], `forces` [N_t, 3], `stress` [B_t, 6], scalars and extents [B_t], dipoles [B_t, 3] or [B_t],
            logits [B_t] or [B_t, classes]; float32 at least. Gradient forces and stress can be differentiated again in
            training mode only; they are also computed where the caller has switched gradients off.
        """
        gradient_tasks = [task for task in self.tasks if task.gradient_forces]
        pos = _at_least_float32(batch.pos)
        if not gradient_tasks:
            return self._outputs(batch, self._backbone(batch, pos), batch.pos)
        recorded = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if not pos.requires_grad:
                pos = pos.detach().clone().requires_grad_()
            moved, place, strain = batch, pos, None
            if any(task.gradient_stress for task in gradient_tasks):
                strain = pos.new_zeros(batch.num_structures, 3, 3).requires_grad_()
                moved, place = strained(batch, pos, strain)
            outputs = self._outputs(batch, self._backbone(moved, place), place)
            self._add_derivatives(outputs, batch, gradient_tasks, _Differentiable(pos, strain, recorded))
        if recorded:
            return outputs
        return {name: {label: x.detach() for label, x in own.items()} for name, own in outputs.items()}

    def features(self, batch: Batch, reduction: Reduction = "mean") -> Tensor:
        """Embedding of every structure: its atoms' features, reduced; [B, emb_size_atom], float32 at least."""
        atoms = _at_least_float32(self._backbone(batch, _at_least_float32(batch.pos)).atoms)
        every = torch.arange(batch.num_atoms, device=atoms.device)
        rows = StructureRows(torch.arange(batch.num_structures, device=atoms.device), every, batch.structure)
        return heads.reduce_per_structure(atoms, rows, reduction)

    def _backbone(self, batch: Batch, pos: Tensor) -> BackboneOutput:
        output: BackboneOutput = self.backbone(pos, batch.atomic_numbers, batch.graph, batch.edge_dropout)
        return output

    def _outputs(self, batch: Batch, features: BackboneOutput, pos: Tensor) -> Outputs:
        """Everything that a head predicts; gradient forces are not among it."""
        result: Outputs = {}
        for task in self.tasks:
            rows, atoms = batch.rows[task.name], features.atoms
            own = {label: cast(heads.HeadMLP, mlp) for label, mlp in cast(nn.ModuleDict, self.heads[task.name]).items()}
            values: dict[str, Tensor] = {}
            if task.energy is not None:
                values["energy"] = heads.energy(own["energy"], atoms, rows)
            if task.direct_forces:
                edges = cast(Tensor, features.edges)  # the force branch exists iff a head reads features of edges
                values["forces"] = heads.direct_forces(own["forces"], edges, features.vectors, rows)
            for scalar in task.scalars:
                values[scalar.label] = heads.scalar(own[scalar.label], atoms, rows, scalar.reduction)
            if (target := task.classification) is not None:
                dropout = target.dropout if self.training else 0.0
                values[target.label] = heads.logits(own[target.label], atoms, rows, target.reduction, dropout)
            if task.spatial_extent is not None or task.dipole is not None:
                centred = heads.from_centre_of_mass(pos, batch.atomic_numbers, rows)
                values |= _moments(task, own, features, rows, centred)
            result[task.name] = {label: values[label] for label in task.labels if label in values}
        return result

    def _add_derivatives(self, outputs: Outputs, batch: Batch, tasks: Sequence[Task], at: _Differentiable) -> None:
        """Forces as minus the gradient of the tasks' own energies, and stress, written into `outputs`.

        Structures do not see each other, so one gradient of the sum of energies serves them all.
        """
        with torch.autocast(at.pos.device.type, enabled=False):
            total = torch.stack([outputs[task.name]["energy"].sum() for task in tasks]).sum()
            slopes = torch.autograd.grad(
                total,
                [at.pos] if at.strain is None else [at.pos, at.strain],
                create_graph=self.training,
                retain_graph=self.training or at.recorded,
                allow_unused=True,
                materialize_grads=True,
            )
            stress = None if at.strain is None else stress_of(slopes[1], batch.cell).to(total.dtype)
        for task in tasks:
            rows, own = batch.rows[task.name], outputs[task.name]
            own["forces"] = -slopes[0].index_select(0, rows.atoms).to(total.dtype)
            if task.gradient_stress and stress is not None:
                own["stress"] = stress.index_select(0, rows.structures)


def _moments(
    task: Task, own: dict[str, heads.HeadMLP], features: BackboneOutput, rows: TaskRows, centred: Tensor
) -> dict[str, Tensor]:
    """Spatial extent and dipole, whichever the task has."""
    values: dict[str, Tensor] = {}
    if (extent := task.spatial_extent) is not None:
        values[extent.label] = heads.spatial_extent(own[extent.label], features.atoms, rows, centred)
    if (target := task.dipole) is not None:
        vector = heads.dipole(own[target.label], features.atoms, rows, centred)
        if target.atomic:
            edges = cast(Tensor, features.edges)
            per_atom = heads.direct_forces(own[target.label + ATOMIC], edges, features.vectors, rows)
            vector = vector + heads.sum_of_vectors(per_atom, rows)
        values[target.label] = torch.linalg.vector_norm(vector, dim=-1) if target.norm else vector
    return values


def _at_least_float32(x: Tensor) -> Tensor:
    """The same numbers, in float32 where they were narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse tasks that cannot form one model.

    Raises:
        UserError: what is wrong with which task.
    """
    if not tasks:
        raise UserError("a model needs at least one task")
    names = [task.name for task in tasks]
    for task in tasks:
        _check_name("task", task.name, where="")
        if names.count(task.name) > 1:
            raise UserError(f"two tasks are named {task.name!r}; names must differ")
        for target in task.of_structures:
            _check_name("label", target.label, where=f"task {task.name}: ")
            if target.label in ("energy", "forces", "stress"):
                raise UserError(f"task {task.name}: {target.label!r} is no scalar; set `{target.label}:` on the task")
            if task.labels.count(target.label) > 1:
                raise UserError(f"task {task.name}: two targets are labelled {target.label!r}")
        if task.graph.dihedral != tasks[0].graph.dihedral:
            raise UserError(
                f"tasks {names[0]} and {task.name} have dihedral: {tasks[0].graph.dihedral} and {task.graph.dihedral}; "
                "one network has one kind of dihedral angle"
            )


def _check_name(what: str, name: str, where: str) -> None:
    """Names become parts of parameter names and of table columns."""
    if re.search(r"[./\s]", name) or not name:
        raise UserError(f"{where}{what} name {name!r}: must not be empty or contain a dot, a slash or white space")
    if hasattr(nn.ModuleDict, name) or name == "training":
        raise UserError(f"{where}{what} name {name!r} is reserved; choose another, such as {name + '_1'!r}")


def _heads_of(task: Task, config: BackboneConfig, operators: Operators) -> nn.ModuleDict:
    """One MLP per label that a head predicts."""
    mlps: dict[str, nn.Module] = {}
    if task.energy is not None:
        mlps["energy"] = heads.HeadMLP(config.emb_size_atom, bias=task.energy.bias, dense=operators.dense)
    if task.direct_forces:
        mlps["forces"] = heads.HeadMLP(config.emb_size_edge, dense=operators.dense)
    for target in task.of_structures:
        outputs = target.logits if isinstance(target, ClassTarget) else 1
        # charges of atoms come without biases, as published for the spatial extent
        bias = not isinstance(target, ExtentTarget | DipoleTarget)
        mlps[target.label] = heads.HeadMLP(config.emb_size_atom, outputs=outputs, bias=bias, dense=operators.dense)
    if task.dipole is not None and task.dipole.atomic:
        mlps[task.dipole.label + ATOMIC] = heads.HeadMLP(config.emb_size_edge, dense=operators.dense)
    return nn.ModuleDict(mlps)
