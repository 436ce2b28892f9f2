"""Search for launch parameters on a GPU: `python -m jmp_kernels.bench --tune`. Never at run time, only on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from jmp_kernels.bench.checking import check, reference
from jmp_kernels.bench.forms import SIZES, Case, Form, Pass, Values
from jmp_kernels.bench.lists import lists_of, read_degrees
from jmp_kernels.bench.measure import DTYPES, Request
from jmp_kernels.bench.passes import prepare
from jmp_kernels.bench.registry import OPERATORS
from jmp_kernels.bench.timing import time_work

#: Entry of tuned.json → the operator and pass that shows its time.
SHOWN_BY: dict[str, tuple[str, Pass]] = {
    "segment_sum": ("segment_sum", "forward"),
    "gather_rows": ("gather_rows", "forward"),
    "segment_outer": ("segment_outer", "forward"),
    "expand": ("expand_feature", "forward"),
    "triplet": ("triplet", "forward"),
    "triplet_backward": ("triplet", "backward"),
    "pair": ("pair", "forward"),
    "pair_backward": ("pair", "backward"),
    "quadruplet_moments": ("quadruplet_moments", "forward"),
    "quadruplet_moments_backward": ("quadruplet_moments", "backward"),
    "quadruplet_gate_rows": ("quadruplet_moments", "backward"),
    "quadruplet_gate_edges": ("quadruplet_moments", "backward"),
    "quadruplet_read": ("quadruplet_read", "forward"),
    "quadruplet_read_backward": ("quadruplet_read", "backward"),
    "quadruplet_read_backward_middles": ("quadruplet_read", "backward"),
}

#: A change must save this share of the time to be kept: less is noise.
_WORTH = 0.03

Settings = dict[str, Any]
#: Median seconds with the given settings; infinite where they do not run or are wrong.
Cost = Callable[[Settings], float]


def tune(request: Request, path: Path | None, tell: Callable[[str], None]) -> None:
    """Search every kernel of the requested operators on the first batch and widths, and write what is better.

    Args:
        request: operators, first batch, first widths, dtypes, device.
        path: the file to write; None: the shipped one.
        tell: takes one line at a time.

    Raises:
        ValueError: no GPU.
    """
    if not request.triton:
        raise ValueError("--tune needs a GPU and triton")
    from jmp_kernels.triton_ops import launch

    path = path or launch.TUNED
    family = launch.family_of(request.device)
    table: dict[str, Any] = json.loads(launch.TUNED.read_text(encoding="utf-8"))
    lists = lists_of(request.batches[0], read_degrees(request.batches[0]), request.device)
    for dtype in request.dtypes:
        for kernel, (operator, which) in SHOWN_BY.items():
            if operator not in request.operators:
                continue
            values = Values(DTYPES[dtype], request.device)
            case = OPERATORS[operator](lists, SIZES[request.sizes[0]], values, True)
            number_format = launch.format_of(values.dtype, values.geometry)
            start = dict(launch.family_settings(kernel, family, number_format))
            best, before, after = descend(start, _cost(case, which, kernel, request))
            tell(f"{kernel}, {dtype}: {1e3 * before:.3f} ms → {1e3 * after:.3f} ms with {best}")
            changed = {name: value for name, value in best.items() if start[name] != value}
            if changed:
                table[kernel].setdefault(family, {}).setdefault(number_format, {}).update(changed)
                path.write_text(written(table), encoding="utf-8")


def descend(start: Settings, cost: Cost) -> tuple[Settings, float, float]:
    """Change one parameter at a time, keep what helps, until a round over all of them brings nothing.

    Returns:
        The settings, and the times before and after.
    """
    best, before = start, cost(start)
    least = before
    improved = True
    while improved:
        improved = False
        for name in start:
            for value in candidates(name, best[name]):
                tried = best | {name: value}
                seconds = cost(tried)
                if seconds < (1 - _WORTH) * least:
                    best, least, improved = tried, seconds, True
    return best, before, least


def candidates(name: str, value: Any) -> list[Any]:
    """Other values of a parameter: half and twice a block, other numbers of warps and stages."""
    if name.startswith("BLOCK_"):
        return [n for n in (value // 2, value * 2) if 16 <= n <= 256]
    if name == "num_warps":
        return [n for n in (1, 2, 4, 8) if n in (value // 2, value * 2)]
    return [n for n in (1, 2, 3) if n != value] if name == "num_stages" else []


def written(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Launch parameters as JSON, one line per kernel, family and number format."""
    kernels = []
    for kernel, families in table.items():
        blocks = []
        for family, formats in families.items():
            lines = (f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in formats.items())
            blocks.append(f"    {json.dumps(family)}: {{\n" + ",\n".join(lines) + "\n    }")
        kernels.append(f"  {json.dumps(kernel)}: {{\n" + ",\n".join(blocks) + "\n  }")
    return "{\n" + ",\n".join(kernels) + "\n}\n"


def _cost(case: Case, which: Pass, kernel: str, request: Request) -> Cost:
    expected = reference(case)
    form = next(form for form in case.forms if form.name == "triton")

    def seconds(settings: Settings) -> float:
        with _trying(kernel, settings):
            try:
                if check(case, form, expected).complaints:
                    return float("inf")
                return _time(case, form, which, request)
            except Exception:  # too many registers, too much shared memory: triton raises many things
                return float("inf")

    return seconds


def _time(case: Case, form: Form, which: Pass, request: Request) -> float:
    return time_work(*prepare(case, form).work(which), request.device, request.budget).p50


@contextmanager
def _trying(kernel: str, settings: Settings) -> Iterator[None]:
    """Inside, the kernel is launched with these parameters."""
    from jmp_kernels.triton_ops import launch

    shipped = launch.family_settings

    def instead(name: str, family: str, number_format: str) -> Mapping[str, Any]:
        return settings if name == kernel else shipped(name, family, number_format)

    with mock.patch.object(launch, "family_settings", instead):
        yield
