"""Output heads: a five-layer MLP per label, and the sums that make energies, forces and other labels of its numbers.

Specification sections 2 (head MLP), 7 and 9.2. The MLPs run in the precision of the features given to them, the sums in
float32 at least; both with autocast off. Every function takes zero rows, and none looks at the values of a tensor.
"""

from __future__ import annotations

from typing import cast

import torch
from jmp_kernels import DenseOnce, DenseTwice
from torch import Tensor, nn

from jmp_ds.graphs.batch import StructureRows, TaskRows
from jmp_ds.models.layers import rows_of
from jmp_ds.tasks.masses import ATOMIC_MASSES
from jmp_ds.tasks.specs import Reduction

#: Linear layers of a head (`num_mlps` of the published settings).
HEAD_LAYERS = 5


class Activation(nn.Module):
    """A place without weights: published keys count activations among the layers of a head."""


class HeadMLP(nn.Sequential):
    """Four layers width → width and one width → outputs, with activations between; PyTorch's default initialisation.

    The linear layers have the indices 0, 2, 4, 6, 8, as published. The last never has a bias.
    """

    def __init__(
        self, width: int, *, outputs: int = 1, bias: bool = True, dense: DenseOnce | DenseTwice | None = None
    ) -> None:
        """Build with fresh weights.

        Args:
            width: of the features.
            outputs: numbers per row.
            bias: whether the hidden layers have one.
            dense: the operators of dense layers.
        """
        layers: list[nn.Module] = []
        for _ in range(HEAD_LAYERS - 1):
            layers += [nn.Linear(width, width, bias=bias), Activation()]
        super().__init__(*layers, nn.Linear(width, outputs, bias=False))
        self._dense = dense or DenseTwice()

    def forward(self, features: Tensor) -> Tensor:
        """[K, width] → [K], or [K, outputs] where there are several; in the precision of the features."""
        linear = [cast(nn.Linear, layer) for layer in list(self)[::2]]
        with torch.autocast(features.device.type, enabled=False):
            x = self._dense.layers(features, [(layer.weight, layer.bias) for layer in linear[:-1]])
            return self._dense.linear(x, linear[-1].weight).squeeze(-1)


def energy(head: HeadMLP, atoms: Tensor, rows: StructureRows) -> Tensor:
    """Sum over the atoms of every structure of the task: atom features [N, width] → [B_t], float32 at least."""
    return _sum_per_structure(_wide(head(rows_of(atoms, rows.atoms))), rows)


def direct_forces(head: HeadMLP, edges: Tensor, vectors: Tensor, rows: TaskRows) -> Tensor:
    """Sum over the incoming edges of every atom of the task: number of the edge × its unit vector.

    Args:
        head: its MLP.
        edges: [E, width] features of the main edges.
        vectors: [E, 3] unit vectors, source → target.
        rows: the task's rows.

    Returns:
        [N_t, 3], float32 at least.
    """
    strength = _wide(head(rows_of(edges, rows.edges)))
    direction = _wide(rows_of(vectors, rows.edges))
    with torch.autocast(strength.device.type, enabled=False):
        contributions = strength.unsqueeze(-1) * direction
        forces = contributions.new_zeros(rows.atoms.shape[0], 3)
        return forces.index_add(0, rows.edge_atom, contributions)


def scalar(head: HeadMLP, atoms: Tensor, rows: StructureRows, reduction: Reduction) -> Tensor:
    """Sum, mean or maximum over the atoms of every structure of the task: [N, width] → [B_t], float32 at least."""
    per_atom = _wide(head(rows_of(atoms, rows.atoms)))
    return reduce_per_structure(per_atom, rows, reduction)


def logits(head: HeadMLP, atoms: Tensor, rows: StructureRows, reduction: Reduction, dropout: float) -> Tensor:
    """Scores of classes, reduced over atoms: [N, width] → [B_t] for one logit, else [B_t, classes].

    Args:
        head: its MLP.
        atoms: features of all atoms.
        rows: the task's rows.
        reduction: how atoms are combined.
        dropout: probability that a feature is dropped; 0 outside training.
    """
    features = nn.functional.dropout(rows_of(atoms, rows.atoms), dropout, training=dropout > 0.0)
    return reduce_per_structure(_wide(head(features)), rows, reduction)


def spatial_extent(head: HeadMLP, atoms: Tensor, rows: StructureRows, centred: Tensor) -> Tensor:
    """Sum of number × squared distance: atom features [N, width] → [B_t], float32 at least, in Å² × the head's unit.

    Args:
        head: its MLP, without biases as published.
        atoms: features of all atoms.
        rows: the task's rows.
        centred: positions of the task's atoms from their centre of mass, [N_t, 3] (see `from_centre_of_mass`).
    """
    charge = _wide(head(rows_of(atoms, rows.atoms)))
    with torch.autocast(charge.device.type, enabled=False):
        return _sum_per_structure(charge * centred.square().sum(-1).to(charge.dtype), rows)


def dipole(head: HeadMLP, atoms: Tensor, rows: StructureRows, centred: Tensor) -> Tensor:
    """Sum of charge × position from the centre of mass: [N, width] → [B_t, 3]. Args: see `spatial_extent`."""
    charge = _wide(head(rows_of(atoms, rows.atoms)))
    with torch.autocast(charge.device.type, enabled=False):
        return _sum_per_structure(charge.unsqueeze(-1) * centred.to(charge.dtype), rows)


def from_centre_of_mass(pos: Tensor, numbers: Tensor, rows: StructureRows) -> Tensor:
    """Positions of the task's atoms from the centre of mass of their structure: [N, 3] → [N_t, 3], in the dtype of `pos`.

    The difference is taken in float64: far from the origin, float32 would round it away. An element without a mass
    weighs as much as the heaviest.

    Args:
        pos: positions of all atoms, Å.
        numbers: their atomic numbers.
        rows: the task's rows.
    """
    table = torch.tensor(ATOMIC_MASSES, dtype=torch.float64, device=pos.device)
    mass = table[numbers.index_select(0, rows.atoms).clamp(max=len(ATOMIC_MASSES) - 1)]
    own = pos.index_select(0, rows.atoms).double()
    centre = _sum_per_structure(mass.unsqueeze(-1) * own, rows) / _sum_per_structure(mass, rows).unsqueeze(-1)
    return (own - centre.index_select(0, rows.atom_structure)).to(pos.dtype)


def sum_of_vectors(vectors: Tensor, rows: StructureRows) -> Tensor:
    """Vectors of the task's atoms [N_t, 3], added up: [B_t, 3]."""
    return _sum_per_structure(vectors, rows)


def reduce_per_structure(values: Tensor, rows: StructureRows, reduction: Reduction) -> Tensor:
    """[N_t, ...] → [B_t, ...]; a structure without atoms gets zero."""
    if reduction == "sum":
        return _sum_per_structure(values, rows)
    if reduction == "mean":
        count = _sum_per_structure(torch.ones_like(values), rows)
        return _sum_per_structure(values, rows) / count.clamp(min=1)
    with torch.autocast(values.device.type, enabled=False):
        index = rows.atom_structure.view(-1, *(1,) * (values.dim() - 1)).expand_as(values)
        zeros = values.new_zeros(rows.structures.shape[0], *values.shape[1:])
        return zeros.scatter_reduce(0, index, values, "amax", include_self=False)


def _sum_per_structure(values: Tensor, rows: StructureRows) -> Tensor:
    """[N_t, ...] → [B_t, ...]."""
    with torch.autocast(values.device.type, enabled=False):
        zeros = values.new_zeros(rows.structures.shape[0], *values.shape[1:])
        return zeros.index_add(0, rows.atom_structure, values)


def _wide(x: Tensor) -> Tensor:
    """The same numbers in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
