"""Pre-trained against scratch on real data: four sets of DFT calculations, then two sets of other chemistry.

    python launch/real_data.py DATA [--out runs/real_data]

DATA holds the publishers' files (not part of the project): pretrain_oc20/traj, pretrain_oxides/oxides.db, pretrain_qm7x,
pretrain_mptrj, finetune_md17/rmd17_aspirin.npz, finetune_qm9/QM9under14atoms_atomizationenergy_eV/val.txt. What is done is
kept: the script goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import yaml
from comparison import Study, Target, compare, heading, jmp_ds, parity_pictures, summarise

from jmp_ds.experiment.reporting import run_curves
from jmp_ds.training.metrics_log import read_metrics
from jmp_ds.training.outcome import read_outcome

#: Store, format, files below DATA, more options of `data convert`.
SOURCES = (
    ("oc20", "ase", ("pretrain_oc20/traj",), ()),
    ("oxides", "ase", ("pretrain_oxides/oxides.db",), ()),
    ("qm7x", "qm7x", ("pretrain_qm7x/qm7x_250_small.npz",), ()),
    ("mptrj", "ase", ("pretrain_mptrj/mptrj-random-1k.xyz", "pretrain_mptrj/mptrj-highest-stress-1k.xyz"), ()),
    ("aspirin", "rmd17", ("finetune_md17/rmd17_aspirin.npz",), ()),
    ("qm9", "qdf", ("finetune_qm9/QM9under14atoms_atomizationenergy_eV/val.txt",), ("--label", "energy=0:eV")),
)
GRAPH = {"cutoff": 6.0, "max_neighbors": 12}


def main() -> None:
    """Everything, in order."""
    options = parse()
    started = time.monotonic()
    out, stores = Path(options.out), Path(options.out) / "stores"
    out.mkdir(parents=True, exist_ok=True)
    heading("1. Conversion")
    for name, form, files, more in SOURCES:
        if not (stores / name).exists():
            sources = [str(Path(options.data) / file) for file in files]
            jmp_ds("data", "convert", *sources, str(stores / name), "--format", form, *more)
    heading("2. Pre-training on OC20, oxides, QM7-X and MPtrj")
    pretrain(out, stores)
    heading("3. Fine-tuning on rMD17 aspirin and QM9 atomisation energies")
    study = study_of(out, stores, options.seeds)
    results = compare(study)
    table, numbers = summarise(study, results, {"pre-training loss": loss(out)})
    minutes = (time.monotonic() - started) / 60
    (out / "report.md").write_text(f"# Real data\n\n{table}\n\n{parity_pictures(study, results)}\n", encoding="utf-8")
    (out / "real_data.json").write_text(json.dumps({"minutes": minutes, **numbers}, indent=1) + "\n")
    print(table)
    print(f"\n{minutes:.1f} minutes in this start; report: {out / 'report.md'}")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="folder with the publishers' files")
    parser.add_argument("--out", default="runs/real_data", help="folder of stores and results (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many times every fine-tuning is done (%(default)s)")
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        sys.exit(f"real_data: {options.data} is not a folder")
    return options


def pretrain(out: Path, stores: Path) -> None:
    """Two processes; the configuration is launch/real_data.yaml with the places filled in."""
    config = yaml.safe_load((Path(__file__).parent / "real_data.yaml").read_text())
    config["run"]["dir"] = str(out / "pretrain")
    for name, task in config["tasks"].items():
        task["store"] = str(stores / name)
    file = out / "pretrain.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    outcome = read_outcome(out / "pretrain")
    if outcome is None or outcome.status != "finished":
        jmp_ds("pretrain", str(file), "--processes", "2")


def study_of(out: Path, stores: Path, seeds: int) -> Study:
    """The two sets: aspirin at 500 K, 900/50/50 structures; atomisation energies of QM9 molecules, 1179/150/150."""
    aspirin = {
        "energy": {"weight": 1},
        "forces": {"kind": "direct", "weight": 10},
        "split": {"train": 900, "val": 50, "test": 50},
    }
    qm9 = {"energy": {"weight": 1}, "split": {"train": 1179, "val": 150, "test": 150}}
    place = {"aspirin": str(stores / "aspirin"), "qm9": str(stores / "qm9")}
    return Study(
        out=out,
        bundle=out / "pretrain" / "final",
        model={"preset": "tiny"},
        targets={
            "aspirin": Target(
                task={"store": place["aspirin"], "graph": GRAPH, **aspirin},
                epochs=5,
                structures=5,
                metrics={"forces_mae": "meV/Å", "energy_mae_per_atom": "meV/atom"},
            ),
            "qm9": Target(
                task={"store": place["qm9"], "graph": GRAPH, **qm9},
                epochs=5,
                structures=8,
                metrics={"energy_mae": "eV"},
            ),
        },
        rates=(5.0e-4, 1.5e-3, 4.0e-3),
        seeds=seeds,
    )


def loss(out: Path) -> list:
    """Curve of the pre-training."""
    return run_curves(read_metrics(out / "pretrain"))["training loss"]


if __name__ == "__main__":
    main()
