"""JMP-S and JMP-L in full size: parameter counts, names, and outputs with weights that follow a recipe (golden/README)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_systems import given_batch, published_tasks, recorded, relative
from torch import nn

from jmp_ds.models.presets import preset
from jmp_ds.models.scaling import scale_factors
from jmp_ds.tasks.model import MultiTaskModel

SCALES = {"scale_rbf": 9, "scale_cbf": 30, "scale_sbf_sum": 9, "scale_rbf_sum": 0.5, "scale_sum": 0.8, "scale_rbf_F": 8}
SCALES_BY_PARENT = {"trip_interaction": 4.5, "atom_edge_interaction": 6, "edge_atom_interaction": 0.5}
PUBLISHED_TASKS = ("oc20", "oc22", "ani1x", "transition1x")


def published_name(name: str) -> str:
    """Published name of one of our parameters."""
    if name == "backbone.embedding.weight":
        return "embedding.atom_embedding.weight"
    if name.startswith("heads."):
        _, task, kind, rest = name.split(".", 3)
        return f"output.out_{kind}.{PUBLISHED_TASKS.index(task)}.{rest}"
    return name


def recipe_weights(shape: torch.Size, number: int, *, embedding: bool) -> np.ndarray:
    """Weights of parameter `number` in the order of published names (golden/README)."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint64) + np.uint64((number + 1) * 2654435761 + 0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    u = (x >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
    fan_in = {1: 100, 2: shape[-1], 3: shape[0] * shape[1] if len(shape) == 3 else 0}[len(shape)]
    return (u * np.sqrt(12 / (12 if embedding else fan_in))).astype(np.float32).reshape(shape)


def fill(model: nn.Module) -> torch.Tensor:
    """Give a model the recipe's weights and factors; returns its first parameter in published order."""
    parameters = {published_name(k): p for k, p in model.named_parameters()}
    with torch.no_grad():
        for number, name in enumerate(sorted(parameters)):
            weights = recipe_weights(parameters[name].shape, number, embedding="embedding" in name)
            parameters[name].copy_(torch.from_numpy(weights))
    for name, factor in scale_factors(model).items():
        parent, leaf = name.split(".")[-2:]
        factor.scale_factor.fill_(SCALES_BY_PARENT[parent] if leaf == "scale_cbf_sum" else SCALES[leaf])
    return parameters[min(parameters)]


@pytest.fixture(scope="module")
def jmp_s() -> MultiTaskModel:
    model = MultiTaskModel(preset("jmp-s"), published_tasks("ethanol"))
    first = fill(model)
    assert relative(first.flatten()[:4], recorded("full_size_recipe_weights")["S_first_param_first4"]) < 1e-6
    return model


def check(model: MultiTaskModel, size: str, system: str, dtype: torch.dtype) -> None:
    energies, forces = [], []
    model = model.to(dtype).eval()
    with torch.no_grad():
        for number, task in enumerate(model.tasks):
            out = model(given_batch(system, model.tasks, number)[0])[task.name]
            energies.append(out["energy"])
            forces.append(out["forces"])
    z, tag = recorded("full_size_recipe_weights"), "f64" if dtype == torch.float64 else "f32"
    energy = relative(torch.stack(energies, -1), z[f"{size}_{system}_{tag}_energy"])
    force = relative(torch.stack(forces, -1), z[f"{size}_{system}_{tag}_forces"])
    tolerance = 1e-11 if dtype == torch.float64 else 4e-5
    assert energy <= tolerance
    assert force <= tolerance


@pytest.mark.parametrize("system", ["ethanol", "nacl_primitive", "batch_slab_nacl_cap"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_jmp_s_outputs(jmp_s: MultiTaskModel, system: str, dtype: torch.dtype) -> None:
    check(jmp_s, "S", system, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_jmp_l_outputs(dtype: torch.dtype) -> None:
    model = MultiTaskModel(preset("jmp-l"), published_tasks("ethanol"))
    first = fill(model)
    assert relative(first.flatten()[:4], recorded("full_size_recipe_weights")["L_first_param_first4"]) < 1e-6
    check(model, "L", "ethanol", dtype)


@pytest.mark.parametrize(
    ("size", "whole", "backbone", "force_branch"),
    [
        ("jmp-s", 44_131_328, 38_842_368, 10_264_576),
        ("jmp-l", 234_267_648, 216_385_536, 55_803_904),
    ],
)
def test_parameter_counts(size: str, whole: int, backbone: int, force_branch: int) -> None:
    """The counts of specification section 1, of a model without memory."""
    with torch.device("meta"):
        model = MultiTaskModel(preset(size), published_tasks("ethanol"))
    of = {k: p.numel() for k, p in model.named_parameters()}
    embedding = of["backbone.embedding.weight"]
    assert embedding == 30_720
    assert sum(of.values()) == whole
    assert sum(v for k, v in of.items() if k.startswith("backbone.")) - embedding == backbone
    marks = ("out_mlp_F", "seq_forces", "dense_rbf_F")
    assert sum(v for k, v in of.items() if any(m in k for m in marks)) == force_branch
