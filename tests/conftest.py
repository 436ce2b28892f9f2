"""What all tests share: where real data lies, the golden numbers, and quiet threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

# Triton decides when it is imported whether kernels run in its interpreter, and some test imports it first.
# Where a GPU is found and TRITON_INTERPRET is not set, kernels are compiled and the same tests run on the GPU.
if "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

GOLDEN = Path(__file__).parent / "golden"


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
