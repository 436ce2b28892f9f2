"""`python -m jmp_ds.bench.suite OUTDIR [--cpu-smoke]`: runs all parts, goes on after failures, writes a summary."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from jmp_ds.bench.suite.plan import DEADLINE, Part, gpu_parts, trial_parts
from jmp_ds.bench.suite.summary import write_summary

State = Literal["ok", "failed", "out of time", "not run"]

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Outcome:
    """How a part ended; its output is in logs/NAME.log."""

    name: str
    state: State
    seconds: float
    note: str = ""


@dataclass
class Running:
    """A part under way."""

    part: Part
    process: subprocess.Popen[bytes]
    begin: float
    limit: float

    def ended(self) -> Outcome | None:
        """Its outcome, once it has one; ends it when its time is over."""
        seconds = time.monotonic() - self.begin
        code = self.process.poll()
        if code is not None:
            return Outcome(self.part.name, "failed" if code else "ok", seconds, f"exit code {code}" if code else "")
        if seconds > self.limit:
            self.process.kill()
            self.process.wait()
            return Outcome(self.part.name, "out of time", seconds, f"limit {self.limit:.0f} s")
        return None


def run(parts: Sequence[Part], out: Path, deadline: float) -> list[Outcome]:
    """Run group after group, the parts of a group side by side.

    Args:
        parts: in order; those of a group follow one another.
        out: logs go to its folder `logs`.
        deadline: seconds for all of them.
    """
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    for _, group in groupby(parts, key=lambda part: part.group):
        under_way = []
        for part in group:
            left = deadline - (time.monotonic() - begin)
            if part.missing:
                _tell(outcomes, Outcome(part.name, "not run", 0.0, f"{part.needs} is not installed"))
            elif left < 1:
                _tell(outcomes, Outcome(part.name, "out of time", 0.0, "nothing left of the whole suite's time"))
            else:
                under_way.append(_start(part, logs / f"{part.name}.log", min(part.limit, left)))
        while under_way:
            for running in list(under_way):
                outcome = running.ended()
                if outcome is not None:
                    under_way.remove(running)
                    _tell(outcomes, outcome)
            time.sleep(0.1)
    return outcomes


def _start(part: Part, log: Path, limit: float) -> Running:
    """Start a part with its output in its log; it finds the packages of this checkout."""
    paths = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **part.environment}
    with log.open("wb") as output:
        process = subprocess.Popen(part.command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
    return Running(part, process, time.monotonic(), limit)


def _tell(outcomes: list[Outcome], outcome: Outcome) -> None:
    outcomes.append(outcome)
    note = f" ({outcome.note})" if outcome.note else ""
    sys.stdout.write(f"{outcome.name:18} {outcome.state}{note}, {outcome.seconds:.0f} s\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 where every part that could run ended well, 1 where not, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="gpu_suite.sh", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUTDIR")
    parser.add_argument("--cpu-smoke", action="store_true", help="a small trial of all parts without a GPU")
    given = parser.parse_args(arguments)
    import torch

    if not given.cpu_smoke and not torch.cuda.is_available():
        sys.stderr.write("no GPU here; --cpu-smoke runs a small trial of the suite on the CPU\n")
        return 2
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    parts = trial_parts(out) if given.cpu_smoke else gpu_parts(out, ROOT / "tests" / "kernels")
    outcomes = run(parts, out, DEADLINE)
    write_summary(out, outcomes, gpu=not given.cpu_smoke)
    return int(any(outcome.state in ("failed", "out of time") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
