"""Conversion in parts: the store is the same byte for byte by one process or several, interrupted or not."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.build import molecule

from jmp_ds.data.convert import ConvertOptions, convert
from jmp_ds.data.store import Store
from jmp_ds.errors import UserError

SHARD = 1500


def frames(path: Path, count: int, seed: int = 0, compressed: bool = False) -> Path:
    """Ethanol that shakes, in MD17's layout; a few frames with two atoms in one place."""
    rng = np.random.default_rng(seed)
    water = molecule("CH3CH2OH")
    pos = water.positions + rng.normal(0, 0.05, (count, 9, 3))
    pos[::997, 1] = pos[::997, 0]
    save = np.savez_compressed if compressed else np.savez
    save(path, z=water.numbers, R=pos, E=rng.normal(0, 1, (count, 1)), F=rng.normal(0, 20, (count, 9, 3)))
    return path


def formulas(path: Path, groups: int) -> Path:
    """Groups of conformers in ANI-1x's layout, some without forces."""
    rng = np.random.default_rng(1)
    water = molecule("H2O")
    with h5py.File(path, "w") as file:
        for k in range(groups):
            group = file.create_group(f"f{k:05d}")
            n = int(rng.integers(1, 40))
            group["atomic_numbers"] = water.numbers
            group["coordinates"] = water.positions + rng.normal(0, 0.05, (n, 3, 3))
            group["wb97x_dz.energy"] = rng.normal(-76, 0.01, n)
            forces = rng.normal(0, 0.02, (n, 3, 3))
            forces[0] = np.nan
            group["wb97x_dz.forces"] = forces
    return path


def options(processes: int = 1, **changes) -> ConvertOptions:
    return ConvertOptions(progress=False, shard_size=SHARD, trust_units=True, processes=processes, **changes)


def digest(store: Path) -> dict[str, str]:
    """Checksum of every file of a store."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(store.iterdir())}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    return [frames(folder / "a.npz", 12_500), frames(folder / "b.npz", 700, seed=3, compressed=True)]


@pytest.fixture(scope="module")
def whole(sources: list[Path], tmp_path_factory) -> dict[str, str]:
    """The store of an undisturbed conversion."""
    store = tmp_path_factory.mktemp("whole") / "s"
    report = convert(sources, store, "md17", options=options())
    assert (report.written, report.skipped) == (13_200 - 14, 14)
    assert len(Store(store).summary.shards) == 9
    return digest(store)


def test_several_processes_make_the_same_store(sources: list[Path], whole: dict[str, str], tmp_path: Path) -> None:
    report = convert(sources, tmp_path / "s", "md17", options=options(processes=2))
    assert digest(tmp_path / "s") == whole
    assert report.files == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_groups_of_hdf5_are_portioned(tmp_path: Path) -> None:
    source = formulas(tmp_path / "a.h5", 250)
    one = convert([source], tmp_path / "one", "ani1x", options=options())
    convert([source], tmp_path / "two", "ani1x", options=options(processes=2))
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    ids = [record.id for record in Store(tmp_path / "one")]
    assert len(ids) == len(set(ids)) == one.written
    assert ids == sorted(ids, key=lambda i: (i.split("#")[0], int(i.split("#")[1])))


KILLED = """
import os, signal, sys
import jmp_ds.data.assembly as assembly, jmp_ds.data.part_work as part_work
from jmp_ds.data.convert import ConvertOptions, convert
where, how, processes, store, *sources = sys.argv[1:]
left = [int(where)]
def end():
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), getattr(signal, how))
if "seal" in os.environ["POINT"]:
    original = assembly.Assembly._seal
    def seal(self, place):
        if os.environ["POINT"] == "before seal": end()
        original(self, place)
        end()
    assembly.Assembly._seal = seal
else:
    original_put = assembly.StoreWriter.append_packed
    def put(self, packed):
        original_put(self, packed)
        end()
    assembly.StoreWriter.append_packed = put
signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    settings = ConvertOptions(progress=False, shard_size=1500, trust_units=True, processes=int(processes))
    convert(sources, store, "md17", options=settings)
"""


@pytest.mark.parametrize(
    ("point", "where", "how", "processes"),
    [
        ("after seal", 1, "SIGKILL", 1),
        ("after seal", 5, "SIGKILL", 1),
        ("before seal", 3, "SIGKILL", 1),
        ("row", 1, "SIGKILL", 1),
        ("row", 9, "SIGINT", 1),
        ("row", 16, "SIGKILL", 1),
    ],
)
def test_killed_and_gone_on(
    sources: list[Path], whole: dict[str, str], tmp_path: Path, point: str, where: int, how: str, processes: int
) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(where), how, str(processes), str(tmp_path / "s"), *map(str, sources)]
    done = subprocess.run(command, env={**os.environ, "POINT": point}, capture_output=True, timeout=120, check=False)
    assert done.returncode not in (0, 1, 2) or how == "SIGINT", done.stderr
    assert not (tmp_path / "s").exists()
    assert (tmp_path / "s.partial").is_dir()
    report = convert(sources, tmp_path / "s", "md17", options=options())
    assert digest(tmp_path / "s") == whole
    assert (report.written, report.skipped, report.files) == (13_186, 14, 2)
    if point == "after seal":
        assert report.resumed == where * SHARD


def test_killed_twice_with_several_processes(sources: list[Path], whole: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    for where in (2, 3):
        command = [sys.executable, str(script), str(where), "SIGKILL", "2", str(tmp_path / "s"), *map(str, sources)]
        env = {**os.environ, "POINT": "after seal"}
        done = subprocess.run(command, env=env, capture_output=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    report = convert(sources, tmp_path / "s", "md17", options=options())
    assert report.resumed == 5 * SHARD
    assert digest(tmp_path / "s") == whole


def test_another_conversion_does_not_go_on(sources: list[Path], whole: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), "2", "SIGKILL", "1", str(tmp_path / "s"), str(sources[1]), str(sources[0])]
    subprocess.run(command, env={**os.environ, "POINT": "after seal"}, capture_output=True, timeout=120, check=False)
    report = convert(sources, tmp_path / "s", "md17", options=options())
    assert report.resumed == 0
    assert digest(tmp_path / "s") == whole


def test_a_changed_source_does_not_go_on(tmp_path: Path) -> None:
    source = frames(tmp_path / "a.npz", 4000)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), "1", "SIGKILL", "1", str(tmp_path / "s"), str(source)]
    subprocess.run(command, env={**os.environ, "POINT": "after seal"}, capture_output=True, timeout=120, check=False)
    assert (tmp_path / "s.partial").is_dir()
    frames(tmp_path / "a.npz", 4000, seed=7)
    assert convert([source], tmp_path / "s", "md17", options=options()).resumed == 0


def test_a_folder_of_somebody_else_is_safe(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial/thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds other files"):
        convert(sources[1:], tmp_path / "s", "md17", options=options())
    assert (tmp_path / "s.partial/thesis.tex").read_text() == "years"


def test_two_at_once_are_told(sources: list[Path], tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "s.partial").mkdir()
    with (tmp_path / "s.partial/lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing"):
            convert(sources[1:], tmp_path / "s", "md17", options=options())
    assert convert(sources[1:], tmp_path / "s", "md17", options=options()).written == 699


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """What a child process takes at most, for five times the frames."""
    code = (
        "import sys\n"
        "from jmp_ds.data.convert import ConvertOptions, convert\n"
        "convert([sys.argv[1]], sys.argv[2], 'md17', options=ConvertOptions(progress=False, trust_units=True))\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"  # a process inherits ru_maxrss
    )
    peaks = []
    for count in (11_000, 55_000):
        source = frames(tmp_path / f"{count}.npz", count)
        command = [sys.executable, "-c", code, str(source), str(tmp_path / f"s{count}")]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, timeout=300).stdout))
    grown = (peaks[1] - peaks[0]) * 1024
    # 44,000 frames more: 23 MB of source in the file, 56 MB of store mapped while it is written
    assert grown < 80e6, peaks
