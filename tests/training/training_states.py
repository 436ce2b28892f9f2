"""Run in processes by test_held_states.py: a plain model under the project's engine; all its tensors counted."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jmp_ds.planning.collectives import step_collectives
from jmp_ds.planning.states import Stage, model_states
from jmp_ds.training.ds_config import load_ds_config
from jmp_ds.training.ema import Ema
from jmp_ds.training.engine import Engine, EngineOptions, start_processes, stop_processes
from jmp_ds.training.optimizer import OptimizerOptions, parameter_groups

BUCKET = 50_000
#: Activations, batch and DeepSpeed's small change, in bytes per parameter.
SMALL = 0.15


class Tower(nn.Module):
    """Half a million parameters, next to no activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(32))

    def forward(self, x: Tensor) -> dict[str, dict[str, Tensor]]:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return {"task": {"energy": x.sum(1)}}


def held() -> int:
    """Bytes of all tensors of this process, each storage once."""
    sizes = {}
    for value in gc.get_objects():
        if type(value) in (Tensor, nn.Parameter):
            for x in (value, value.grad if value.is_leaf else None):
                if x is not None:
                    sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    return sum(sizes.values())


@contextmanager
def counted_messages() -> Iterator[dict[str, int]]:
    """Bytes of whole tensors given to the two collectives of a step."""
    import deepspeed.comm as comm

    seen = {"all_reduce": 0, "all_gather": 0}
    reduce, gather = comm.all_reduce, comm.all_gather_into_tensor

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen["all_reduce"] += tensor.nbytes
        return reduce(tensor, *args, **kwargs)

    def all_gather(out: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen["all_gather"] += out.nbytes
        return gather(out, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "all_reduce", all_reduce)
        for module in (comm, __import__("deepspeed.runtime.utils", fromlist=["dist"]).dist):
            patch.setattr(module, "all_gather_into_tensor", all_gather)
        yield seen


def count() -> None:
    """Stages 0 to 2 in float32, and stage 1 under autocast."""
    processes = start_processes("cpu")
    wrong: list[str] = []
    for stage, autocast in ((0, False), (1, False), (1, True), (2, False)):
        wrong += _count(processes, stage, autocast)  # type: ignore[arg-type]
        gc.collect()
    # not before the end: a process that stops in the middle would leave the other one waiting
    stop_processes()
    assert not wrong, "\n".join(wrong)


def _count(processes: Any, stage: Stage, autocast: bool) -> list[str]:
    """What is not as predicted, in words."""
    gc.collect()
    before = held()
    model = Tower()
    parameters = sum(p.numel() for p in model.parameters())
    config = load_ds_config(_settings(stage, autocast))
    options = EngineOptions(ds_config=config)
    engine = Engine(model, parameter_groups(model.named_parameters()), OptimizerOptions(), options, processes)
    average = Ema(engine, 0.99)
    batch = torch.randn(1, 128)
    engine.step([batch], {"energy": 1.0}, _loss)
    average.update()
    states = model_states(parameters, stage, processes.world, "bf16" if autocast else "float32")
    seen: list[tuple[str, float, float]] = [("at rest", held() - before, states.resident)]

    most = [0]
    for layer in model.layers[::8]:
        layer.weight.register_post_accumulate_grad_hook(lambda _: most.__setitem__(0, max(most[0], held())))
    with counted_messages() as messages:
        engine.accumulate([batch], {"energy": 1.0}, _loss)
        most[0] = max(most[0], held())
        # buckets and flat copies come and go; theirs is that of the settings where there is ZeRO
        found, least = most[0] - before, states.resident + states.gradients
        bound = least + (8 * BUCKET if stage else states.buckets)
        seen.append(("in backward", found, min(max(found, least), bound)))
        engine.apply()
    if processes.world > 1:
        expected = {m.kind: m.size for m in step_collectives(parameters, stage, "float32")}
        seen += [(kind, size, expected.get(kind, 0)) for kind, size in messages.items()]
    return [
        f"stage {stage}, {what}: {found / parameters:.2f} bytes per parameter, predicted {predicted / parameters:.2f}"
        for what, found, predicted in seen
        if abs(found - predicted) > SMALL * parameters
    ]


def _settings(stage: Stage, autocast: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        zero |= {"contiguous_gradients": True, "reduce_scatter": True, "overlap_comm": False}
        zero |= {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    cast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    half = {"torch_autocast": cast, "communication_data_type": "fp32"} if autocast else {}
    return {"zero_optimization": zero, **half}


def _loss(outputs: dict[str, dict[str, Tensor]], batch: Tensor) -> dict[str, Tensor]:
    return {"energy": outputs["task"]["energy"].sum()}
