"""The head MLP as specified, and the sums over atoms and edges."""

from __future__ import annotations

import pytest
import torch

from jmp_ds.tasks import heads


def test_parameters_are_named_and_shaped_as_published() -> None:
    shapes = {name: tuple(p.shape) for name, p in heads.HeadMLP(6).named_parameters()}
    expected = {f"{i}.weight": (6, 6) for i in (0, 2, 4, 6)} | {f"{i}.bias": (6,) for i in (0, 2, 4, 6)}
    assert shapes == expected | {"8.weight": (1, 6)}
    assert list(dict(heads.HeadMLP(6, bias=False).named_parameters())) == [f"{i}.weight" for i in (0, 2, 4, 6, 8)]


def test_mlp_is_the_written_out_formula() -> None:
    torch.manual_seed(0)
    head, x = heads.HeadMLP(5).double(), torch.randn(7, 5, dtype=torch.float64)
    p, y = dict(head.named_parameters()), x
    for i in (0, 2, 4, 6):
        y = y @ p[f"{i}.weight"].T + p[f"{i}.bias"]
        y = y / (1 + torch.exp(-y)) / 0.6
    torch.testing.assert_close(head(x), (y @ p["8.weight"].T)[:, 0], rtol=1e-13, atol=1e-14)


def test_energy_and_scalars_reduce_over_the_atoms_of_their_own_structures(make_batch) -> None:
    torch.manual_seed(1)
    batch = make_batch([2, 3, 1], [0, 1, 0], ["a", "b"])
    head, atoms = heads.HeadMLP(4).double(), torch.randn(6, 4, dtype=torch.float64)
    v = head(atoms)
    rows = batch.rows["a"]
    torch.testing.assert_close(heads.energy(head, atoms, rows), torch.stack([v[:2].sum(), v[5]]))
    torch.testing.assert_close(heads.scalar(head, atoms, rows, "mean"), torch.stack([v[:2].mean(), v[5]]))
    torch.testing.assert_close(heads.scalar(head, atoms, rows, "max"), torch.stack([v[:2].max(), v[5]]))
    torch.testing.assert_close(heads.energy(head, atoms, batch.rows["b"]), v[2:5].sum()[None])


def test_direct_forces_add_up_on_the_target(make_batch) -> None:
    torch.manual_seed(2)
    targets = [0, 1, 1, 3, 2, 5, 5]
    batch = make_batch([2, 3, 1], [0, 1, 0], ["a", "b"], edge_target=targets)
    head = heads.HeadMLP(4).double()
    edges, vectors = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    strength = head(edges)
    whole = torch.zeros(6, 3, dtype=torch.float64)
    for e, a in enumerate(targets):
        whole[a] += strength[e] * vectors[e]
    torch.testing.assert_close(heads.direct_forces(head, edges, vectors, batch.rows["a"]), whole[[0, 1, 5]])
    torch.testing.assert_close(heads.direct_forces(head, edges, vectors, batch.rows["b"]), whole[[2, 3, 4]])


@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_zero_rows_give_empty_outputs_and_zero_gradients(make_batch, reduction) -> None:
    batch = make_batch([2], [0], ["a", "absent"], edge_target=[0, 1])
    head, edge_head = heads.HeadMLP(4), heads.HeadMLP(4)
    rows = batch.rows["absent"]
    value = heads.scalar(head, torch.randn(2, 4), rows, reduction)
    forces = heads.direct_forces(edge_head, torch.randn(2, 4), torch.randn(2, 3), rows)
    assert value.shape == (0,)
    assert forces.shape == (0, 3)
    (value.sum() + forces.sum()).backward()
    assert all((p.grad == 0).all() for h in (head, edge_head) for p in h.parameters())


def test_sums_are_float32_under_autocast(make_batch) -> None:
    batch = make_batch([3000], [0], ["a"], edge_target=[0] * 3000)
    head = heads.HeadMLP(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        atoms = torch.ones(3000, 4, dtype=torch.bfloat16)
        assert head(atoms).dtype == torch.bfloat16
        total = heads.energy(head, atoms, batch.rows["a"])
        forces = heads.direct_forces(head, atoms, torch.ones(3000, 3), batch.rows["a"])
        one = head(atoms[:1]).float()
    assert total.dtype == forces.dtype == torch.float32
    # A bfloat16 sum of 3000 equal numbers would stop growing after a few hundred.
    torch.testing.assert_close(total, 3000 * one, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(forces[0], (3000 * one).expand(3), rtol=1e-5, atol=0.0)
