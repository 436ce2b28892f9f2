"""The quickstart: pre-train on four demonstration domains, fine-tune on three other sets, compare with scratch.

The data are made with a semi-empirical method: a demonstration, of no scientific use.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from comparison import Study, Target, compare, fresh_folder, heading, jmp_ds, parity_pictures, summarise

from jmp_ds.experiment.reporting import run_curves
from jmp_ds.training.metrics_log import read_metrics

MARKER = "quickstart.json"
RATES = (1.0e-3, 2.0e-3, 4.0e-3)
SLABS = {"cutoff": 8.0, "max_neighbors": 12}
MOLECULES = {"cutoff": 6.0, "max_neighbors": 12}
PRETRAIN_GRAPHS = {"slabs": SLABS, "oxides": SLABS, "molecules": MOLECULES, "paths": MOLECULES}


def targets(data: Path) -> dict[str, Target]:
    """The three fine-tuning sets."""
    dynamics = {"forces_mae": "meV/Å", "energy_mae_per_atom": "meV/atom"}
    tasks: dict[str, dict[str, Any]] = {
        "malonaldehyde": {
            "energy": {"weight": 1},
            "forces": {"kind": "gradient", "weight": 10},
            "split": {"train": 0.25, "val": 0.1, "test": 0.3},
        },
        "dipeptide": {
            "energy": {"weight": 1},
            "forces": {"kind": "direct", "weight": 10},
            "split": {"train": 0.25, "val": 0.1, "test": 0.33},
        },
        "gaps": {
            "scalar": {"label": "gap", "unit": "eV", "reduction": "mean"},
            "split": {"train": 0.4, "val": 0.15, "test": 0.4},
        },
    }
    return {
        name: Target(
            task={"store": str(data / name), "graph": MOLECULES, **task},
            epochs=8 if "scalar" in task else 6,
            structures=10 if "scalar" in task else 5,
            metrics={"gap_mae": "eV"} if "scalar" in task else dynamics,
        )
        for name, task in tasks.items()
    }


def main() -> None:
    """The whole quickstart."""
    options = parse()
    started = time.monotonic()
    out = Path(options.out)
    fresh_folder(out, MARKER, "quickstart")
    data = prepare_data(out, options)
    run_pretrain(out, data, options)
    study = Study(
        out=out,
        bundle=out / "pretrain" / "final",
        model={"preset": "tiny"},
        targets=targets(data),
        rates=RATES,
        seeds=options.seeds,
    )
    heading(
        f"3. Fine-tuning: {len(study.targets)} sets, pre-trained and from scratch, {len(RATES)} learning rates each"
    )
    results = compare(study)
    loss = run_curves(read_metrics(out / "pretrain"))["training loss"]
    table, numbers = summarise(study, results, {"pre-training loss": loss})
    minutes = (time.monotonic() - started) / 60
    (out / "report.md").write_text(report(table, parity_pictures(study, results), options, minutes), encoding="utf-8")
    (out / MARKER).write_text(json.dumps({"minutes": minutes, **numbers}, indent=1) + "\n")
    heading(f"Done in {minutes:.1f} minutes: test errors, pre-trained against scratch")
    print(table)
    print(f"\nReport, curves and parity plots: {out / 'report.md'}")
    print(
        "Try next: jmp-ds data convert YOUR_FILES data/mine --format ase, then write a finetune.yaml like those in "
        f"{out / 'configs'} and run jmp-ds finetune on it"
    )


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="launch/quickstart.sh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", default="runs/quickstart", help="folder of the results (%(default)s); an earlier one is replaced"
    )
    parser.add_argument(
        "--data", help="folder with demonstration stores made before, instead of the set that comes along"
    )
    parser.add_argument("--regenerate", action="store_true", help="compute the demonstration data anew (many minutes)")
    parser.add_argument("--steps", type=int, default=450, help="length of the pre-training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many times every fine-tuning is done (%(default)s)")
    return parser.parse_args()


def prepare_data(out: Path, options: argparse.Namespace) -> Path:
    """The folder with the demonstration stores."""
    if options.data is not None:
        return Path(options.data)
    heading("1. Demonstration data: seven small sets, labelled by xTB")
    jmp_ds("data", "demo", str(out / "data"), *(["--regenerate"] if options.regenerate else []))
    return out / "data"


def run_pretrain(out: Path, data: Path, options: argparse.Namespace) -> None:
    """One network on four domains, two processes."""
    heading("2. Pre-training on four domains at once, two processes through the deepspeed launcher")
    weights = {"energy": {"weight": 1}, "forces": {"weight": 10}}
    config = {
        "run": {"dir": str(out / "pretrain"), "device": "cpu", "threads": 1},
        "model": {"preset": "tiny"},
        "tasks": {
            name: {"store": str(data / name), "graph": graph, **weights, "split": {"train": 0.92, "val": 0.08}}
            for name, graph in PRETRAIN_GRAPHS.items()
        },
        "sampling": {"batch": {"edges": 1000}},
        "train": {
            "steps": options.steps,
            "optimizer": {"lr": 3.0e-3},
            "schedule": {"warmup": 0.05, "cosine_to": 0.05},
            "ema": 0.98,
        },
        "engine": {"deepspeed": "cpu_fp32"},
        "validate": {"every": 3.0},
        "checkpoint": {"every": 6.0},
    }
    file = out / "pretrain.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    jmp_ds("pretrain", str(file), "--processes", "2")


def report(table: str, parity: str, options: argparse.Namespace, minutes: float) -> str:
    """The page that ties everything together."""
    parts = [
        "# Quickstart: pre-trained against scratch",
        f"Same structures, steps and schedule on both sides; each side at the best of the learning rates "
        f"{', '.join(f'{r:g}' for r in RATES)} by its validation error; {options.seeds} seed(s); {minutes:.1f} minutes. "
        "A ratio below 1 means that pre-training helped. The data are a demonstration (xTB labels, few structures); "
        "the numbers say that the software works, not how good the method is.",
        table,
        "![comparison](comparison.png)",
        "![curves](curves.png)",
        "Pre-training: [report](pretrain/report/report.md), ![parity](pretrain/report/parity_val.png)",
        f"Parity on the test structures:\n\n{parity}",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
