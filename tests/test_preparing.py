"""Splits and edges before a run: counted once, by one machine, and no run of several processes waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_stores import write_pretrain
from typer.testing import CliRunner, Result

from jmp_ds.cli.app import app
from jmp_ds.config import load_pretrain
from jmp_ds.config.checks import check_pretrain
from jmp_ds.data import index
from jmp_ds.errors import UserError
from jmp_ds.experiment import preparing
from jmp_ds.experiment.preparing import refuse_to_wait, structures_of, uncounted
from jmp_ds.training.place import Place
from jmp_ds.training.processes import Processes


def run(*arguments: str | Path) -> Result:
    """A verb in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


class Several(Processes):
    """The first of several processes, without the others."""

    def from_first(self, value: Any) -> Any:
        return value


def processes(world: int) -> Processes:
    return Several(Place(rank=0, world=world, local_rank=0, launcher="torchrun"), torch.device("cpu"))


def test_prepare_leaves_nothing_to_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and splits are those that the run itself would make, and it takes them."""
    file = write_pretrain(tmp_path)
    resolved = load_pretrain(file)
    assert structures_of(uncounted(resolved, check_pretrain(resolved))) == 48
    result = run("pretrain", file, "--prepare")
    assert result.exit_code == 0, result.output
    assert "splits drawn, edges of 48 structures counted" in result.stderr
    assert not uncounted(resolved, check_pretrain(resolved))
    assert (tmp_path / "run" / "splits" / "molecules").is_dir()
    assert not (tmp_path / "run" / "latest").exists()
    monkeypatch.setattr(index, "counts_of", None)  # whoever counts again fails
    assert "edges of 0 structures" in run("pretrain", file, "--prepare").stderr
    assert run("pretrain", file, "train={steps: 1}").exit_code == 0


def test_tasks_that_share_a_store_count_once(tmp_path: Path) -> None:
    file = write_pretrain(tmp_path)
    values = yaml.safe_load(file.read_text())
    values["tasks"]["again"] = values["tasks"]["molecules"]
    values["tasks"]["wider"] = {**values["tasks"]["molecules"], "graph": {"cutoff": 6.0, "max_neighbors": 6}}
    file.write_text(yaml.safe_dump(values))
    resolved = load_pretrain(file)
    stores = uncounted(resolved, check_pretrain(resolved))
    assert [store.path.name for store in stores] == ["molecules", "crystals", "molecules"]


def test_several_processes_do_not_wait_for_a_long_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does the check of a configuration keep quiet about it."""
    file = write_pretrain(tmp_path)
    resolved = load_pretrain(file)
    checked = check_pretrain(resolved)
    refuse_to_wait(resolved, checked, processes(2))
    assert "not counted" not in run("pretrain", file, "--check").stderr
    monkeypatch.setattr(preparing, "MOST_UNCOUNTED", 48 * 4 - 1)
    refuse_to_wait(resolved, checked, processes(1))
    with pytest.raises(UserError, match=r"edges of 48 structures are not counted yet.*--prepare"):
        refuse_to_wait(resolved, checked, processes(2))
    result = run("pretrain", file, "--check")
    assert result.exit_code == 0
    assert "edges of 48 structures are not counted yet: run this with --prepare" in result.stderr
    assert yaml.safe_load(result.stdout)["model"]["preset"] == "tiny"


def test_prepare_is_no_work_for_launched_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_pretrain(tmp_path)
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    result = run("pretrain", file, "--prepare")
    assert result.exit_code == 2
    assert "start it without a launcher" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_configuration_keeps_its_splits(tmp_path: Path) -> None:
    file = write_pretrain(tmp_path)
    assert run("pretrain", file, "train={steps: 1}").exit_code == 0
    before = (tmp_path / "run" / "config.yaml").read_text()
    result = run("pretrain", file, "train={steps: 1}", "tasks.molecules.split.val=0.3", "--prepare")
    assert result.exit_code == 2
    assert "another configuration" in result.stderr
    assert (tmp_path / "run" / "config.yaml").read_text() == before
