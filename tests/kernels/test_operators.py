"""The one choice of backend: what is taken where, what is said of it, and what is refused."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import subprocess
import sys

import pytest
import torch
from jmp_kernels import DenseOnce, DenseTwice, TorchMessages, messages_for
from jmp_kernels.operators import Messages


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find(name, *rest)
    )


def told(caplog: pytest.LogCaptureFixture) -> str:
    """The one line in the log."""
    (record,) = [r for r in caplog.records if r.name.startswith("jmp_kernels")]
    assert record.levelno == logging.INFO
    return record.getMessage()


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_a_cpu_takes_pytorch(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        messages = messages_for(name, "cpu")  # type: ignore[arg-type]
    assert isinstance(messages, TorchMessages)
    assert told(caplog) == "message passing: PyTorch on cpu"


def test_a_gpu_takes_triton_where_it_is_installed(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    with caplog.at_level(logging.INFO):
        messages = messages_for("auto", torch.device("cuda", 1))
    assert messages.name == "triton"
    assert told(caplog).startswith("message passing: Triton kernels on cuda")


@pytest.mark.usefixtures("without_triton")
def test_a_gpu_takes_pytorch_where_triton_is_not_installed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        messages = messages_for("auto", "cuda")
    assert messages.name == "torch"
    assert told(caplog) == "message passing: PyTorch on cuda"


@pytest.mark.usefixtures("without_triton")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_triton_that_is_not_installed_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="need the package triton, which is not installed"):
        messages_for("triton", device)


def test_triton_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tl = pytest.importorskip("triton.language", reason="triton is not installed")
    from jmp_kernels.triton_ops import launch

    monkeypatch.setattr(launch, "INTERPRET", tl.constexpr(False))
    with pytest.raises(ValueError, match="run on GPUs, not on 'cpu'"):
        messages_for("triton", "cpu")


def test_triton_says_where_it_runs(device: torch.device, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert messages_for("triton", device).name == "triton"
    suffix = ", interpreted" if device.type == "cpu" else ""
    assert told(caplog) == f"message passing: Triton kernels on {device.type}{suffix}"


def signatures(kind: type) -> dict[str, list[str]]:
    """Public methods and the names of their arguments."""
    return {
        name: [argument for argument in inspect.signature(method).parameters if argument != "self"]
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_backends_offer_what_the_network_asks_for() -> None:
    asked = signatures(Messages)
    assert {"triplet", "quadruplet", "pair", "segment_sum"} <= set(asked)
    offered = signatures(TorchMessages)
    assert {name: offered.get(name) for name in asked} == asked


def test_triton_offers_the_same(device: torch.device) -> None:
    offered, asked = signatures(type(messages_for("triton", device))), signatures(Messages)
    assert {name: offered.get(name) for name in asked} == asked


def test_dense_layers_come_in_two_forms_of_one_shape() -> None:
    assert signatures(DenseOnce) == signatures(DenseTwice)


def test_pytorch_imports_no_kernel() -> None:
    """Triton costs seconds to import, and machines without it must do without."""
    program = (
        "import sys; from jmp_kernels import messages_for; messages_for('auto', 'cpu');"
        "assert not [m for m in sys.modules if m == 'triton' or m.startswith('jmp_kernels.triton_ops')]"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
