"""`python -m jmp_kernels.bench`: microbenchmarks of the operators; `--tune` searches launch parameters instead."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from jmp_kernels.bench.forms import PASSES, SIZES
from jmp_kernels.bench.lists import shipped
from jmp_kernels.bench.measure import DTYPES, Failures, Request, measure
from jmp_kernels.bench.output import Table, plot, read_rows
from jmp_kernels.bench.registry import OPERATORS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jmp_kernels.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--batches", nargs="+", choices=shipped(), default=list(shipped()))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["jmp-s"], help="widths of a model")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="of features")
    parser.add_argument("--forms", nargs="+", default=[], metavar="FORM", help="default: all; `compiled` on GPUs only")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N [default: a GPU where there is one]")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU [default: PyTorch's]")
    parser.add_argument("--tf32", action="store_true", help="let float32 products be rounded to TF32")
    parser.add_argument("--budget", type=float, default=0.2, metavar="S", help="seconds per time, roughly")
    parser.add_argument(
        "--room", type=float, metavar="GIB", help="memory for one form's tables [a fifth of what is free]"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="begin no operator after so many [no limit]")
    parser.add_argument(
        "--out", type=Path, default=Path("kernels-bench"), metavar="DIR", help="for kernels.csv and plots"
    )
    parser.add_argument("--tune", action="store_true", help="search launch parameters; needs a GPU")
    parser.add_argument("--tuned", type=Path, metavar="FILE", help="where --tune writes [default: the shipped file]")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0, 1 where an operator was left out because it is wrong, 2 for a mistake of the user."""
    given = _parser().parse_args(arguments)
    try:
        device = _device(given.device)
        if given.threads:
            torch.set_num_threads(given.threads)
        torch.set_float32_matmul_precision("high" if given.tf32 else "highest")
        request = Request(
            operators=given.operators,
            batches=given.batches,
            sizes=given.sizes,
            dtypes=given.dtypes,
            forms=given.forms,
            passes=given.passes,
            device=device,
            triton=device.type == "cuda" and find_spec("triton") is not None,
            budget=given.budget,
            room=None if given.room is None else int(given.room * 2**30),
            seconds=given.seconds,
        )
        if given.tune:
            from jmp_kernels.bench.tune import tune

            tune(request, given.tuned, _tell)
            return 0
        return _report(request, given.out)
    except ValueError as problem:
        _tell(str(problem))
        return 2


def _report(request: Request, folder: Path) -> int:
    """Measure, write, and say what was left out."""
    if not request.triton:
        _tell(f"the Triton kernels are not timed on {request.device}")
    failures = Failures(_tell)
    table = Table(folder / "kernels.csv")
    for row in measure(request, _tell, failures):
        table.add(row)
        sys.stdout.write(
            f"{row.operator:20} {row.batch:10} {row.dtype:9} {row.form:15} {row.which:9} "
            f"{row.p20_ms:9.3f} {row.p50_ms:9.3f} {row.p80_ms:9.3f} ms  {100 * row.roofline_share:5.1f} % of roofline\n"
        )
        sys.stdout.flush()
    if not plot(read_rows(folder / "kernels.csv"), folder):
        _tell("no plots: matplotlib is not installed, or nothing was measured")
    return int(bool(failures.lines))


def _device(name: str) -> torch.device:
    """The device asked for.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}: no GPU here")
    return device


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
