"""`jmp-ds doctor` finds what was put in the way, in made-up trees, and tells what is in use from what is left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from jmp_ds.cli.app import app
from jmp_ds.cli.checkup import leftovers, limits, machine, software
from jmp_ds.cli.checkup.programs import told_by


def make_process(folder: Path, *, cwd: Path = Path("/"), command: str = "python", maps: str = "") -> None:
    """What the kernel tells about a process."""
    (folder / "fd").mkdir(parents=True)
    (folder / "cwd").symlink_to(cwd)
    (folder / "cmdline").write_text(command.replace(" ", "\0"))
    (folder / "maps").write_text(maps)


def test_the_report_names_everything() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for word in ("torch", "cores", "InfiniBand", "switched off", "srun", "c++", "locks of operators"):
        assert word in result.output, word


def test_the_report_as_json() -> None:
    findings = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert {f["topic"] for f in findings} >= {
        "versions",
        "devices",
        "interconnect",
        "launchers",
        "compilers",
        "leftovers",
    }
    assert {f["level"] for f in findings} <= {"ok", "off", "problem", "missing"}
    assert next(f for f in findings if f["name"] == "this process")["value"].startswith("a single process")


def test_what_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_version", lambda package: None if package in ("lmdb", "tblite") else "1.0")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "missing: lmdb; install" in result.output
    levels = {f.name: f.level for f in software.versions()}
    assert (levels["lmdb"], levels["tblite"], levels["torch"]) == ("missing", "off", "ok")


@pytest.mark.parametrize(("cuda", "told"), [(None, "setup_env.sh --gpu"), ("13.0", "driver may be too old")])
def test_gpus_that_torch_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, told: str
) -> None:
    """As on a node with GPUs and the environment of a login node without any."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert [f.level for f in machine.devices(tmp_path)] == ["ok", "off"]
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    finding = list(machine.devices(tmp_path))[-1]
    assert (finding.level, finding.value) == ("problem", "2, none of them usable")
    assert told in finding.advice


def test_locks_are_stale_unless_somebody_builds_there(tmp_path: Path) -> None:
    built, processes = tmp_path / "extensions", tmp_path / "proc"
    stale, busy, named = built / "py311_cu128" / "cpu_adam", built / "async_io", built / "py311_cu128" / "fused adam"
    for folder in (stale, busy, named):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    os.utime(stale / "lock", (0, time.time() - 3 * 3600))
    make_process(processes / "11", cwd=busy)
    make_process(processes / "12", command=f"c++ -o {named}/x.o")
    (processes / "13").mkdir()  # one that has just ended
    found = {finding.value.split(",")[0]: finding for finding in leftovers.locks(built, processes)}
    assert len(found) == 3
    assert found[str(stale / "lock")].level == "problem"
    assert "3 hours old" in found[str(stale / "lock")].value
    assert f"rm {stale}/lock" in found[str(stale / "lock")].advice
    assert found[str(busy / "lock")].level == found[str(named / "lock")].level == "ok"
    assert "process 11 is building" in found[str(busy / "lock")].value
    (stale / "lock").unlink()
    assert [f.level for f in leftovers.locks(built, processes)] == ["ok", "ok"]
    assert "none in" in next(leftovers.locks(tmp_path / "nowhere", processes)).value


def test_where_operators_are_built() -> None:
    home = Path("/home/me")
    assert leftovers.extensions({}, home) == home / ".cache" / "torch_extensions"
    assert leftovers.extensions({"XDG_CACHE_HOME": "/c"}, home) == Path("/c/torch_extensions")
    assert leftovers.extensions({"XDG_CACHE_HOME": "/c", "TORCH_EXTENSIONS_DIR": "/x"}, home) == Path("/x")


def test_shared_memory_without_a_living_owner(tmp_path: Path) -> None:
    shared, processes = tmp_path / "shm", tmp_path / "proc"
    shared.mkdir()
    names = {
        "deepspeed_allreduce_buffer_0_29500": True,
        "torch_77_1_0": True,
        "torch_21_1_0": False,  # its process lives
        "nccl-mapped": False,
        "psm_open": False,
        "sem.mp-abc": True,
        "somebody_elses_database": False,
    }
    for name in names:
        (shared / name).write_bytes(b"0" * 1024)
    make_process(processes / "21", maps=f"7f00-7f01 rw-s 00000000 00:19 5   {shared}/nccl-mapped\n")
    (processes / "21" / "fd" / "3").symlink_to(shared / "psm_open")
    for number in ("0", "4"):  # no links, as if closed between listing and reading
        (processes / "21" / "fd" / number).touch()
    finding = list(leftovers.shared_memory(shared, processes))[-1]
    assert finding.level == "problem"
    assert "3 files" in finding.value
    left = {name for name in names if leftovers._left_behind(shared / name, processes)}
    assert left == {name for name, orphan in names.items() if orphan}
    for name in left:
        (shared / name).unlink()
    assert list(leftovers.shared_memory(shared, processes))[-1].level == "ok"


def test_a_living_process_is_seen_for_real(tmp_path: Path) -> None:
    """With the kernel's own files: as long as a process maps it, a buffer is in use."""
    file = tmp_path / "deepspeed_allreduce_buffer_0"
    file.write_bytes(b"0" * 4096)
    code = (
        f"import mmap, sys; f = open({str(file)!r}, 'r+b'); m = mmap.mmap(f.fileno(), 0); f.close();"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not leftovers._left_behind(file, Path("/proc"))
        process.communicate()
    assert leftovers._left_behind(file, Path("/proc"))


def test_adapters_and_interfaces(tmp_path: Path) -> None:
    for adapter, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / "infiniband" / adapter / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    for name, state, speed in (
        ("lo", "unknown", ""),
        ("eth0", "up", "25000"),
        ("eth1", "down", "-1"),
        ("veth", "up", "-1"),
    ):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "operstate").write_text(state)
        (tmp_path / "net" / name / "speed").write_text(speed)
    found = {finding.name: finding for finding in machine.interconnect(tmp_path)}
    assert found["mlx5_0 port 1"].value == "4: ACTIVE, 400 Gb/sec (4X NDR)"
    assert (found["mlx5_0 port 1"].level, found["mlx5_1 port 1"].level) == ("ok", "problem")
    assert found["eth0"].value == "up, 25 Gbit/s"
    assert found["veth"].value == "up"
    assert not {"lo", "eth1", "InfiniBand"} & set(found)


def test_a_program_that_does_not_answer_is_no_failure(tmp_path: Path) -> None:
    program = tmp_path / "mpirun"
    program.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.6'\nexec sleep ${2:-0}\n")
    program.chmod(0o755)
    assert told_by([str(program), "--version"]) == "mpirun (Open MPI) 4.1.6\n"
    assert told_by([str(program), "--version", "60"], seconds=0.5) is None
    assert told_by([str(tmp_path / "absent")]) is None


def test_the_launch_environment_is_told() -> None:
    mpi = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    assert "process 1 of 2, started by mpirun" in next(limits.launch_environment(mpi)).value
    broken = next(limits.launch_environment({"RANK": "0"}))
    assert broken.level == "problem"
    assert "WORLD_SIZE" in broken.advice
