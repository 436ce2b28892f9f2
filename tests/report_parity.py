"""The tables of docs/parity.md: worst relative errors against the recorded numbers. The command is in that file."""

from __future__ import annotations

import sys

import numpy as np
import torch
from golden_systems import INDEX, SYSTEMS, finetune_task, given_batch, our_state, recorded, relative
from test_golden_parity import all_heads, gradient_errors, gradients_of, intermediates, pretraining, recorded_loss

from jmp_ds.models.config import BackboneConfig
from jmp_ds.tasks.model import MultiTaskModel


def errors(name: str, dtype: torch.dtype) -> list[float]:
    """Energy, forces, gradient norms, gradient sums, dE/dpos of one system."""
    model, z = pretraining(name, dtype)
    pos = given_batch(name, model.tasks)[0].pos.to(dtype).requires_grad_()
    energies, forces = all_heads(model, name, pos)
    gradients = gradients_of(recorded_loss(energies, forces), model, INDEX["param_names"])
    derivative = torch.autograd.grad(energies.sum(), pos)[0]
    found = [relative(energies, z["energy"]), relative(forces, z["forces"]), *gradient_errors(gradients, z)]
    return [*found, relative(derivative, z["dEsum_dpos"])]


def worst_intermediate(name: str) -> float:
    """Largest error of the tensors that are recorded whole."""
    model, z = pretraining(name)
    return max(relative(x, z[key]) for key, x in intermediates(model, name).items() if key in z)


def finetuning(name: str) -> list[float]:
    """Energy, forces, gradient norms and sums of the force loss."""
    config = BackboneConfig(**{**INDEX["tiny_config"], "direct_forces": False})
    model = MultiTaskModel(config, (finetune_task(name),)).double()
    model.load_state_dict(our_state("tiny_ft_gradforce_state"))
    z, out = recorded(f"ft_{name}"), model(given_batch(name, model.tasks)[0])["ft"]
    loss = 10 * (out["forces"] - torch.as_tensor(z["target"]) + 1e-6).norm(dim=-1).mean()
    gradients = gradients_of(loss, model, INDEX["ft_param_names"])
    return [relative(out["energy"], z["energy"]), relative(out["forces"], z["forces"]), *gradient_errors(gradients, z)]


def row(name: str, values: list[float]) -> str:
    """One line of a Markdown table."""
    return f"| {name} | " + " | ".join(f"{v:.1e}" for v in values) + " |"


def main() -> None:
    """Print the three tables."""
    lines = [
        "float64 | energy | forces | grad norms | grad sums | dE/dpos | intermediates",
        "---|---|---|---|---|---|---",
    ]
    lines += [row(n, [*errors(n, torch.float64), worst_intermediate(n)]) for n in SYSTEMS]
    lines += ["", "float32 | energy | forces | grad norms | grad sums | dE/dpos", "---|---|---|---|---|---"]
    lines += [row(n, errors(n, torch.float32)) for n in SYSTEMS]
    lines += ["", "gradient forces, float64 | energy | forces | grad norms | grad sums", "---|---|---|---|---"]
    lines += [row(n, finetuning(n)) for n in INDEX["finetune"]]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
