"""Structures per second and core, and memory, of conversions: `python tests/measure_conversion.py FOLDER [PROCESSES]`.

Files in the publishers' layouts are made in FOLDER on the first call and kept; each is converted by a process of its own.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import layouts
import numpy as np
from ase.build import molecule
from torch_geometric.data import Data

CHILD = """
import json, sys
from jmp_ds.data.convert import ConvertOptions, convert
if __name__ == "__main__":
    source, store, format, processes = sys.argv[1:]
    how = ConvertOptions(progress=False, trust_units=True, processes=int(processes))
    report = convert([source], store, format, options=how)
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024  # not ru_maxrss, which a process inherits from its parent
    print(json.dumps([report.written, report.seconds, peak]))
"""


def npz(path: Path, count: int) -> None:
    """MD17's layout, ethanol."""
    rng = np.random.default_rng(0)
    ethanol = molecule("CH3CH2OH")
    pos = ethanol.positions + rng.normal(0, 0.05, (count, 9, 3))
    arrays = {"E": rng.normal(0, 1, (count, 1)), "F": rng.normal(0, 20, (count, 9, 3))}
    np.savez_compressed(path, z=ethanol.numbers, R=pos, **arrays)


def hdf5(path: Path, count: int) -> None:
    """ANI-1x's layout, 200 conformers per group."""
    rng = np.random.default_rng(0)
    ethanol = molecule("CH3CH2OH")
    with h5py.File(path, "w") as file:
        for k in range(count // 200):
            group = file.create_group(f"f{k:05d}")
            group["atomic_numbers"] = ethanol.numbers
            group["coordinates"] = (ethanol.positions + rng.normal(0, 0.05, (200, 9, 3))).astype(np.float32)
            group["wb97x_dz.energy"] = rng.normal(-154, 0.05, 200)
            group["wb97x_dz.forces"] = rng.normal(0, 0.05, (200, 9, 3)).astype(np.float32)


def bands(path: Path, count: int) -> None:
    """Transition1x's layout, 200 frames per reaction."""
    rng = np.random.default_rng(0)
    ethanol = molecule("CH3CH2OH")
    with h5py.File(path, "w") as file:
        for k in range(count // 200):
            group = file.create_group(f"data/C2H6O/rxn{k:05d}")
            group["atomic_numbers"] = ethanol.numbers
            group["positions"] = ethanol.positions + rng.normal(0, 0.05, (200, 9, 3))
            group["wB97x_6-31G(d).energy"] = rng.normal(-4200, 0.5, 200)
            group["wB97x_6-31G(d).forces"] = rng.normal(0, 1.0, (200, 9, 3))


def lmdb(path: Path, count: int) -> None:
    """OC20's S2EF in LMDB, copper slabs of 12 atoms with edges."""
    kinds = [pickle.dumps(Data(**layouts.slab_fields(i)), protocol=-1) for i in range(50)]
    environment = layouts.lmdb.open(str(path), subdir=False, map_size=1 << 34, lock=False)
    with environment.begin(write=True) as transaction:
        for i in range(count):
            transaction.put(str(i).encode(), kinds[i % 50])
        transaction.put(b"length", pickle.dumps(count))
    environment.close()


CASES = [
    ("md17", ".npz", npz, 20_000),
    ("md17", ".npz", npz, 200_000),
    ("ani1x", ".h5", hdf5, 20_000),
    ("ani1x", ".h5", hdf5, 200_000),
    ("transition1x", ".h5", bands, 20_000),
    ("transition1x", ".h5", bands, 200_000),
    ("ocp", ".lmdb", lmdb, 20_000),
]


def main(folder: Path, processes: int) -> None:
    """Make what is missing, convert everything, print a table."""
    folder.mkdir(parents=True, exist_ok=True)
    for format, suffix, make, count in CASES:
        source, store = folder / f"{format}-{count}{suffix}", folder / "store"
        if not source.is_file():
            make(source, count)
        if processes == 0:
            continue
        shutil.rmtree(store, ignore_errors=True)
        child = folder / "child.py"
        child.write_text(CHILD)
        command = [sys.executable, str(child), str(source), str(store), format, str(processes)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        written, seconds, peak = json.loads(done.stdout)
        rate = written / seconds / processes
        sys.stdout.write(f"{format:14} {written:8} {seconds:7.1f} s {rate:8.0f} per s and core {peak:6.0f} MB\n")
        sys.stdout.flush()
    shutil.rmtree(folder / "store", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
