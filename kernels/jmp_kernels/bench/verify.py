"""Every operator natively, without pytest: `python -m jmp_kernels.bench.verify [--json FILE]`.

For machines with torch, triton and numpy alone. Outputs, gradients and second derivatives of every kernel against float64
in PyTorch, on sizes that bite, from memory full of NaN; and the same bits in two runs. Needs a GPU, or
TRITON_INTERPRET=1 (then without bfloat16, which the interpreter cannot calculate with).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from jmp_kernels.bench.checking import check, reference, repeats
from jmp_kernels.bench.forms import SIZES, Case, Form, Values
from jmp_kernels.bench.lists import lists_of, small_degrees
from jmp_kernels.bench.measure import DTYPES
from jmp_kernels.bench.registry import OPERATORS

#: Degrees of atoms: nothing, one row, tile borders, long ones.
DEGREES: tuple[tuple[int, ...], ...] = ((), (0, 0), (1,), (5, 0, 3, 1), (15, 16, 0, 17, 1, 33), (2, 1000))

#: Widths for each dtype; all kernels compile anew for each.
WIDTHS = {
    "float64": ("tiny",),
    "float32": ("tiny", "odd", "jmp-s"),
    "float16": ("tiny", "jmp-s"),
    "bf16": ("tiny", "jmp-s", "jmp-l"),
}

#: Widths that are checked on every list of degrees; the others are on one with all tile borders.
EVERYWHERE = "tiny"


@dataclass(frozen=True)
class Result:
    """Outcome of one check; `problems` is empty where all is well."""

    operator: str
    degrees: tuple[int, ...]
    sizes: str
    dtype: str
    error: float
    problems: tuple[str, ...]


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, PyTorch fills memory that it hands out uninitialised with NaN: what a kernel does not write then shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def verify(
    operators: Sequence[str], dtypes: Sequence[str], device: torch.device, degrees: Sequence[tuple[int, ...]] = DEGREES
) -> Iterator[Result]:
    """Check operators by name, in dtypes by name, on lists with these degrees."""
    borders = max(degrees, key=len)
    for dtype in dtypes:
        for sizes in WIDTHS[dtype]:
            for sample in degrees if sizes == EVERYWHERE else (borders,):
                lists = lists_of("small", small_degrees(sample), device)
                for operator in operators:
                    case = OPERATORS[operator](lists, SIZES[sizes], Values(DTYPES[dtype], device), True)
                    yield _result(case, sample, sizes, dtype)


def _result(case: Case, degrees: tuple[int, ...], sizes: str, dtype: str) -> Result:
    kernel = next(form for form in case.forms if form.name == "triton")
    try:
        error, problems = _judged(case, kernel)
    except Exception as problem:  # a kernel that does not compile or run must not hide the state of the others
        error, problems = float("nan"), (f"{type(problem).__name__}: {str(problem)[:300]}",)
    return Result(case.operator, degrees, sizes, dtype, error, problems)


def _judged(case: Case, kernel: Form) -> tuple[float, tuple[str, ...]]:
    expected = reference(case)
    with poisoned():
        verdict = check(case, kernel, expected)
    same = repeats(case, kernel)
    return verdict.error, verdict.complaints if same else (*verdict.complaints, "two runs differ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 where all is well, 1 where not, 2 where nothing can be checked."""
    parser = argparse.ArgumentParser(prog="python -m jmp_kernels.bench.verify")
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument("--dtypes", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--quick", action="store_true", help="one list of degrees only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results here")
    given = parser.parse_args(arguments)
    try:
        device = _device(given.dtypes)
    except (ImportError, ValueError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    results = []
    for result in verify(given.operators, given.dtypes, device, ((5, 0, 3, 1),) if given.quick else DEGREES):
        results.append(result)
        if result.problems:
            sys.stdout.write(f"WRONG {result}\n")
            sys.stdout.flush()
    wrong = sum(bool(result.problems) for result in results)
    sys.stdout.write(f"{len(results) - wrong} checks of the Triton operators passed, {wrong} failed, on {device}\n")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    return int(wrong > 0)


def _device(dtypes: Sequence[str]) -> torch.device:
    """Where kernels run in this process.

    Raises:
        ImportError: triton is not installed.
        ValueError: no GPU and no interpreter, or bfloat16 in the interpreter.
    """
    from jmp_kernels.triton_ops.launch import INTERPRET

    if not INTERPRET.value:
        if not torch.cuda.is_available():
            raise ValueError("no GPU here; TRITON_INTERPRET=1 checks the kernels in triton's interpreter")
        return torch.device("cuda")
    if "bf16" in dtypes:
        raise ValueError("triton's interpreter cannot calculate with bfloat16: leave bf16 out of --dtypes")
    return torch.device("cpu")


if __name__ == "__main__":
    sys.exit(main())
