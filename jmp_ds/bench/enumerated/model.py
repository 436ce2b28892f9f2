"""The whole network as published, on the parameters of a model of this package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jmp_ds.bench.enumerated.bases import enumerated_bases
from jmp_ds.bench.enumerated.blocks import features
from jmp_ds.bench.enumerated.interactions import Inputs
from jmp_ds.bench.enumerated.layers import Weights, feature_dtype, scaled_silu, sum_rows
from jmp_ds.bench.enumerated.lists import EnumeratedLists, enumerate_batch
from jmp_ds.graphs.batch import Batch
from jmp_ds.tasks.model import MultiTaskModel, Outputs
from jmp_ds.tasks.specs import Reduction, Task

#: Indices of the linear layers of a head.
HEAD_LAYERS = (0, 2, 4, 6, 8)


class EnumeratedModel(nn.Module):
    """A model with the published shapes: every triplet and quadruplet listed, gathered and zero-padded.

    Parameters and buffers are those of the given model, so gradients arrive in the same place and both forms can be
    compared in one process. As published, quadruplet layers run on all edges, up-projections at full width, and every
    head on every structure; the rows of a task are chosen afterwards.

    Attributes:
        model: whose parameters are used; its mode (training or evaluation) counts.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        """Take a model; nothing is copied."""
        super().__init__()
        self.model = model
        modules = dict(model.named_modules())
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        # where each tensor is found at any time: moving a model to another device replaces its buffers
        self._owners = {name: (modules[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in names}

    def prepare(self, batch: Batch) -> EnumeratedLists:
        """The lists of a batch on its device, to be made before a step is timed."""
        return enumerate_batch(batch)

    def forward(self, batch: Batch, lists: EnumeratedLists | None = None) -> Outputs:
        """Normalised predictions: task → label → tensor on that task's rows, as from the model itself.

        Args:
            batch: its `rows` must name every task of the model.
            lists: from `prepare` for this batch; made here where they are missing.

        Returns:
            `energy` [B_t], `forces` [N_t, 3], scalars [B_t]; float32 at least. Gradient forces can be differentiated
            again in training mode only.
        """
        lists = self.prepare(batch) if lists is None else lists
        pos = _wide(batch.pos)
        tasks = [task for task in self.model.tasks if task.gradient_forces]
        if not tasks:
            return self._outputs(batch, lists, pos)
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            if not pos.requires_grad:
                pos = pos.detach().clone().requires_grad_()
            outputs = self._outputs(batch, lists, pos)
            total = torch.stack([outputs[task.name]["energy"].sum() for task in tasks]).sum()
            training = self.model.training
            (gradient,) = torch.autograd.grad(
                total, pos, create_graph=training, retain_graph=training or recorded, materialize_grads=True
            )
        for task in tasks:
            outputs[task.name]["forces"] = -gradient.index_select(0, batch.rows[task.name].atoms).to(total.dtype)
        if recorded:
            return outputs
        return {name: {label: x.detach() for label, x in own.items()} for name, own in outputs.items()}

    def _outputs(self, batch: Batch, lists: EnumeratedLists, pos: Tensor) -> Outputs:
        """Everything that a head predicts."""
        weights = Weights({name: getattr(owner, key) for name, (owner, key) in self._owners.items()})
        backbone, config = weights.below("backbone"), self.model.config
        bases = enumerated_bases(
            backbone.below("bases"),
            batch.graph,
            lists,
            pos,
            orders=config.num_spherical,
            dihedral=self.model.tasks[0].graph.dihedral,
            features=feature_dtype(backbone["embedding.weight"]),
        )
        inputs = Inputs(batch.graph, lists, bases)
        atoms, edges = features(backbone, config, inputs, batch.atomic_numbers, 1.0 - batch.edge_dropout)
        return {
            task.name: _task_outputs(weights.below(f"heads.{task.name}"), task, batch, atoms, edges, bases.vectors)
            for task in self.model.tasks
        }


def _task_outputs(
    w: Weights, task: Task, batch: Batch, atoms: Tensor, edges: Tensor | None, vectors: Tensor
) -> dict[str, Tensor]:
    """All heads of one task on the whole batch, then the task's own rows."""
    rows, outputs = batch.rows[task.name], {}
    if task.energy is not None:
        energy = _reduced(_head(w.below("energy"), atoms), batch, "sum")
        outputs["energy"] = energy.index_select(0, rows.structures)
    if task.direct_forces and edges is not None:
        strength = _head(w.below("forces"), edges)
        forces = sum_rows(strength[:, None] * _wide(vectors), batch.graph.main.target, batch.num_atoms)
        outputs["forces"] = forces.index_select(0, rows.atoms)
    for target in task.scalars:
        scalar = _reduced(_head(w.below(target.label), atoms), batch, target.reduction)
        outputs[target.label] = scalar.index_select(0, rows.structures)
    return outputs


def _head(w: Weights, x: Tensor) -> Tensor:
    """Five linear layers with activations between: [R, width] to [R], float32 at least."""
    for k in HEAD_LAYERS:
        x = nn.functional.linear(x, w[f"{k}.weight"], w.get(f"{k}.bias"))
        x = scaled_silu(x) if k != HEAD_LAYERS[-1] else x
    return _wide(x.squeeze(-1))


def _reduced(values: Tensor, batch: Batch, reduction: Reduction) -> Tensor:
    """Numbers of atoms [N] to one per structure [B]."""
    if reduction == "max":
        zeros = values.new_zeros(batch.num_structures)
        return zeros.scatter_reduce(0, batch.structure, values, "amax", include_self=False)
    total = sum_rows(values, batch.structure, batch.num_structures)
    return total if reduction == "sum" else total / batch.natoms.clamp(min=1).to(total.dtype)


def _wide(x: Tensor) -> Tensor:
    """The same numbers in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
