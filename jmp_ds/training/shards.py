"""This process's share of what training has made: master weights, moments and averages, known by parameter.

Every ZeRO stage cuts the parameters in its own way. Here each cut is described by the stretches of parameters it holds,
so that a process of another run, with another number of processes or another stage, finds its own stretches in the
files of all, reads just these, and no process ever holds everything. How each stage cuts is known to masters.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from jmp_ds.errors import UserError
from jmp_ds.training.ema import Ema
from jmp_ds.training.engine import Engine

WEIGHTS, AVERAGED = "weights", "averaged"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A stretch of one parameter in one of this process's tensors; positions count elements of flattened tensors.

    Attributes:
        name: of the parameter.
        tensor: number of the tensor, in the order of `Engine.masters`.
        offset: where the stretch begins in that tensor.
        start: where it begins in the parameter.
        length: how long it is.
    """

    name: str
    tensor: int
    offset: int
    start: int
    length: int


def pieces(engine: Engine) -> list[Piece]:
    """What this process's master tensors hold: at most one stretch of each parameter, padding left out."""
    return [
        Piece(name, number, offset, begin, end - begin)
        for number, own in enumerate(engine.layout())
        for name, begin, end, offset in own
    ]


class Shards:
    """Master weights, moments and averages of this process.

    Args:
        engine: what holds them.
        ema: averaged weights, where there are any.
    """

    def __init__(self, engine: Engine, ema: Ema | None) -> None:
        self._engine = engine
        self._ema = ema
        self._buffers: dict[str, list[Tensor]] = {}

    @property
    def size(self) -> int:
        """Bytes that this process writes, about."""
        written = sum(p.length for p in map(self._written, pieces(self._engine)))
        return 4 * written * (1 + len(_MOMENTS) + (self._ema is not None))

    def tensors(self) -> dict[str, list[Tensor]]:
        """By kind, one tensor per master; the very tensors that training works on."""
        masters = self._masters()
        found = {WEIGHTS: [m.detach() for m in masters]}
        states = [_primed(self._engine.optimizer, m) for m in masters]
        for kind in _MOMENTS:
            found[kind] = [state[kind] for state in states]
        if self._ema is not None:
            found[AVERAGED] = list(self._ema.shards)
        return found

    def host_copy(self) -> dict[str, list[Tensor]]:
        """The same values in the host's memory, in buffers that are used again by the next call."""
        for kind, tensors in self.tensors().items():
            buffers = self._buffers.setdefault(
                kind, [torch.empty_like(t, device="cpu", pin_memory=t.is_cuda) for t in tensors]
            )
            for buffer, tensor in zip(buffers, tensors, strict=True):
                buffer.copy_(tensor, non_blocking=True)
        if self._engine.processes.device.type == "cuda":
            torch.cuda.synchronize(self._engine.processes.device)
        return self._buffers

    def write(self, path: Path, tensors: Mapping[str, Sequence[Tensor]]) -> None:
        """Put this process's part of the tensors (see `tensors`) into a safetensors file: `KIND/PARAMETER`, flat.

        The file's metadata say where in the parameter each begins.
        """
        own = [self._written(p) for p in pieces(self._engine)]
        content = {
            f"{kind}/{p.name}": parts[p.tensor].reshape(-1)[p.offset : p.offset + p.length]
            for kind, parts in tensors.items()
            for p in own
            if p.length
        }
        starts = {p.name: p.start for p in own if p.length}
        save_file(content, path, metadata={"starts": json.dumps(starts)})

    def _written(self, piece: Piece) -> Piece:
        """What of a piece this process writes: everything, or its share of what all processes hold."""
        if self._engine.stage != 0:
            return piece
        rank, world = self._engine.processes.rank, self._engine.processes.world
        low, high = piece.length * rank // world, piece.length * (rank + 1) // world
        return Piece(piece.name, piece.tensor, low, low, high - low)

    def facts(self) -> dict[str, Any]:
        """What belongs to the tensors and is the same for all processes, as JSON values."""
        states = [_primed(self._engine.optimizer, m) for m in self._masters()]
        # Skipped steps do not count here.
        steps = max((int(state["step"]) for state in states), default=0)
        scaler = getattr(self._engine.zero, "loss_scaler", None)
        plain = {k: v for k, v in vars(scaler).items() if isinstance(v, bool | int | float)} if scaler else {}
        return {"steps": steps, "loss_scaler": plain}

    def read(self, files: Iterable[Path], facts: Mapping[str, Any]) -> None:
        """Take over what other processes, or this one, have written; collective.

        Args:
            files: of all processes that wrote; best the likeliest first, the rest is opened only where it is needed.
            facts: see there.

        Raises:
            UserError: the files hold another network, or no averaged weights where there should be some.
        """
        with torch.no_grad():
            _read(self.tensors(), pieces(self._engine), files)
        for master in self._masters():
            state = self._engine.optimizer.state[master]
            if isinstance(state["step"], Tensor):
                state["step"].fill_(facts["steps"])
            else:
                state["step"] = facts["steps"]
        scaler = getattr(self._engine.zero, "loss_scaler", None)
        if scaler and facts["loss_scaler"].keys() <= vars(scaler).keys():
            vars(scaler).update(facts["loss_scaler"])
        self._engine.spread_masters()

    def buffers(self) -> dict[str, Tensor]:
        """What of the model's state is no parameter; the same in all processes."""
        return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in self._own_buffers().items()}

    def set_buffers(self, values: Mapping[str, Tensor]) -> None:
        """Inverse of `buffers`."""
        with torch.no_grad():
            for name, buffer in self._own_buffers().items():
                buffer.copy_(values[name])

    def _own_buffers(self) -> dict[str, Tensor]:
        module = self._engine.module
        names = {name for name, _ in module.named_parameters()}
        return {name: value for name, value in module.state_dict().items() if name not in names}

    def _masters(self) -> list[Tensor]:
        """The tensors that the optimizer's states belong to."""
        if self._engine.stage == 3:  # whose optimizer sees one group at a time
            return list(self._engine.zero.fp32_partitioned_groups_flat)
        return [p for group in self._engine.optimizer.param_groups for p in group["params"]]


def _primed(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, Any]:
    """The optimizer's state of a tensor; before the first step as the optimizer is going to make it."""
    state = optimizer.state[master]
    if "exp_avg" not in state:
        torchs = isinstance(optimizer, torch.optim.AdamW)
        where = master.device if optimizer.defaults.get("fused") else "cpu"
        state["step"] = torch.zeros((), device=where) if torchs else 0
        for kind in _MOMENTS:
            state[kind] = torch.zeros_like(master, requires_grad=False)
    return state


def _read(targets: Mapping[str, Sequence[Tensor]], wanted: Sequence[Piece], files: Iterable[Path]) -> None:
    """Fill the pieces of the targets from files until they are full."""
    by_name, missing = {p.name: p for p in wanted}, {p.name: p.length for p in wanted}
    for path in files:
        with safe_open(path, framework="pt") as file:
            kinds = {key.split("/", 1)[0] for key in file.keys()}  # noqa: SIM118 - not a dict
            if kinds and (lacking := set(targets) - kinds):
                raise UserError(f"{path} holds no {', '.join(sorted(lacking))}; resume with the same train.ema")
            for name, start in json.loads(file.metadata()["starts"]).items():
                if name in by_name:
                    missing[name] -= _copy(file, by_name[name], start, targets)
        if not any(missing.values()):
            return
    names = [name for name, number in missing.items() if number]
    if names:
        raise UserError(
            f"the checkpoint's files lack {len(names)} parameters or parts of them ({', '.join(names[:5])}): "
            "they belong to another network; name a new run.dir"
        )


def _copy(file: Any, piece: Piece, start: int, targets: Mapping[str, Sequence[Tensor]]) -> int:
    """Copy what a file's stretch of a parameter, beginning at `start`, and a piece have in common; how much that is."""
    length = file.get_slice(f"{WEIGHTS}/{piece.name}").get_shape()[0]
    low, high = max(start, piece.start), min(start + length, piece.start + piece.length)
    if low >= high:
        return 0
    for kind, tensors in targets.items():
        values = file.get_slice(f"{kind}/{piece.name}")[low - start : high - start]
        into = tensors[piece.tensor].view(-1)
        into[piece.offset + low - piece.start : piece.offset + high - piece.start].copy_(values)
    return high - low
