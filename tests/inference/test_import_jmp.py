"""A published file in full size becomes a bundle that predicts the recorded numbers; bad files are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from golden_systems import recorded
from models.test_full_size import PUBLISHED_TASKS, SCALES, SCALES_BY_PARENT, recipe_weights
from published_files import averaged, write

from jmp_ds.bundle import load_bundle
from jmp_ds.errors import UserError
from jmp_ds.inference.import_jmp import import_jmp
from jmp_ds.inference.predictor import Predictor

LISTS = Path(__file__).parents[1] / "models" / "published"


def recipe_state(size: str) -> dict[str, torch.Tensor]:
    """The published state in full size with weights that follow the recipe of golden/README."""
    shapes = {}
    for line in (LISTS / f"{size}.txt").read_text().splitlines():
        name, shape, *_ = line.split()
        shapes[name] = torch.Size([] if shape == "scalar" else [int(n) for n in shape.split("x")])
    plain = [n for n in shapes if not (".rbf." in n or ".seq_energy_pre." in n or n.endswith(("factor", "sum_value")))]
    number = {name: k for k, name in enumerate(sorted(plain))}
    state: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith(".scale_factor"):
            parent, leaf = name.split(".")[-3:-1]
            state[name] = torch.tensor(float(SCALES_BY_PARENT[parent] if leaf == "scale_cbf_sum" else SCALES[leaf]))
        elif name in number:
            weights = recipe_weights(shape, number[name], embedding="embedding" in name)
            state[name] = torch.from_numpy(weights)
        elif ".seq_energy_pre." in name:
            state[name] = state[name.replace(".seq_energy_pre.", ".layers.")]
        else:
            state[name] = torch.zeros(shape)
    return state


def test_jmp_s_in_full_size(tmp_path: Path) -> None:
    state = recipe_state("jmp-s")
    wrong = {k: x + 1.0 if ".scale_factor" not in k else x for k, x in state.items()}
    file = write(tmp_path / "jmp-s.pt", wrong, averaged(state, 0.0))
    report = import_jmp(file, tmp_path / "bundle", "jmp-s")
    assert (report.weights, report.unmatched, report.zero_factors) == ("ema", (), ())
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.provenance["weights"] == "ema"
    assert bundle.provenance["weights_licence"].startswith("CC BY-NC 4.0")
    assert bundle.provenance["imported_from"] == "jmp-s.pt"
    inputs, reference = recorded("ethanol"), recorded("full_size_recipe_weights")
    ethanol = Atoms(inputs["Z"], inputs["pos"])
    for number, task in enumerate(bundle.tasks):
        if task.graph.cutoff != 8.0:  # as the recording
            continue
        assert task.name == PUBLISHED_TASKS[number]
        got = Predictor(bundle, task.name, dtype="float64").predict([ethanol])[0]
        energy = reference["S_ethanol_f64_energy"][0, number] * task.scale("energy")
        forces = reference["S_ethanol_f64_forces"][:, :, number] * task.scale("forces")
        assert abs(got.energy - energy) <= 1e-9 * max(1.0, abs(energy))
        assert (np.abs(got.forces - forces) <= 1e-9 * np.maximum(1.0, np.abs(forces))).all()


def test_the_other_size_is_told_in_few_words(tmp_path: Path) -> None:
    state = {f"backbone.int_blocks.{k}.dense_ca.linear.weight": torch.zeros(1) for k in range(4)}
    state["backbone.bases.edge_emb.dense.linear.weight"] = torch.zeros(512, 1)
    torch.save({"state_dict": state}, tmp_path / "s.ckpt")
    with pytest.raises(UserError, match=r"4 interaction blocks.*not of 6 and 1024; that is jmp-s \(--preset jmp-s\)$"):
        import_jmp(tmp_path / "s.ckpt", tmp_path / "bundle", "jmp-l", "raw")
    assert not (tmp_path / "bundle").exists()


def test_absent_averages(tmp_path: Path) -> None:
    state = {"embedding.atom_embedding.weight": torch.zeros(120, 256)}
    file = write(tmp_path / "raw.pt", state, None)
    with pytest.raises(UserError, match=r"raw\.pt: the file has no moving averages.*ema, raw and published"):
        import_jmp(file, tmp_path / "bundle", "jmp-s")
    with pytest.raises(UserError, match=r"raw\.pt: the file does not fit this model.*missing: backbone\."):
        import_jmp(file, tmp_path / "bundle", "jmp-s", "raw")
    assert os.listdir(tmp_path) == ["raw.pt"]


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model preset 'jmp-m'; there are jmp-s, jmp-l, jmp-xl, jmp-xxl, tiny"):
        import_jmp(tmp_path / "x", tmp_path / "bundle", "jmp-m")
    with pytest.raises(UserError, match="x: cannot be opened"):
        import_jmp(tmp_path / "x", tmp_path / "bundle", "jmp-s")

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/witness",)

    torch.save({"state_dict": {}, "hyper_parameters": Attack()}, tmp_path / "attack.ckpt")
    with pytest.raises(UserError, match=r"attack\.ckpt: names .*system, which runs code"):
        import_jmp(tmp_path / "attack.ckpt", tmp_path / "bundle", "jmp-s")
    assert os.listdir(tmp_path) == ["attack.ckpt"]
