"""Triton kernels are tested in triton's interpreter, on the CPU.

It must be chosen before triton is imported, hence here. Where a GPU is found and TRITON_INTERPRET is not set, the
kernels are compiled and the same tests run on the GPU: the fixture `device` says where tensors belong.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

if "triton" not in sys.modules and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device on which the Triton kernels run in this process."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if triton.knobs.runtime.interpret:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.fail("something imported triton before tests/kernels/conftest.py could choose its interpreter")
