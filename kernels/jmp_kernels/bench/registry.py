"""All operators by name."""

from __future__ import annotations

from collections.abc import Callable

from jmp_kernels.bench import family_cases, quadruplet_cases, triplet_cases
from jmp_kernels.bench.forms import Case, Sizes, Values
from jmp_kernels.bench.lists import Lists

#: Makes the case of an operator: lists, widths, values, and whether the Triton kernel is among the forms.
MakeCase = Callable[[Lists, Sizes, Values, bool], Case]

OPERATORS: dict[str, MakeCase] = {**family_cases.CASES, **triplet_cases.CASES, **quadruplet_cases.CASES}
