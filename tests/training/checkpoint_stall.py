"""How long training stands still for a checkpoint, written at once and in the background.

python tests/training/checkpoint_stall.py --parameters 100   # millions, one process, ZeRO 1, with averaged weights
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from torch import nn

from jmp_ds.training.checkpoints import Checkpoints
from jmp_ds.training.ds_config import load_ds_config
from jmp_ds.training.ema import Ema
from jmp_ds.training.engine import Engine, EngineOptions, start_processes
from jmp_ds.training.optimizer import OptimizerOptions, parameter_groups
from jmp_ds.training.shards import Shards


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=float, default=100.0)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    processes = start_processes("cpu", 0)
    width = 2048
    model = nn.Sequential(
        *(nn.Linear(width, width, bias=False) for _ in range(int(arguments.parameters * 1e6 / width**2)))
    )
    config = EngineOptions(ds_config=load_ds_config({"zero_optimization": {"stage": 1}}))
    engine = Engine(model, parameter_groups(model.named_parameters()), OptimizerOptions(), config, processes)
    shards = Shards(engine, Ema(engine, 0.99))
    work = torch.randn(1024, 1024)
    say = sys.stdout.write
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters, {shards.size / 1e9:.2f} GB\n")
    for background in (False, True):
        stalls, totals, slowed = [], [], []
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            checkpoints = Checkpoints(Path(folder) / "checkpoints", engine, shards, 1, background=background)
            for step in range(arguments.repeat):
                began = time.monotonic()
                checkpoints.save(step, {}, {})
                stall = time.monotonic() - began
                products = 0
                while background and not checkpoints.ready:
                    _ = work @ work
                    products += 1
                waited = time.monotonic()
                checkpoints.finish()
                stalls.append(stall + time.monotonic() - waited)
                totals.append(time.monotonic() - began)
                if background:
                    during = (waited - began - stall) / max(products, 1)
                    alone = time.monotonic()
                    for _ in range(50):
                        _ = work @ work
                    slowed.append(during / ((time.monotonic() - alone) / 50))
        name = "background" if background else "at once"
        extra = f", matrix products meanwhile take {statistics.median(slowed):.2f} times as long" if slowed else ""
        say(
            f"{name}: first {stalls[0]:.2f} s, then training stands still for {statistics.median(stalls[1:]):.2f} s, "
            f"committed after {statistics.median(totals[1:]):.2f} s{extra}\n"
        )


if __name__ == "__main__":
    main()
