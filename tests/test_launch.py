"""The environment script tells half-built, broken and unwritable environments apart; constraints pin what is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the environment script needs of a clone."""
    shutil.copytree(ROOT / "launch", tmp_path / "clone" / "launch")
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


def prepare(clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script alone, in an environment without an active Python environment unless one is given."""
    base = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    return subprocess.run(
        ["bash", "-c", "set -euo pipefail; source launch/setup_env.sh; echo ready"],
        cwd=clone,
        env={**base, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fake_environment(folder: Path, python: str) -> Path:
    """A folder that looks like an environment, with a shell script for its Python."""
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "python"
    program.write_text(f"#!/bin/sh\n{python}\n")
    program.chmod(0o755)
    return folder


def test_a_half_built_environment_is_an_error(clone: Path) -> None:
    (clone / ".venv").mkdir()
    result = prepare(clone)
    assert result.returncode == 2
    assert "half built" in result.stderr
    assert f"rm -rf {clone}/.venv" in result.stderr


def test_an_active_environment_without_python_is_an_error(clone: Path) -> None:
    result = prepare(clone, VIRTUAL_ENV=str(clone / "nowhere"))
    assert result.returncode == 2
    assert "has no bin/python" in result.stderr


def test_an_unsupported_python_is_an_error(clone: Path) -> None:
    old = fake_environment(clone / "old", "[ $1 = --version ] && echo Python 3.9.1; [ $1 = --version ]")
    result = prepare(clone, VIRTUAL_ENV=str(old))
    assert result.returncode == 2
    assert "Python 3.9.1; Python 3.11 to 3.13 is needed" in result.stderr


def test_a_failing_installation_says_what_to_do_and_leaves_no_mark(clone: Path) -> None:
    """Installing ends half-way: the next start calls the environment half built or tries again, never ready."""
    broken = fake_environment(clone / "env", 'case "$*" in *pip*) exit 1;; *torch*) exit 1;; esac')
    result = prepare(clone, VIRTUAL_ENV=str(broken))
    assert result.returncode == 2
    assert "installing PyTorch failed" in result.stderr
    assert not (broken / ".jmp-ds-installed").exists()


def test_an_installed_environment_is_used_as_it_is_and_a_damaged_one_is_an_error(clone: Path) -> None:
    good = fake_environment(clone / "env", "exit 0")
    assert prepare(clone, VIRTUAL_ENV=str(good)).stdout.endswith("ready\n")
    assert (good / ".jmp-ds-installed").is_file()
    fake = good / "bin" / "python"
    fake.write_text(
        "#!/bin/sh\ncase \"$*\" in *pip*) echo installing >&2; exit 1;; *'import torch, jmp_ds'*) exit 1;; esac\n"
    )
    result = prepare(clone, VIRTUAL_ENV=str(good))
    assert result.returncode == 2
    assert "importing torch or jmp_ds fails; rebuild it" in result.stderr
    assert "installing" not in result.stderr


def test_an_environment_for_gpus_is_made_where_there_are_none(clone: Path) -> None:
    """By itself, as on a login node: the general build is asked for, and a CPU build that is there is refused."""
    script = ["bash", "launch/setup_env.sh"]
    python = 'echo "$*" >> {log}; case "$*" in *version.cuda*) exit {cuda};; *__version__*) exit 1;; esac'

    def made(cuda: int, *words: str) -> tuple[subprocess.CompletedProcess[str], str]:
        folder, log = clone / f"env{cuda}{len(words)}", clone / f"log{cuda}{len(words)}"
        env = fake_environment(folder, python.format(log=log, cuda=cuda))
        result = subprocess.run(
            [*script, *words],
            cwd=clone,
            env={**os.environ, "VIRTUAL_ENV": str(env)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return result, log.read_text() if log.exists() else ""

    result, log = made(1, "--gpu")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"now: source {clone}/env11/bin/activate\n")
    asked = re.findall(r"pip install .* (torch==\S+)", log)
    assert len(asked) == 1
    assert "+cpu" not in asked[0]
    result, log = made(0, "--gpu")
    assert result.returncode == 2
    assert "has PyTorch's CPU build; rebuild it: rm -rf" in result.stderr
    assert "pip install" not in log
    result, log = made(0)
    assert result.returncode == 0, result.stderr
    result, _ = made(0, "--cuda", "12")
    assert (result.returncode, "usage: bash launch/setup_env.sh [--gpu]" in result.stderr) == (2, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="running as root, whom no permission keeps from writing")
def test_an_unwritable_environment_is_an_error(clone: Path) -> None:
    locked = fake_environment(clone / "env", "exit 0")
    locked.chmod(0o555)
    result = prepare(clone, VIRTUAL_ENV=str(locked))
    locked.chmod(0o755)
    assert result.returncode == 2
    assert "cannot write to" in result.stderr


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = (ROOT / "launch" / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    names = {re.split(r"[<>=;\[ ]", d)[0].lower().replace("_", "-") for d in wanted}
    assert names <= pinned, names - pinned


def test_the_quickstart_explains_itself_and_spares_other_folders(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "launch" / "quickstart.py")]
    shown = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--regenerate" in shown
    (tmp_path / "precious").write_text("mine")
    result = subprocess.run([*script, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "that no quickstart made" in result.stderr
    assert (tmp_path / "precious").read_text() == "mine"
