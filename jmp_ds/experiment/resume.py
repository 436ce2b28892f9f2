"""The run folder's configuration: written at the start, compared at a resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from jmp_ds.config.loading import Resolved, validate
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.config.yaml_files import parse_yaml, read_yaml
from jmp_ds.errors import UserError
from jmp_ds.files import write_text

NAME = "config.yaml"
#: What may differ when a run is continued: it changes neither the order of structures nor (but for rounding) the weights.
FREE = (
    *("run.threads", "run.resume", "run.dir", "run.device", "sampling.workers", "validate.every", "checkpoint"),
    *("remember", "sampling.graphs", "model.kernels", "model.recompute"),
    *("run.wall_time", "run.hung_after", "train.on_out_of_memory", "engine.deepspeed"),
)


def settle_configuration(resolved: Resolved[TrainingConfig]) -> None:
    """Write config.yaml; where the folder holds a checkpoint, tell the differences first and refuse some.

    Raises:
        UserError: a difference that would change what the continued run means.
    """
    folder = Path(resolved.config.run.dir)
    file = folder / NAME
    text = resolved.to_yaml()
    if file.is_file() and (folder / "latest").exists():
        changed = list(differences(_written(resolved, file), parse_yaml(text, NAME).values))
        for key, old, new in changed:
            Console(stderr=True).print(f"resume: {key}: {old} -> {new}", markup=False, highlight=False)
        if refused := refused_differences(resolved):
            raise UserError(
                f"{folder} holds a run with another configuration ({', '.join(refused)}), which a resume cannot change; "
                "restore it, or name a new run.dir"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _written(resolved: Resolved[TrainingConfig], file: Path) -> dict[str, Any]:
    """The settings of the run so far; where an older version knew fewer, the others are at their defaults."""
    layer = read_yaml(file)
    try:
        return parse_yaml(validate(type(resolved.config), layer).to_yaml(), NAME).values
    except UserError:
        return layer.values


def refused_differences(resolved: Resolved[TrainingConfig]) -> list[str]:
    """Dotted keys in which the run folder's config.yaml differs, and which change what a run means."""
    file = Path(resolved.config.run.dir) / NAME
    if not file.is_file():
        return []
    new = parse_yaml(resolved.to_yaml(), NAME).values
    return [key for key, _, _ in differences(_written(resolved, file), new) if not key.startswith(FREE)]


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old and new value of everything that differs; None where it is absent."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new
