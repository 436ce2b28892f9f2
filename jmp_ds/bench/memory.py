"""Memory of a training step: what the backward pass keeps, the peak, and an estimate before anything runs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from jmp_ds.bench.floor import floor_bytes
from jmp_ds.errors import UserError
from jmp_ds.models.config import BackboneConfig
from jmp_ds.models.counts import DenseLayer, Forces
from jmp_ds.planning import available

#: Bytes per parameter: the float32 value, its gradient and AdamW's two moments.
_TRAINED = 16


@dataclass(frozen=True)
class Saved:
    """What autograd keeps between forward and backward, in bytes of distinct storages.

    Attributes:
        activations: everything but parameters, buffers, the batch, and copies of parameters.
        weight_copies: tensors of a parameter's shape that are not the parameter: casts and scaled weights.
    """

    activations: int
    weight_copies: int


def saved_by(work: Callable[[], Tensor], model: nn.Module, batch: Any) -> Saved:
    """What the graph of a loss keeps.

    With recomputation it is what the outer graph keeps: inputs of blocks. One block's activations come on top while that
    block is computed again.

    Args:
        work: computes the loss, with gradients.
        model: its parameters and buffers do not count.
        batch: its tensors do not count.
    """
    ours = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers(), *tensors_of(batch)]}
    shapes = {tuple(sorted(p.shape)) for p in model.parameters() if p.dim() > 1}
    kept: dict[int, tuple[int, bool]] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes(), tuple(sorted(x.shape)) in shapes
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss = work()
    del loss
    copies = sum(size for size, copy in kept.values() if copy)
    return Saved(sum(size for size, _ in kept.values()) - copies, copies)


def tensors_of(value: Any) -> Iterable[Tensor]:
    """All tensors in a nest of dataclasses, dictionaries and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)


def peak_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes above the level before that the work needed at most.

    CUDA: of the allocator. CPU: of resident memory (Linux only; None elsewhere), to some 10 MiB. The work runs once before,
    so that what is made only once (the gradients among it) does not count.
    """
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _give_back_free_memory()
    if not _reset_resident_peak():
        return None
    level = _resident("VmRSS")
    work()
    return _resident("VmHWM") - level


def estimate(config: BackboneConfig, layers: Sequence[DenseLayer], forces: Forces, itemsize: int) -> int:
    """Bytes a training step and its floor will need, roughly: parameters, inputs and outputs of the dense layers, operands.

    For slab98 and aspirin4 of JMP-S in float32 this is some 1.3 times what was measured.

    Args:
        config: of the network; with recomputation every block's inputs and one block's activations are there at a time.
        layers: the published layers with their rows.
        forces: gradient forces keep everything twice.
        itemsize: bytes per number of the features.
    """
    parameters = sum(layer.inputs * layer.outputs for layer in layers) + config.num_elements * config.emb_size_atom
    kept = itemsize * sum(layer.rows * (layer.inputs + layer.outputs) for layer in layers)
    if config.recompute:
        kept = 2 * kept // (config.num_blocks + 1)
    if forces == "gradient":
        kept *= 2
    return parameters * _TRAINED + kept + floor_bytes(layers, itemsize)


def refuse_beyond_memory(needed: int, device: torch.device) -> None:
    """Raise before an allocation would fail or, on a CPU, make the machine swap.

    Raises:
        UserError: says how much is needed and how much there is.
    """
    free = available(device)
    if free is not None and needed > free:
        raise UserError(
            f"this step needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {device}; "
            "take a smaller batch or model, or recompute activations"
        )


def _resident(key: str) -> int:
    """A line `key: number kB` of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def _give_back_free_memory() -> None:
    """Let the C library return what it keeps for later, which would hide new needs; where it has no such call, nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_resident_peak() -> bool:
    """Make VmHWM start anew; whether this system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
