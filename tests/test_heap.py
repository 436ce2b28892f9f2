from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: Faults while the same 6 MB are allocated, written and freed many times, before and after the setting.
MEASURE = """
import resource, torch
from jmp_ds.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(1_500_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
first = faults()
assert keep_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's mallopt")
def test_freed_memory_is_not_faulted_in_again() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120)
    before, after = (int(n) for n in run.stdout.split())
    if before < 1_000:
        pytest.skip("memory is mapped in huge pages here, so there are few faults to save")
    assert after < before / 20
