"""The floors hold, and the model's packages need nothing but torch and numpy."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Runs in a fresh interpreter: whatever is not torch, numpy, theirs or ours cannot be imported.
BLOCKED = """
import importlib.metadata, sys
import torch, numpy  # their own dependencies come in now, before the door closes

class Door:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in BANNED:
            raise ModuleNotFoundError(f"{name} is not torch or numpy", name=name)
        return None

BANNED = set()
for top, owners in importlib.metadata.packages_distributions().items():
    if top not in ("torch", "numpy", "jmp_ds", "jmp_kernels") and top not in sys.modules:
        BANNED.add(top)
assert {"pydantic", "ase", "vesin", "lmdb", "deepspeed", "typer", "yaml"} <= BANNED, sorted(BANNED)
sys.meta_path.insert(0, Door())
import pkgutil, jmp_ds, jmp_kernels, importlib
for package in ("jmp_kernels", "jmp_ds.graphs", "jmp_ds.models", "jmp_ds.tasks"):
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(module.__path__, package + "."):
        if not any(part in found.name for part in (".bench", ".triton_ops", ".offline")):
            importlib.import_module(found.name)
            print(found.name)
"""


def test_graphs_models_tasks_and_kernels_import_with_torch_and_numpy_alone() -> None:
    """Every module of the four packages, with all other installed packages out of reach."""
    run = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "jmp_ds.graphs.settings" in run.stdout
    assert "jmp_ds.tasks.specs" in run.stdout


def test_the_door_is_closed() -> None:
    """The test above would fail for a module that imports, say, pydantic."""
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED + "\nimport pydantic"], capture_output=True, text=True, timeout=300
    )
    assert run.returncode != 0
    assert "pydantic is not torch or numpy" in run.stderr


def test_imports_only_point_down() -> None:
    """The floors of docs/architecture.md, as written in pyproject.toml."""
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is missing (extra `dev`)")
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None
    run = subprocess.run([program, "--no-cache"], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stdout


def test_nothing_but_training_imports_deepspeed() -> None:
    """deepspeed stays in training/; the command line may start its launcher."""
    allowed = {"jmp_ds/cli/launching.py"}
    offenders = []
    for file in sorted((ROOT / "jmp_ds").rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        lines = file.read_text(encoding="utf-8").splitlines()
        imports = any(line.strip().startswith(("import deepspeed", "from deepspeed")) for line in lines)
        if imports and not name.startswith("jmp_ds/training/") and name not in allowed:
            offenders.append(name)
    assert offenders == []
