"""The measurement: check an operator in every form, then time its passes."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import product

import torch
from torch import Tensor

from jmp_kernels.bench.checking import check, format_of, reference
from jmp_kernels.bench.forms import PASSES, SIZES, Case, Form, Pass, Values, has_pyg
from jmp_kernels.bench.lists import lists_of, read_degrees
from jmp_kernels.bench.passes import prepare
from jmp_kernels.bench.registry import OPERATORS
from jmp_kernels.bench.timing import Roofline, peak_bytes, roofline, time_work

Tell = Callable[[str], None]

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}

CPU = torch.device("cpu")

#: Share of the free memory that the tables of one form may take.
_ROOM_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        operators, batches, sizes, dtypes: by name.
        forms: by name; empty: all but `compiled`, on a GPU with it.
        passes: of every form, as far as it has them.
        device: where.
        triton: whether the kernels are among the forms.
        budget: seconds for one time, roughly.
        room: bytes that the tables of one form may take; None: a fifth of what is free.
        seconds: after which no operator is begun any more; None: no limit.
    """

    operators: Sequence[str] = tuple(OPERATORS)
    batches: Sequence[str] = ("oc20x8", "ani64", "slab225x4", "mixed")
    sizes: Sequence[str] = ("jmp-s",)
    dtypes: Sequence[str] = ("float32",)
    forms: Sequence[str] = ()
    passes: Sequence[Pass] = PASSES
    device: torch.device = CPU
    triton: bool = False
    budget: float = 0.2
    room: int | None = None
    seconds: float | None = None

    def wants(self, form: Form) -> bool:
        """Whether a form is asked for."""
        return form.name in self.forms if self.forms else form.name != "compiled" or self.device.type == "cuda"


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        operator, batch, sizes, dtype, form: what was measured; `dtype` is that of the features.
        which: the pass.
        p20_ms, p50_ms, p80_ms, runs: its time.
        gbytes, gflop: counted from shapes.
        roofline_share: the least time for these, over the median.
        peak_mib: allocated at most, graph of the forward pass included; empty on a CPU.
        error: largest relative RMS deviation of outputs and gradients from float64.
        bandwidth_gb_s, products_gflop_s: the roofline measured in this process.
        device, torch, triton, python, date: where and when.
    """

    operator: str
    batch: str
    sizes: str
    dtype: str
    form: str
    which: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    runs: int
    gbytes: float
    gflop: float
    roofline_share: float
    peak_mib: float | None
    error: float
    bandwidth_gb_s: float
    products_gflop_s: float
    device: str
    torch: str
    triton: str
    python: str
    date: str


class Failures:
    """What was left out because it is wrong, line by line."""

    def __init__(self, tell: Tell) -> None:
        self.lines: list[str] = []
        self._tell = tell

    def add(self, line: str) -> None:
        """Note and tell."""
        self.lines.append(line)
        self._tell(line)


def measure(request: Request, tell: Tell, failures: Failures) -> Iterator[Row]:
    """All rows, operator by operator; what is wrong, too large or not installed is told and left out."""
    if not has_pyg():
        tell("pyg: torch-geometric is not installed, its scatter is not timed")
    machine, begin = _machine(request.device), time.monotonic()
    for dtype in request.dtypes:
        roof = roofline(DTYPES[dtype], request.device)
        tell(f"{dtype}: copies {roof.bandwidth / 1e9:.0f} GB/s, products {roof.products / 1e9:.0f} GFLOP/s")
        for batch in request.batches:
            lists = lists_of(batch, read_degrees(batch), request.device)
            for sizes, operator in product(request.sizes, request.operators):
                if request.seconds is not None and time.monotonic() - begin > request.seconds:
                    tell(f"{operator} on {batch}, {sizes}, {dtype}: left out, the {request.seconds:.0f} s are over")
                    continue
                values = Values(DTYPES[dtype], request.device)
                case = OPERATORS[operator](lists, SIZES[sizes], values, request.triton)
                where = Where(operator, batch, sizes, format_of(_first(case)))
                yield from _rows(case, where, request, roof, machine, (tell, failures))


@dataclass(frozen=True)
class Where:
    """The first columns of a row."""

    operator: str
    batch: str
    sizes: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.operator} on {self.batch}, {self.sizes}, {self.dtype}"


def _rows(
    case: Case, where: Where, request: Request, roof: Roofline, machine: dict[str, str], told: tuple[Tell, Failures]
) -> Iterator[Row]:
    """Rows of one operator."""
    tell, failures = told
    room = request.room if request.room is not None else int(_ROOM_SHARE * _free(request.device))
    needed = 8 * sum(x.numel() for x in case.operands.values()) + 2 * case.forms[0].room
    if needed > room:
        tell(f"{where}: left out, its check takes {needed / 2**30:.1f} GiB and {room / 2**30:.1f} are allowed")
        return
    expected = reference(case)
    for form in case.forms:
        if not request.wants(form):
            continue
        if form.room > room:
            tell(f"{where}: {form.name} left out, takes {form.room / 2**30:.1f} GiB, {room / 2**30:.1f} are allowed")
            continue
        try:
            verdict = check(case, form, expected)
        except Exception as error:  # whatever a backend or a compiler raises: the others can still be measured
            failures.add(f"{where}: {form.name} left out, {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            continue
        if verdict.complaints:
            failures.add(f"{where}: {form.name} left out, it is wrong: {'; '.join(verdict.complaints)}")
            continue
        for which, (p20, p50, p80, runs), peak in _timed(case, form, request):
            moved, flops = case.bytes(expected.output.to(_first(case)))[which], case.flops[which]
            yield Row(
                **asdict(where), form=form.name, which=which,
                p20_ms=1e3 * p20, p50_ms=1e3 * p50, p80_ms=1e3 * p80, runs=runs,
                gbytes=moved / 1e9, gflop=flops / 1e9, roofline_share=roof.share(moved, flops, p50),
                peak_mib=None if peak is None else peak / 2**20, error=verdict.error,
                bandwidth_gb_s=roof.bandwidth / 1e9, products_gflop_s=roof.products / 1e9, **machine,
            )  # fmt: skip


def _timed(
    case: Case, form: Form, request: Request
) -> Iterator[tuple[Pass, tuple[float, float, float, int], int | None]]:
    """Times and peak of every pass of a form."""
    held = prepare(case, form)
    for which in request.passes:
        if which in form.passes:
            before, work = held.work(which)
            peak = peak_bytes(before, work, request.device)
            times = time_work(before, work, request.device, request.budget)
            yield which, (times.p20, times.p50, times.p80, times.runs), peak


def _first(case: Case) -> Tensor:
    return next(iter(case.operands.values()))


def _free(device: torch.device) -> int:
    """Bytes that are free; on a CPU, of a machine that tells, else 4 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30


def _machine(device: torch.device) -> dict[str, str]:
    """Where and when."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    date = datetime.now(UTC).date().isoformat()
    return {
        "device": name, "torch": torch.__version__, "triton": triton,
        "python": platform.python_version(), "date": date,
    }  # fmt: skip
