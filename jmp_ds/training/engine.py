"""Drives DeepSpeed: starts the processes, wraps a model, makes steps from windows of batches.

With `masters.py` (where the weights are) and `units.py` (ZeRO 3) it is all that knows DeepSpeed. What it relies on, and
what it avoids, is measured: specification deepspeed.md, sections 0, 1, 2, 7 and 12.
"""

from __future__ import annotations

import logging
import os
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jmp_ds.errors import UserError
from jmp_ds.heap import keep_freed_memory
from jmp_ds.training.ds_config import DeepSpeedConfig, check_device
from jmp_ds.training.masters import Layout, masters_of, whole
from jmp_ds.training.optimizer import (
    OptimizerOptions,
    ParameterGroup,
    adamw,
    clip_by_value_before_step,
    group_settings,
)
from jmp_ds.training.order import OrderGuard
from jmp_ds.training.place import Place, recognise
from jmp_ds.training.processes import Processes, kind_of_device
from jmp_ds.training.sharing import refuse_shared_gpus, this_tenant
from jmp_ds.training.sharing import threads as share_of_threads
from jmp_ds.training.units import no_unit_left_open, only_units_have_hooks, register_units

Outputs = Mapping[str, Mapping[str, Tensor]]
LossSums = Callable[[Any, Any], Mapping[str, Tensor]]


def start_processes(device: str = "auto", threads: int = 0) -> Processes:
    """Join the other processes of the run, or be its only one.

    Works under every launcher that place.py knows, and without one. On a CPU, DeepSpeed's shared-memory operator is
    switched off: building it needs a compiler and a minute, and it leaves files in /dev/shm.

    Args:
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads of this process; 0 shares the cores among the processes of the machine.

    Raises:
        UserError: deepspeed is not installed, there is no such device, the launcher's variables are incomplete, or
            processes share a GPU.
    """
    place = recognise(os.environ)
    os.environ.update(place.variables())
    kind = kind_of_device(device)
    if kind == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read by DeepSpeed on import; otherwise it warns that it found no GPU
    deepspeed = _deepspeed()
    where = torch.device("cuda", _gpu(place)) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(where)
        os.environ["LOCAL_RANK"] = str(where.index)  # the number of the GPU, for DeepSpeed
    else:
        keep_freed_memory()
        _use_cpu_accelerator()
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if kind == "cuda" else "gloo"
    if not place.launched and not dist.is_initialized():
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even where there is no launcher
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    group = dist.new_group(backend="gloo") if kind == "cuda" and place.world > 1 else None
    processes = Processes(place, where, group=group)
    tenants = processes.gather(this_tenant(where))
    refuse_shared_gpus(tenants)
    machines = len({tenant.machine for tenant in tenants})
    processes = replace(processes, threads=share_of_threads(threads, place.rank, tenants), machines=machines)
    torch.set_num_threads(processes.threads)
    return processes


def _gpu(place: Place) -> int:
    """Number of this process's GPU among those that it sees: srun and mpirun may show each process its own one only."""
    count = torch.cuda.device_count()
    if count == 1 and place.launcher in ("srun", "mpirun", "environment"):
        return 0
    if place.local_rank >= count:
        raise UserError(
            f"run.device: process {place.local_rank} of this machine has no GPU of its own (there are {count}); "
            "start fewer processes, or use device: cpu"
        )
    return place.local_rank


def stop_processes() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _deepspeed() -> Any:
    """The package, quiet."""
    # Renamed collectives that DeepSpeed still calls by their old names: nothing that the user could do.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(f"training needs deepspeed ({error}); install it with: pip install 'jmp-ds[train]'") from None
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _use_cpu_accelerator() -> None:
    """Make DeepSpeed compute on the CPU even where there is a GPU."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.accelerator.real_accelerator import set_accelerator

    if get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())  # it was imported before


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How steps are made.

    Attributes:
        ds_config: DeepSpeed's part.
        accumulation: micro-batches per optimizer step and process.
        clip_norm: limit of the global gradient norm, or None.
        clip_value: limit of every entry of the reduced gradient, or None; not together with `clip_norm`.
    """

    ds_config: DeepSpeedConfig
    accumulation: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_value is not None:
            raise UserError("train: clip_norm and clip_value are both set; give one of them")
        if self.accumulation < 1:
            raise UserError(f"sampling.accumulation must be at least 1, got {self.accumulation}")


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step tells.

    Attributes:
        sums: this process's sums of the loss per group over the window, before division by counts.
        losses: the loss of every micro-batch of this process, as it was differentiated.
        grad_norm: global norm before clipping; infinite where not finite.
        skipped: whether all processes left the weights as they were because a gradient was not finite.
    """

    sums: dict[str, Tensor]
    losses: list[Tensor]
    grad_norm: float
    skipped: bool


class Engine:
    """A model on all processes, with its optimizer.

    One step consumes a window: `accumulation` micro-batches on each process, which may differ in size, lack a task, or
    be empty. Gradients are those of sum over groups of (sum over all processes and micro-batches) / (count likewise).
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParameterGroup],
        optimizer: OptimizerOptions,
        options: EngineOptions,
        processes: Processes,
    ) -> None:
        self.options = options
        self.processes = processes
        config = options.ds_config
        check_device(config, processes.device)
        model.to(processes.device)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        if frozen and self.stage == 3:
            raise UserError(f"{config.source}: ZeRO stage 3 does not go with frozen weights; use stage 0, 1 or 2")
        self._shapes = {name: parameter.shape for name, parameter in trained.items()}
        #: Frozen weights that DeepSpeed will round.
        self._frozen = _copies(frozen) if config.narrow else {}
        exact = _copies(trained) if config.narrow else {}
        self._order = OrderGuard(model, processes)
        self._optimizer = _optimizer(groups, optimizer, config, processes.device)
        if options.clip_value is not None:
            clip_by_value_before_step(self._optimizer, options.clip_value)
        settings = config.completed(
            accumulation=options.accumulation, world=processes.world, clip_norm=options.clip_norm
        )
        parts = register_units(model) if self.stage == 3 else []
        self._engine, *_ = _deepspeed().initialize(
            model=model, optimizer=self._optimizer, config=settings, dist_init_required=False
        )
        if self.stage == 3:
            only_units_have_hooks(model, parts, self._engine.optimizer.parameter_offload)
        self._masters = masters_of(self._engine, self.stage, narrow=config.narrow is not None)
        if exact:  # DeepSpeed has made the masters from rounded weights
            self._masters.take(exact, processes.rank)
        self._step_norm = 0.0

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self._engine.module

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return self.options.ds_config.stage

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer, which knows how the parameters are cut (shards.py)."""
        return self._engine.optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that makes the steps; under ZeRO it works on this process's partitions."""
        return self._optimizer

    def set_rates(self, rates: Sequence[float]) -> None:
        """Learning rates of the parameter groups for the next step."""
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    # ------------------------------------------------------------------------------------------------- steps

    def step(self, batches: Sequence[Any], counts: Mapping[str, float], loss_sums: LossSums) -> StepResult:
        """One optimizer step from this process's part of a window.

        Args:
            batches: `accumulation` micro-batches on the right device.
            counts: labels per group over the whole window and all processes.
            loss_sums: outputs, batch → sum of the loss per group; every group always present.
        """
        sums, losses = self.accumulate(batches, counts, loss_sums)
        skipped = self.apply()
        return StepResult(sums, losses, self._step_norm, skipped)

    def accumulate(
        self, batches: Sequence[Any], counts: Mapping[str, float], loss_sums: LossSums
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Forward and backward over the window, ending with reduced gradients and unchanged weights."""
        if len(batches) != self.options.accumulation:
            raise ValueError(f"a window has {self.options.accumulation} micro-batches per process, got {len(batches)}")
        factors = self.factors(counts)
        totals: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        self._engine.train()
        for number, batch in enumerate(batches):
            if number:
                self._engine.step()  # counts the micro-batch; changes nothing before the window is full
            with self._running():
                outputs = self._engine(batch)
                sums = loss_sums(outputs, batch)
                loss = objective(outputs, sums, factors)
                self._engine.backward(loss)
            losses.append(loss.detach())
            add_sums(totals, sums)
        self._order.check()
        return totals, losses

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        """What a micro-batch's sums of the loss are multiplied by, for labels per group over window and processes.

        DeepSpeed averages over processes and over the window; the loss wanted is a quotient of sums over both.
        """
        scale = float(self.processes.world * self.options.accumulation)
        return {group: scale / count if count else 0.0 for group, count in counts.items()}

    def _running(self) -> AbstractContextManager[None]:
        """Around every pass through the model."""
        return no_unit_left_open() if self.stage == 3 else nullcontext()

    def backward_given(self, gradients: Sequence[Tensor], last: bool) -> None:
        """As the backward pass of a micro-batch whose gradients are known; collective (splitting.py).

        Args:
            gradients: of the trainable parameters, in their order.
            last: whether the window ends with it.
        """
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self._engine.backward(GivenGradients.apply(gradients, *parameters))
        if last:
            self._order.check()
        else:
            self._engine.step()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes, for who calls the module itself."""
        dtype = torch.bfloat16 if self.options.ds_config.autocast else None
        return torch.autocast(self.processes.device.type, dtype=dtype, enabled=dtype is not None)

    @property
    def step_norm(self) -> float:
        """Global norm of the gradient of the last step, before clipping."""
        return self._step_norm

    def apply(self) -> bool:
        """Update the weights; whether that was skipped, on all processes alike, because a gradient is not finite."""
        if self.stage == 0 and not self.options.ds_config.narrow:
            return self._apply_replicated()
        self._engine.step()
        skipped = bool(self._engine.optimizer.overflow)
        self._step_norm = float("inf") if skipped else float(self._engine.get_global_grad_norm())
        return skipped

    def _apply_replicated(self) -> bool:
        """The same without ZeRO, where DeepSpeed does not look for non-finite gradients in float32."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = bool(torch.isfinite(norm))
        self._step_norm = float(norm) if finite else float("inf")
        if finite:
            self._engine.step()
            return False
        for gradient in gradients:
            gradient.zero_()  # for DeepSpeed's clipping, which needs some gradient
        handle = self._optimizer.register_step_pre_hook(_drop_gradients)
        self._engine.step()
        handle.remove()
        return True

    def evaluate(self, batch: Any) -> Any:
        """Outputs for a batch, without gradients of parameters, in the precision of training."""
        self.module.eval()
        with torch.no_grad(), self._running(), self.autocast():
            return self.module(batch)

    # ----------------------------------------------------------------------------------------------- weights

    def masters(self) -> list[Tensor]:
        """This process's float32 master weights: its partitions under ZeRO, else all parameters (see masters.py)."""
        return self._masters.tensors()

    def layout(self) -> Layout:
        """What of which parameter lies where in this process's `masters()`."""
        return self._masters.layout(self.processes.rank)

    @contextmanager
    def weights(self, shards: Sequence[Tensor]) -> Iterator[None]:
        """The model has other weights inside, given as one tensor for each of `masters()`; collective."""
        masters = self.masters()
        before = [m.clone() for m in masters] if self._masters.inside_model else masters
        self._masters.show(shards)
        try:
            yield
        finally:
            self._masters.show(before)

    def model_state(self, shards: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """The model's state on the CPU, parameters in float32 at every stage and precision; collective.

        Args:
            shards: one tensor for each of `masters()`, such as averages; None: the masters.

        Returns:
            Parameters and buffers by name; the first process has them, the others get nothing.
        """
        weights = self.masters() if shards is None else shards
        parameters = whole(self._masters, weights, self._shapes, self.processes)
        if not self.processes.first:
            return {}
        return parameters | _copies(self.buffers()) | self._frozen

    def buffers(self) -> dict[str, Tensor]:
        """What of the model's state is not trained, by name: the tensors themselves, the same in all processes."""
        return {k: v for k, v in self.module.state_dict().items() if k not in self._shapes}

    def spread_masters(self) -> None:
        """Bring the master weights, changed from outside, into everyone's model; collective."""
        self._masters.show(self.masters())


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in memory of their own, on the CPU."""
    return {name: x.detach().to("cpu", copy=True) for name, x in tensors.items()}


class GivenGradients(torch.autograd.Function):
    """Zero whose gradients with respect to the parameters are given."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        """Zero."""
        ctx.gradients = gradients
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        """What was given."""
        return (None, *(g * scale.to(g.dtype) for g in ctx.gradients))


def _optimizer(
    groups: Sequence[ParameterGroup], options: OptimizerOptions, config: DeepSpeedConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW where the masters are; on the CPU beside a GPU it is DeepSpeed's, which is compiled on first use."""
    if not config.offloads_optimizer:
        return adamw(groups, options, device)
    if not config.compiled_cpu_adam:
        return adamw(groups, options, torch.device("cpu"))
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    try:
        return DeepSpeedCPUAdam(
            group_settings(groups, options),
            lr=options.lr,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
            adamw_mode=True,
        )
    except (RuntimeError, OSError, ImportError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"{config.source}: zero_optimization.offload_optimizer needs DeepSpeed's Adam for CPUs, which could not be "
            f"compiled ({error}); install a C++ compiler and ninja, or set"
            " zero_force_ds_cpu_optimizer: false (slower)"
        ) from None


def _drop_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Make the coming step leave weights and moments alone."""
    optimizer.zero_grad(set_to_none=True)


def objective(outputs: Outputs, sums: Mapping[str, Tensor], factors: Mapping[str, float]) -> Tensor:
    """What is differentiated for a micro-batch or a part of one: its sums of the loss times `Engine.factors`.

    It depends on every output, and its gradient is not a number where it is not finite itself.
    """
    return infectious(sum((factors[group] * value for group, value in sums.items()), start=touch(outputs)))


def add_sums(totals: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add sums of the loss per group to those before, without their graph."""
    for group, value in sums.items():
        totals[group] = totals[group] + value.detach() if group in totals else value.detach()


def touch(outputs: Outputs) -> Tensor:
    """Zero that depends on every output, so that all parameters get a gradient even where a head has no labelled row.

    A parameter without gradient on one process would silently pair with another one's (deepspeed.md section 2).
    No value is read, so an infinite output of an unlabelled row does not matter.
    """
    parts = [tensor.reshape(-1)[:0].sum() for by_label in outputs.values() for tensor in by_label.values()]
    return torch.stack([p.float() for p in parts]).sum()


def infectious(loss: Tensor) -> Tensor:
    """The same loss, whose gradient is not a number where the loss is not finite.

    The gradient of |x| is finite at NaN, so a bad label on one process would go unnoticed; like this it reaches the
    norm that all processes check, without another message or a wait for the device.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
