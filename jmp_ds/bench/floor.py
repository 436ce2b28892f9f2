"""The floor: the dense products of the published layers, and nothing else, on preallocated operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jmp_ds.bench.timing import Stopwatch
from jmp_ds.models.counts import DenseLayer, Forces, Passes


@dataclass(frozen=True)
class _Operands:
    """Buffers of one shape: x and dx [R, in], y and dy [R, out], W and dW [out, in]."""

    x: Tensor
    y: Tensor
    weight: Tensor
    x_out: Tensor
    y_out: Tensor
    weight_out: Tensor


class Floor:
    """The products of one training step, ready to run.

    The forward products of all layers in the order of computation, then those of the backward pass in reverse order.
    Layers of one shape share their operands, which are therefore often still in a cache: the floor is optimistic. The
    products are `torch.mm` as PyTorch does it by default; there is no activation, no addition, no allocation.
    """

    def __init__(
        self,
        layers: Sequence[DenseLayer],
        forces: Forces,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Allocate the operands of every shape once.

        Args:
            layers: the published layers; those without rows are left out.
            forces: decides how often each product occurs (`DenseLayer.passes`).
            device: where to run.
            dtype: of all operands.
        """
        operands: dict[tuple[int, int, int], _Operands] = {}
        self._work: list[tuple[_Operands, Passes]] = []
        for layer in layers:
            if layer.rows == 0:
                continue
            shape = (layer.rows, layer.inputs, layer.outputs)
            if shape not in operands:
                operands[shape] = _operands(*shape, device, dtype)
            self._work.append((operands[shape], layer.passes(forces)))

    def run(self) -> None:
        """All products once; does not wait for the device."""
        with torch.no_grad():
            for o, passes in self._work:
                _times(passes.forward, o.x, o.weight.t(), o.y_out)
            for o, passes in reversed(self._work):
                _times(passes.data, o.y, o.weight, o.x_out)
                _times(passes.weight, o.y.t(), o.x, o.weight_out)


def floor_bytes(layers: Sequence[DenseLayer], itemsize: int) -> int:
    """Memory that the operands take."""
    shapes = {(layer.rows, layer.inputs, layer.outputs) for layer in layers}
    return 2 * itemsize * sum(rows * (inputs + outputs) + inputs * outputs for rows, inputs, outputs in shapes)


def _operands(rows: int, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype) -> _Operands:
    shapes = ((rows, inputs), (rows, outputs), (outputs, inputs))
    x, y, weight = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    return _Operands(x, y, weight, torch.empty_like(x), torch.empty_like(y), torch.empty_like(weight))


def _times(count: int, left: Tensor, right: Tensor, out: Tensor) -> None:
    for _ in range(count):
        torch.mm(left, right, out=out)


def matmul_peak(device: torch.device, dtype: torch.dtype, stopwatch: Stopwatch) -> float:
    """Operations per second of one large product, the best of several: what this device does at its best."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = min(stopwatch.seconds(lambda: torch.mm(a, b, out=out)) for _ in range(6))
    return 2 * size**3 / best
