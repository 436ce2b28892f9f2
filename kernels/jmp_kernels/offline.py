"""Compiles every Triton kernel for GPUs that need not be there, and holds it to a budget of registers and memory.

    python -m jmp_kernels.offline [--arch sm_90 …] [--only NAME …] [--budget FILE] [--update]

Triton translates each kernel to machine code with the assembler that it ships (`ptxas`), and the disassembler beside it
(`cuobjdump`) says what the code uses: registers per thread, spills (instructions that move registers to and from local
memory, which costs far more than it looks), static plus dynamic shared memory. A block size that spills is thus found
without a GPU. What each kernel may use stands in `budget.json`, per architecture; more than that ends with exit code 1
and a table, as does a spill in a forward kernel on sm_90, whatever the budget says. After a wanted change, `--update`
writes what is used now as the new budget of the kernels and architectures that were compiled.

Kernels announce themselves: every module of `jmp_kernels.triton_ops` may have a list `COMPILED` of
`launch.Compiled`. Must not run under TRITON_INTERPRET=1, where nothing is compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jmp_kernels import triton_ops

if TYPE_CHECKING:
    from jmp_kernels.triton_ops.launch import Compiled

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
BUDGET = Path(__file__).with_name("budget.json")

#: Shared memory a block can have, in bytes (CUDA programming guide, technical specifications per compute capability).
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}

#: Architecture on which forward kernels must not spill.
STRICT = "sm_90"


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes.

    Attributes:
        registers: per thread, rounded up to the eight in which they are handed out.
        spills: instructions that store to or load from local memory.
        shared: bytes of shared memory per block.
    """

    registers: int
    spills: int
    shared: int


def registered(only: Sequence[str] = ()) -> list[Compiled]:
    """All kernel forms to compile, by module; with `only`, those whose name begins with one of the given.

    Raises:
        ValueError: two forms have the same name, or nothing matches `only`.
    """
    found: list[Compiled] = []
    for module in pkgutil.iter_modules(triton_ops.__path__, triton_ops.__name__ + "."):
        found += getattr(importlib.import_module(module.name), "COMPILED", [])
    names = [form.name for form in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"kernel forms of the same name: {', '.join(twice)}")
    chosen = [form for form in found if not only or form.name.startswith(tuple(only))]
    if not chosen:
        raise ValueError(f"no kernel form begins with {' or '.join(only)}; there are {', '.join(names)}")
    return chosen


def compiled_usage(form: Compiled, architecture: str) -> Usage:
    """Compiles one form for one architecture and reads what it uses.

    Raises:
        ValueError: an argument of the kernel has neither a type nor a value.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from jmp_kernels.triton_ops.launch import family_settings

    tuned = family_settings(form.tuned, architecture, form.number_format)
    arguments = form.kernel.arg_names
    constants = dict(form.constants) | {name: value for name, value in tuned.items() if name in arguments}
    options = {name: value for name, value in tuned.items() if name not in arguments}
    missing = [name for name in arguments if name not in constants and name not in form.arguments]
    if missing:
        raise ValueError(f"{form.name}: no type and no value for {', '.join(missing)}")
    signature = {name: "constexpr" if name in constants else form.arguments[name] for name in arguments}
    # what PyTorch allocates is aligned, and a launch tells the compiler so
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(arguments) if signature[name].startswith("*")
    }
    source = ASTSource(form.kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    try:
        kernel = triton.compile(source, target=target, options=options)
    except Exception as problem:
        problem.add_note(f"while {form.name} was compiled for {architecture}")
        raise
    return disassembled(kernel.asm["cubin"], kernel.metadata.shared)


def disassembled(binary: bytes, dynamic_shared: int) -> Usage:
    """Reads registers and spills out of a CUDA binary; the dynamic shared memory is the launch's and is passed."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        texts = [
            subprocess.run([tool, flag, file], check=True, capture_output=True, text=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        ]
    registers = re.search(r"REG:(\d+)", texts[0])
    if registers is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {texts[0][:200]}")
    spills = len(re.findall(r"\b(?:STL|LDL)\b", texts[1]))
    return Usage(registers=-(-int(registers[1]) // 8) * 8, spills=spills, shared=dynamic_shared)


def complaints(form: Compiled, architecture: str, used: Usage, allowed: Mapping[str, int] | None) -> list[str]:
    """What is wrong with a kernel's use of the machine; `allowed` is its entry in the budget, None where it has none."""
    wrong = []
    if allowed is None:
        wrong.append("has no entry in the budget")
    else:
        wrong += [f"{name} {n} > {allowed[name]}" for name, n in asdict(used).items() if n > allowed[name]]
    if form.forward and architecture == STRICT and used.spills:
        wrong.append(f"a forward kernel that spills on {STRICT}")
    if used.shared > SHARED_LIMIT[architecture]:
        wrong.append(f"more shared memory than the {SHARED_LIMIT[architecture]} bytes of {architecture}")
    return wrong


def read_budget(path: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Budget by kernel form and architecture."""
    budget: dict[str, dict[str, dict[str, int]]] = json.loads(path.read_text()) if path.exists() else {}
    return budget


def written(budget: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Budget as JSON, one line per kernel form and architecture."""
    forms = []
    for name in sorted(budget):
        rows = (f"    {json.dumps(arch)}: {json.dumps(budget[name][arch])}" for arch in sorted(budget[name]))
        forms.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(rows) + "\n  }")
    return "{\n" + ",\n".join(forms) + "\n}\n"


def measure(
    forms: Sequence[Compiled],
    architectures: Sequence[str],
    budget: Mapping[str, Mapping[str, Mapping[str, int]]] | None,
) -> tuple[dict[tuple[str, str], Usage], bool]:
    """Compiles all forms and writes the table, line by line.

    Args:
        forms, architectures: what to compile, and for what.
        budget: what is allowed; None: whatever they use, save what breaks the rules.

    Returns:
        The use of every form (name, architecture), and whether one exceeds what is allowed.
    """
    layout = f"{{:{max(len(form.name) for form in forms)}}}  {{:6}}  {{:>9}}  {{:>6}}  {{:>6}}  {{}}\n"
    sys.stdout.write(layout.format("kernel", "arch", "registers", "spills", "shared", ""))
    measured: dict[tuple[str, str], Usage] = {}
    exceeded = False
    for form in forms:
        for architecture in architectures:
            used = measured[form.name, architecture] = compiled_usage(form, architecture)
            allowed = asdict(used) if budget is None else budget.get(form.name, {}).get(architecture)
            wrong = complaints(form, architecture, used, allowed)
            exceeded |= bool(wrong)
            sys.stdout.write(layout.format(form.name, architecture, *asdict(used).values(), "; ".join(wrong) or "ok"))
            sys.stdout.flush()
    return measured, exceeded


def update(path: Path, measured: Mapping[tuple[str, str], Usage]) -> None:
    """Writes what was measured into the budget file, and takes out forms that no longer exist."""
    known = {form.name for form in registered()}
    budget = {name: entry for name, entry in read_budget(path).items() if name in known}
    for (name, architecture), used in measured.items():
        budget.setdefault(name, {})[architecture] = asdict(used)
    path.write_text(written(budget))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 within the budget, 1 beyond it, 2 where nothing could be compiled."""
    parser = argparse.ArgumentParser(prog="python -m jmp_kernels.offline", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, help="GPU architectures")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="forms whose name begins so")
    parser.add_argument("--budget", type=Path, default=BUDGET, metavar="FILE", help="instead of the one shipped")
    parser.add_argument("--update", action="store_true", help="write what is used as the new budget")
    given = parser.parse_args(arguments)
    try:
        from jmp_kernels.triton_ops.launch import INTERPRET

        if INTERPRET.value:
            raise ValueError("TRITON_INTERPRET is set: the interpreter compiles nothing")
        forms = registered(given.only)
    except (ImportError, ValueError) as problem:
        sys.stderr.write(f"offline compilation: {problem}\n")
        return 2
    measured, exceeded = measure(forms, given.arch, None if given.update else read_budget(given.budget))
    if given.update:
        update(given.budget, measured)
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
