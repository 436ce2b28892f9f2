"""Files in the layouts that publishers ship, filled with made-up numbers: for families whose originals are not at hand."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from old_pyg import old_record
from torch_geometric.data import Data


def write_lmdb(path: Path, values: dict[str, bytes]) -> Path:
    """Key-value pairs in one LMDB file, as text keys."""
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 26, lock=False)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    environment.close()
    return path


def slab_fields(seed: int, *, oc22: bool = False) -> dict[str, Any]:
    """Fields of an S2EF record: a copper slab with fixed layers and tags 0, 1, 2."""
    rng = np.random.default_rng(seed)
    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    n = len(slab)
    fields = {
        "pos": torch.tensor(slab.positions + rng.normal(0, 0.05, (n, 3)), dtype=torch.float32),
        "cell": torch.tensor(slab.cell.array, dtype=torch.float32)[None],
        "atomic_numbers": torch.tensor(slab.numbers, dtype=torch.float32),
        "natoms": n,
        "tags": torch.tensor([0] * 4 + [1] * 4 + [2] * 4),
        "fixed": torch.tensor([1.0] * 4 + [0.0] * 8),
        "force": torch.tensor(rng.normal(0, 0.3, (n, 3)), dtype=torch.float32),
        "y": float(rng.normal(-500 if oc22 else -1, 0.5)),
        "sid": 100 + seed // 3,
        "fid": seed,
        "edge_index": torch.zeros(2, 50, dtype=torch.int64),
        "cell_offsets": torch.zeros(50, 3, dtype=torch.int64),
    }
    return {**fields, "oc22": 1, "nads": 1, "id": f"0_{seed}"} if oc22 else fields


def s2ef_lmdb(path: Path, count: int = 7, *, oc22: bool = False, length: bool = True, old: bool = False) -> Path:
    """OC20's or OC22's LMDB: pickled records, by the old release of PyTorch Geometric or by today's."""
    records = [slab_fields(i, oc22=oc22) for i in range(count)]
    values = {str(i): old_record(**r) if old else pickle.dumps(Data(**r), protocol=-1) for i, r in enumerate(records)}
    return write_lmdb(path, {**values, **({"length": pickle.dumps(count, protocol=-1)} if length else {})})


def conformer_fields(seed: int) -> dict[str, Any]:
    """Fields of a molecular record as the published preprocessing writes them."""
    rng = np.random.default_rng(seed)
    water = molecule("H2O")
    return {
        "pos": torch.tensor(water.positions + rng.normal(0, 0.05, (3, 3)), dtype=torch.float32),
        "atomic_numbers": torch.tensor(water.numbers, dtype=torch.float32),
        "y": -2080.0 + 0.1 * seed,
        "force": torch.tensor(rng.normal(0, 0.5, (3, 3)), dtype=torch.float32),
        "pbc": torch.zeros(3),
        "tags": torch.full((3,), 2),
        "natoms": 3,
        "sid": torch.tensor([seed // 2]),
        "fid": torch.tensor([seed]),
    }


def labelled_slab(seed: int) -> Atoms:
    """A periodic structure with energy, forces and stress."""
    rng = np.random.default_rng(seed)
    atoms = fcc111("Cu", (1, 1, 3), vacuum=5.0)
    atoms.positions += rng.normal(0, 0.02, (3, 3))
    atoms.set_constraint(FixAtoms([0]))
    forces, stress = rng.normal(0, 0.1, (3, 3)), rng.normal(0, 0.01, 6)
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0 - seed, forces=forces, stress=stress)
    return atoms


def aselmdb(path: Path, frames: list[Atoms], *, marked: bool = False, deleted: tuple[int, ...] = ()) -> Path:
    """An ASE database in LMDB; arrays as lists, or as ASE's marks."""

    def row(number: int, atoms: Atoms) -> bytes:
        results = {key: np.asarray(value) for key, value in atoms.calc.results.items()}
        values = {
            "numbers": atoms.numbers,
            "positions": atoms.positions,
            "cell": atoms.cell.array,
            "pbc": atoms.pbc,
            "constraints": [c.todict() for c in atoms.constraints],
            "calculator": "unknown",
            "calculator_parameters": {},
            "key_value_pairs": {"sid": f"s{number}"},
            "data": {"extra": [1, 2]},
            "unique_id": f"{number:032x}",
            "ctime": 1.0,
            "mtime": 1.0,
            "user": "nobody",
            **results,
        }
        return zlib.compress(json.dumps(values, default=plain).encode())

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray) and marked and value.ndim:
            return {"__ndarray__": [list(value.shape), value.dtype.name, value.ravel().tolist()]}
        return value.tolist()

    rows = {str(i): row(i, atoms) for i, atoms in enumerate(frames, start=1) if i not in deleted}
    note = {"nextid": zlib.compress(str(len(frames) + 1).encode()), "metadata": zlib.compress(b"{}")}
    return write_lmdb(path, {**rows, **note, "deleted_ids": zlib.compress(json.dumps(list(deleted)).encode())})


def qm9_pyg(path: Path, count: int = 5) -> Path:
    """PyTorch Geometric's qm9_v3.pt: a list of dictionaries."""
    water = molecule("H2O")
    molecules = [
        {
            "x": torch.zeros(3, 11),
            "edge_index": torch.zeros(2, 4, dtype=torch.int64),
            "edge_attr": torch.zeros(4, 4),
            "y": torch.arange(19.0)[None] + 100 * i,
            "pos": torch.tensor(water.positions + 0.01 * i, dtype=torch.float32),
            "idx": torch.tensor([i]),
            "name": f"gdb_{i + 1}",
            "z": torch.tensor(water.numbers),
        }
        for i in range(count)
    ]
    torch.save(molecules, path)
    return path


def qm9_original(folder: Path, numbers: Sequence[int], damaged: Sequence[int] = ()) -> Path:
    """QM9 as published: one xyz file per molecule, with its number and 15 properties in line 2."""
    folder.mkdir(parents=True)
    water = molecule("H2O")
    for number in numbers:
        values = "\t".join(f"{0.1 * k + number:.6f}" for k in range(14 if number in damaged else 15))
        atoms = "".join(
            f"{s}\t {x:.10f}\t {y:.10f}\t {z:.10f}\t-0.1\n"
            for s, (x, y, z) in zip("OHH", water.positions + 1e-4 * number, strict=True)
        )
        text = f"3\ngdb {number}\t{values}\t\n{atoms}1595.1\t3657.1\t3755.9\nO\tO\t\nInChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n"
        (folder / f"dsgdb9nsd_{number:06d}.xyz").write_text(text)
    return folder


def uncharacterized(path: Path, numbers: Sequence[int]) -> Path:
    """The publishers' list beside it: nine lines of heading, a table whose first column is the number, a closing line."""
    heading = ["=" * 60, "Molecules that failed a check", f"{len(numbers)} molecules of 133885", "", "-" * 60]
    heading += ["columns:", "", "Index  SMILES", "-" * 60]
    rows = [f"{number:6d}   O   [OH2]   0.1" for number in numbers]
    path.write_text("\n".join([*heading, *rows, f"{len(numbers)} rows"]) + "\n")
    return path


def pymatgen_dict(symbols: list[str], fractional: list[list[float]], length: float) -> dict[str, Any]:
    """A crystal as pymatgen writes it."""
    matrix = (np.eye(3) * length).tolist()
    sites = [
        {
            "species": [{"element": symbol, "occu": 1}],
            "abc": abc,
            "xyz": (np.array(abc) * length).tolist(),
            "label": symbol,
            "properties": {},
        }
        for symbol, abc in zip(symbols, fractional, strict=True)
    ]
    return {"@module": "pymatgen.core.structure", "@class": "Structure", "lattice": {"matrix": matrix}, "sites": sites}


def qmof(folder: Path, count: int = 4, *, flat: bool = False) -> Path:
    """The QMOF database's two files; the properties in another order, and the last without a gap."""
    folder.mkdir()
    structures, properties = [], []
    for i in range(count):
        name = f"qmof-{i:07x}"
        crystal = pymatgen_dict(["Zn", "O", "C"], [[0, 0, 0], [0.25, 0.25, 0.25], [0.5, 0.5, 0.5]], 8.0 + i)
        structures.append({"qmof_id": name, "name": f"M{i}", "structure": crystal})
        values = {"bandgap": None if i == count - 1 else 1.5 + i, "energy_total": -100.0 - i}
        outputs = {f"outputs.pbe.{k}": v for k, v in values.items()} if flat else {"outputs": {"pbe": values}}
        properties.append({"qmof_id": name, "name": f"M{i}", **outputs})
    (folder / "qmof_structure_data.json").write_text(json.dumps(structures, indent=1))
    (folder / "qmof.json").write_text(json.dumps(properties[::-1]))
    return folder


_SDF = """1abc_ligand
  made up

  3  2  0  0  0  0  0  0  0  0999 V2000
    1.0000    2.0000    3.0000 C   0  0  0  0  0
    2.4000    2.0000    3.0000 Cl  0  0  0  0  0
    0.5000    2.9000    3.0000 H   0  0  0  0  0
  1  2  1
  1  3  1
M  END
$$$$
"""
_PDB = """HEADER    MADE UP
ATOM      1  N   GLY A   1      11.000  12.000  13.000  1.00  0.00           N
ATOM      2  CA AGLY A   1      12.400  12.000  13.000  0.60  0.00           C
ATOM      3  CA BGLY A   1      12.500  12.100  13.000  0.40  0.00           C
HETATM    4 ZN    ZN A 201      20.000  12.000  13.000  1.00  0.00          ZN
HETATM    5  O   HOH A 301      20.000  15.000  13.000  1.00  0.00
END
"""


def pdbbind(folder: Path, codes: tuple[str, ...] = ("1abc", "2xyz", "3gon")) -> Path:
    """PDBBind's folders and index; the last complex of the index has no folder."""
    (folder / "index").mkdir(parents=True)
    lines = ["# PDB code, resolution, release year, -logKd/Ki, Kd/Ki, reference, ligand name"]
    for k, code in enumerate(codes):
        lines.append(f"{code}  2.00  {2000 + k}   {4.5 + k:.2f}  Kd=31uM      // {code}.pdf (LIG)")
        if code == codes[-1]:
            continue
        (folder / code).mkdir()
        (folder / code / f"{code}_ligand.sdf").write_text(_SDF)
        (folder / code / f"{code}_pocket.pdb").write_text(_PDB)
    (folder / "index/INDEX_refined_data.2019").write_text("\n".join(lines) + "\n")
    return folder
