"""What all tests share: where real data lies, the golden numbers, and quiet threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from leftovers import files_left, mark_children, processes_left

torch.set_num_threads(1)

# Triton decides when it is imported whether kernels run in its interpreter, and some test imports it first.
# Where a GPU is found and TRITON_INTERPRET is not set, kernels are compiled and the same tests run on the GPU.
if "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

mark_children()

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After all tests of this process: no process that one of them started, no file in shared memory without an owner."""
    before = files_left()
    yield
    end = time.monotonic() + 15
    while (left := [*processes_left(), *(files_left() - before)]) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left, f"the tests left behind: {left}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the original data files; tests that need it are skipped where it is not set."""
    where = os.environ.get("JMP_DS_TEST_DATA")
    if not where:
        pytest.skip("JMP_DS_TEST_DATA is not set: the folder with the original data files is missing")
    path = Path(where)
    if not path.is_dir():
        pytest.fail(f"JMP_DS_TEST_DATA={where} is not a folder")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the recorded reference numbers."""
    return GOLDEN
