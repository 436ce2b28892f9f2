"""Triton kernels are tested in triton's interpreter, on the CPU, or where a GPU is found on that (tests/conftest.py).

The fixture `device` says where tensors belong.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device on which the Triton kernels run in this process."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if triton.knobs.runtime.interpret:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.fail("something imported triton before tests/conftest.py could choose its interpreter")
