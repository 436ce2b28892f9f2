"""The unit that travels between programs: weights, scale factors, model and task specifications, normalisation, provenance.

On disk a folder with `model.safetensors` (every tensor of the model's state) and `bundle.json` (all the rest, with a
format version). It is written as a whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jmp_kernels import BackendName, Operators
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jmp_ds import __version__
from jmp_ds.bundle_versions import READABLE, VERSION, migrate
from jmp_ds.errors import UserError
from jmp_ds.files import same_access, to_disk
from jmp_ds.models.bases import Bases
from jmp_ds.models.config import BackboneConfig
from jmp_ds.planning import backend
from jmp_ds.tasks.model import MultiTaskModel
from jmp_ds.tasks.specs import Task

FORMAT = "jmp-ds bundle"
WEIGHTS_FILE, SPEC_FILE = "model.safetensors", "bundle.json"

_SCALE = ".scale_factor"


@dataclass(frozen=True)
class Bundle:
    """A model at rest.

    Attributes:
        config: sizes of the backbone.
        tasks: with graph settings, targets and normalisation.
        state: every tensor of the `MultiTaskModel`'s state by name, on the CPU.
        provenance: where it comes from; see `provenance`.
        elements: by task, the atomic numbers that its training data had; tasks of which that is not known are absent.
    """

    config: BackboneConfig
    tasks: tuple[Task, ...]
    state: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)
    elements: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: MultiTaskModel, provenance: Mapping[str, Any]) -> Bundle:
        """Copy of a model's state; averaged weights, if they are wanted, must be in the model."""
        state = {name: x.detach().to("cpu", copy=True) for name, x in model.state_dict().items()}
        return cls(model.config, model.tasks, state, dict(provenance))

    @property
    def unfitted(self) -> list[str]:
        """Names of scale factors without a value."""
        return [name for name, x in self.state.items() if name.endswith(_SCALE) and float(x) == 0.0]

    def task(self, name: str | None = None) -> Task:
        """One of the tasks by name; where there is only one, it needs none.

        Raises:
            UserError: there is no such task, or several and no name.
        """
        names = [task.name for task in self.tasks]
        if name is None and len(names) == 1:
            return self.tasks[0]
        if name not in names:
            asked = "which task? Name one" if name is None else f"no task {name!r} in the bundle; choose one"
            raise UserError(f"{asked} of {', '.join(names)}")
        return self.tasks[names.index(name)]

    def require_fitted(self, where: str = "this model") -> None:
        """Refuse a model whose scale factors have not been fitted.

        Raises:
            UserError: names the command that fits them.
        """
        if names := self.unfitted:
            raise UserError(
                f"{where} has {len(names)} scale factors that are not fitted ({names[0]}, …); it cannot predict or train: "
                "fit them first with `jmp-ds fit-scales`"
            )

    def build(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kernels: BackendName = "auto",
    ) -> MultiTaskModel:
        """The model in evaluation mode, with its own copy of the weights.

        Args:
            dtype: of the weights.
            device: where it will run.
            kernels: the backend of message passing, which no bundle holds: it is chosen for the device.

        Raises:
            UserError: tensors are missing, too many, or of another shape; all are named. Or a backend that cannot run.
        """
        messages = backend(kernels, device)
        with torch.device("meta"):  # initial weights would cost more time than all the rest
            model = MultiTaskModel(self.config, self.tasks, messages)
        check_state(self.state, state_shapes(model), "the bundle")
        model.load_state_dict({name: x.clone() for name, x in self.state.items()}, assign=True)
        _restore_tables(model)
        model = model.to(dtype).to(device).eval()
        model.backbone.register_gradient_division()  # parameters lost their hooks when they were put in place
        return model


def provenance(
    weights: str, data: Mapping[str, Any] | None = None, command: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a bundle says of its origin.

    Args:
        weights: `ema`, `raw` or whatever else describes which weights these are.
        data: metadata of the data that it was trained on, by task.
        command: how it was made; the running command if not given.
    """
    arguments = list(command) if command is not None else [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "jmp_ds": __version__,
        "torch": torch.__version__,
        "command": " ".join(arguments),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": weights,
        "data": dict(data or {}),
    }


def save_bundle(bundle: Bundle, path: str | Path) -> None:
    """Write a bundle; one that is already there is replaced.

    The folder is prepared beside its place and renamed when everything is on disk, so a reader never finds half of one.

    Raises:
        UserError: the place is taken by something that is no bundle, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path / SPEC_FILE).is_file():
        raise UserError(f"{path}: exists and is no bundle; choose another name, or move it away")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
        try:
            _write_files(bundle, fresh)
            _put_in_place(fresh, path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def load_bundle(path: str | Path, *, require_fitted: bool = True) -> Bundle:
    """Read and check a bundle.

    Args:
        path: the folder.
        require_fitted: refuse a model whose scale factors are not fitted; only the command that fits them does without.

    Raises:
        UserError: what is missing or wrong, in which file.
    """
    path = Path(path)
    spec = _read_spec(path)
    try:
        spec = migrate(spec)
        config = BackboneConfig(**spec["model"])
        tasks = tuple(Task.from_dict(task) for task in spec["tasks"])
        with torch.device("meta"):
            expected = state_shapes(MultiTaskModel(config, tasks))
        elements = {name: tuple(int(z) for z in own) for name, own in spec["elements"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / SPEC_FILE}: does not describe a model ({error})") from error
    state = _read_tensors(path / WEIGHTS_FILE)
    check_state(state, expected, str(path / WEIGHTS_FILE))
    bundle = Bundle(config, tasks, state, dict(spec.get("provenance", {})), elements)
    if require_fitted:
        bundle.require_fitted(str(path))
    return bundle


def state_shapes(model: MultiTaskModel) -> dict[str, torch.Size]:
    """Name and shape of everything in a model's state."""
    return {name: x.shape for name, x in model.state_dict().items()}


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], where: str) -> None:
    """Compare tensors with what a model needs.

    Raises:
        UserError: names every tensor that is missing, not needed, of another shape or not finite.
    """
    common = [name for name in state if name in expected]
    problems = {
        "missing": [name for name in expected if name not in state],
        "unknown": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} ({tuple(state[name].shape)} instead of {tuple(expected[name])})"
            for name in common
            if state[name].shape != expected[name]
        ],
        "not finite": [name for name in common if not bool(torch.isfinite(state[name]).all())],
    }
    found = [f"{len(names)} {what}: {', '.join(names)}" for what, names in problems.items() if names]
    if found:
        raise UserError(f"{where}: tensors do not fit the model: {'; '.join(found)}")


def _restore_tables(model: MultiTaskModel) -> None:
    """Give a model that was laid out without memory the constant tables of its bases, which are no part of its state."""
    bases, dihedral = model.backbone.bases, model.tasks[0].graph.dihedral
    for name, table in Bases(model.config, dihedral, Operators()).named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(bases.get_submodule(owner), leaf, table)


def _write_files(bundle: Bundle, folder: Path) -> None:
    """Both files, on disk when this returns."""
    tensors = {name: x.detach().to("cpu").contiguous().clone() for name, x in bundle.state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    spec = {
        "format": FORMAT,
        "version": VERSION,
        "model": bundle.config.to_dict(),
        "tasks": [task.to_dict() for task in bundle.tasks],
        "elements": {name: list(own) for name, own in bundle.elements.items()},
        "provenance": bundle.provenance,
    }
    (folder / SPEC_FILE).write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    folder.chmod(0o755)
    same_access(folder / WEIGHTS_FILE, folder / SPEC_FILE)
    for place in (folder / WEIGHTS_FILE, folder / SPEC_FILE, folder):
        to_disk(place)


def _put_in_place(fresh: Path, path: Path) -> None:
    """Rename the prepared folder; an old bundle steps aside first and is removed afterwards."""
    if not path.exists():
        fresh.rename(path)
    else:
        aside = Path(tempfile.mkdtemp(prefix=_aside(path), dir=path.parent))
        path.rename(aside / path.name)
        try:
            fresh.rename(path)
        except OSError:
            (aside / path.name).rename(path)
            raise
        finally:
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
    to_disk(path.parent)


def _aside(path: Path) -> str:
    """Start of the name of the folder that holds an old bundle while the new one is put in its place."""
    return f".{path.name}.old-"


def _read_spec(path: Path) -> dict[str, Any]:
    """The JSON part, of a version that we know; not yet migrated."""
    file = path / SPEC_FILE
    if not path.is_dir():
        left = [str(old / path.name) for old in path.parent.glob(_aside(path) + "*")]
        hint = f"; its replacement was interrupted, the old one is {left[0]}" if left else ""
        raise UserError(f"{path}: no such bundle (a folder with {SPEC_FILE} and {WEIGHTS_FILE}){hint}")
    if not file.is_file():
        raise UserError(f"{path}: not a bundle: {SPEC_FILE} is missing")
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        raise UserError(f"{file}: not the description of a bundle")
    if spec.get("version") not in READABLE:
        raise UserError(
            f"{file}: written in version {spec.get('version')} of the format, and this program reads versions "
            f"{', '.join(map(str, READABLE))}; "
            "use the version of jmp-ds that wrote it "
            f"({spec.get('provenance', {}).get('jmp_ds', 'unknown')})"
        )
    return spec


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    if not file.is_file():
        raise UserError(f"{file.parent}: not a bundle: {file.name} is missing")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged or incomplete ({error})") from error
    return tensors
