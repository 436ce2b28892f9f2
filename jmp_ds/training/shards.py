"""This process's share of what training has made: master weights, moments and averages, known by parameter.

Every ZeRO stage cuts the parameters in its own way. Here each cut is described by the stretches of parameters it holds,
so that a process of another run, with another number of processes or another stage, finds its own stretches in the
files of all, reads just these, and no process ever holds everything. How each stage cuts is known to masters.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from jmp_ds.errors import UserError
from jmp_ds.training.ema import Ema
from jmp_ds.training.engine import Engine
from jmp_ds.training.masters import Layout, Piece

WEIGHTS, AVERAGED = "weights", "averaged"
_MOMENTS = ("exp_avg", "exp_avg_sq")


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
        written = sum(piece.length for own in self._written() for piece in own)
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
        written = self._written()
        content = {
            f"{kind}/{piece.name}": piece.of(part)
            for kind, parts in tensors.items()
            for part, own in zip(parts, written, strict=True)
            for piece in own
        }
        starts = {piece.name: piece.begin for own in written for piece in own}
        save_file(content, path, metadata={"starts": json.dumps(starts)})

    def _written(self) -> Layout:
        """What of its masters this process writes: everything, or its share of what all processes hold."""
        layout = self._engine.layout()
        if self._engine.stage != 0:
            return layout
        rank, world = self._engine.processes.rank, self._engine.processes.world
        shares = [[_share(piece, rank, world) for piece in own] for own in layout]
        return [[piece for piece in own if piece.length] for own in shares]

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
            _read(self.tensors(), self._engine.layout(), files)
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
        return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in self._engine.buffers().items()}

    def set_buffers(self, values: Mapping[str, Tensor]) -> None:
        """Inverse of `buffers`."""
        with torch.no_grad():
            for name, buffer in self._engine.buffers().items():
                buffer.copy_(values[name])

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


def _share(piece: Piece, rank: int, world: int) -> Piece:
    """A process's part of a piece that all processes hold; empty where there are fewer numbers than processes."""
    low, high = piece.length * rank // world, piece.length * (rank + 1) // world
    return Piece(piece.name, piece.begin + low, piece.begin + high, piece.offset + low)


def _read(targets: Mapping[str, Sequence[Tensor]], layout: Layout, files: Iterable[Path]) -> None:
    """Fill the targets, laid out like the masters, from files until they are full."""
    places = {piece.name: (number, piece) for number, own in enumerate(layout) for piece in own}
    missing = {name: piece.length for name, (_, piece) in places.items()}
    for path in files:
        with safe_open(path, framework="pt") as file:
            kinds = {key.split("/", 1)[0] for key in file.keys()}  # noqa: SIM118 - not a dict
            if kinds and (lacking := set(targets) - kinds):
                raise UserError(f"{path} holds no {', '.join(sorted(lacking))}; resume with the same train.ema")
            for name, start in json.loads(file.metadata()["starts"]).items():
                if name in places:
                    number, piece = places[name]
                    into = {kind: piece.of(tensors[number]) for kind, tensors in targets.items()}
                    missing[name] -= _copy(file, piece, start, into)
        if not any(missing.values()):
            return
    names = [name for name, number in missing.items() if number]
    if names:
        raise UserError(
            f"the checkpoint's files lack {len(names)} parameters or parts of them ({', '.join(names[:5])}): "
            "they belong to another network; name a new run.dir"
        )


def _copy(file: Any, piece: Piece, start: int, targets: Mapping[str, Tensor]) -> int:
    """Copy what a file's stretch of a parameter, beginning at `start`, and a piece have in common; how much that is.

    The targets are the piece's numbers, by kind.
    """
    length = file.get_slice(f"{WEIGHTS}/{piece.name}").get_shape()[0]
    low, high = max(start, piece.begin), min(start + length, piece.end)
    if low >= high:
        return 0
    for kind, target in targets.items():
        values = file.get_slice(f"{kind}/{piece.name}")[low - start : high - start]
        target[low - piece.begin : high - piece.begin].copy_(values)
    return high - low
