"""A published Lightning checkpoint becomes a bundle with the published tasks, graphs and normalisation."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from jmp_ds.bundle import Bundle, provenance, save_bundle, state_shapes
from jmp_ds.errors import UserError
from jmp_ds.graphs.settings import published
from jmp_ds.legacy_pickle import read_torch_file
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.jmp_checkpoint import ImportReport, Weights, import_state, size_of
from jmp_ds.models.presets import PRESETS
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import EnergyTarget, ForcesTarget, Normalization, Task

#: Of the published weights; it goes on to what is made of them.
LICENCE = "CC BY-NC 4.0 (published JMP weights)"


def import_jmp(file: str | Path, out: str | Path, preset: str, weights: Weights = "ema") -> ImportReport:
    """Read a published pre-training checkpoint and write a bundle.

    Args:
        file: Lightning checkpoint in the published layout; nothing in it is executed.
        out: folder to write.
        preset: `jmp-s` or `jmp-l`.
        weights: `ema`, `raw` or `published` (specification section 8).

    Returns:
        What was taken, and every key of the file that was not.

    Raises:
        UserError: the file cannot be read, has no such weights, or does not fit the preset.
    """
    if preset not in PRESETS:
        raise UserError(f"no model preset {preset!r}; there are {', '.join(PRESETS)}")
    bundle, report = bundle_of(file, PRESETS[preset], published_tasks(), weights)
    save_bundle(bundle, out)
    return report


def bundle_of(
    file: str | Path, config: BackboneConfig, tasks: tuple[Task, ...], weights: Weights = "ema"
) -> tuple[Bundle, ImportReport]:
    """The same for any size and any names of the file's tasks, without writing it.

    Raises:
        UserError: as for `import_jmp`.
    """
    with torch.device("meta"):
        model = MultiTaskModel(config, tasks)
    checkpoint = read_torch_file(file)
    _check_size(checkpoint, config, file)
    try:
        state, report = import_state(checkpoint, state_shapes(model), [task.name for task in tasks], weights)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    origin = {
        **provenance(weights),
        "imported_from": Path(file).name,
        "weights_licence": LICENCE,
        "unmatched_keys": list(report.unmatched),
    }
    return Bundle(model.config, model.tasks, state, origin), report


def _check_size(checkpoint: Any, config: BackboneConfig, file: str | Path) -> None:
    """Refuse a network of another size in few words; whatever else does not fit is named tensor by tensor."""
    found, wanted = size_of(checkpoint), (config.num_blocks, config.emb_size_edge)
    if found in (None, wanted):
        return
    known = [name for name, size in PRESETS.items() if (size.num_blocks, size.emb_size_edge) == found]
    raise UserError(
        f"{file}: holds a network of {found[0]} interaction blocks with edges of width {found[1]}, not of {wanted[0]} and "
        f"{wanted[1]}{f'; that is {known[0]} (--preset {known[0]})' if known else ''}"
    )


def published_tasks() -> tuple[Task, ...]:
    """The tasks of the published pre-training, in the order of its heads (specification sections 3.1 and 7)."""
    constants = _constants()
    return tuple(
        Task(
            name=name,
            graph=published(**constants["pretrain_graphs"][name]),
            energy=EnergyTarget(weight=float(numbers["energy_scale"])),
            forces=ForcesTarget(weight=float(numbers["force_scale"])),
            normalization={
                "energy": Normalization(mean=float(numbers["mean"]), std=numbers["y_std"]),
                "forces": Normalization(std=numbers["force_std"]),
            },
            level_of_theory=constants["pretrain_labels"][name],
        )
        for name, numbers in constants["pretrain_notebook"].items()
    )


def _constants() -> dict[str, Any]:
    """The published numbers that ship with the package."""
    text = resources.files("jmp_ds.recipes").joinpath("jmp_constants.json").read_text(encoding="utf-8")
    constants: dict[str, Any] = json.loads(text)
    return constants
