"""Sections that pre-training and fine-tuning share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jmp_ds.config.base import Fraction, NonNegativeFloat, PositiveFloat, Section


class RunConfig(Section):
    """Where the run lives and what it runs on."""

    dir: str = Field(description="run folder; made if absent, resumed if it holds a checkpoint")
    seed: int = Field(default=0, ge=0, description="seed of weights, order of structures and dropout")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where to compute; `auto` takes a GPU if there is one"
    )
    threads: int = Field(
        default=0, ge=0, description="CPU threads per process; 0 divides the cores among the processes"
    )
    wall_time: PositiveFloat | None = Field(
        default=None,
        description="hours that the run has, from the start of its processes; it stops early enough to write a checkpoint",
    )
    hung_after: PositiveFloat | None = Field(
        default=15.0,
        description="minutes without any progress (four times as many for the first step and for checkpoints) after which "
        "a process writes where it hangs into the run folder and ends the run; null: never",
    )
    resume: bool = Field(
        default=True, description="continue from the newest checkpoint in `dir`; false refuses a folder with one"
    )


class ModelGraphConfig(Section):
    """Graph rules common to all tasks."""

    symmetrize: Literal["jmp", "invariant"] = Field(
        default="invariant", description="`jmp`: published rule, depends on atom order; `invariant`: does not"
    )
    envelope: Literal["jmp", "cutoff"] = Field(
        default="cutoff",
        description="where the radial envelope ends: `jmp` 12 Å always, `cutoff` at the graph's cutoff",
    )
    dihedral: Literal["jmp", "smooth"] = Field(
        default="smooth", description="`jmp`: published angle, jumps at collinear bonds; `smooth`: vanishes there"
    )


class ModelConfig(Section):
    """The network."""

    preset: Literal["tiny", "jmp-s", "jmp-l", "jmp-xl", "jmp-xxl"] = Field(
        default="tiny", description="size of the network"
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="fields of the preset's backbone to change, e.g. {num_blocks: 3}"
    )
    graph: ModelGraphConfig = Field(default_factory=ModelGraphConfig, description="graph rules common to all tasks")
    kernels: Literal["auto", "torch", "triton"] = Field(
        default="auto", description="message-passing operators; `auto` is Triton on a GPU, PyTorch elsewhere"
    )
    recompute: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="recompute activations in the backward pass: less memory, more time; `auto` does so where a batch "
        "would not fit into memory otherwise",
    )

    @field_validator("recompute", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """YAML reads `on` and `off` as true and false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class BatchConfig(Section):
    """How large a micro-batch is: a budget of edges, or a fixed number of structures."""

    edges: int | None = Field(
        default=None, ge=1, description="at most so many edges of the main graph per process and micro-batch"
    )
    structures: int | None = Field(
        default=None, ge=1, description="so many structures per optimizer step, over all processes"
    )
    cost: str | None = Field(
        default=None,
        description="file of `jmp-ds bench cost`: work is shared out by measured cost, told in edges of average cost, "
        "instead of by edges",
    )

    @model_validator(mode="after")
    def _one(self) -> BatchConfig:
        if (self.edges is None) == (self.structures is None):
            raise ValueError("give either `edges` or `structures`")
        return self


class SamplingConfig(Section):
    """Which structures come next, and how many together."""

    temperature: PositiveFloat = Field(
        default=2.0, description="1 draws tasks by size; larger draws small tasks more often (published: 2)"
    )
    order: Literal["random", "local"] = Field(
        default="random",
        description="`local` mixes runs of 64 neighbours in the store, 1024 at a time: fewer and longer reads",
    )
    batch: BatchConfig = Field(default_factory=lambda: BatchConfig(edges=20000), description="size of a micro-batch")
    accumulation: int = Field(default=1, ge=1, description="micro-batches per optimizer step and process")
    workers: int = Field(
        default=0, ge=0, description="data-loading processes per rank; 0 loads in the training process"
    )
    graphs: Literal["auto", "host", "device"] = Field(
        default="auto",
        description="where graphs are built, edge for edge the same: `host` in the loading processes, `device` by the "
        "training process on its device, so that loading processes only read; `auto` is device on a GPU, host elsewhere",
    )


class OptimizerConfig(Section):
    """AdamW."""

    lr: PositiveFloat = Field(default=3.0e-4, description="peak learning rate")
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.95], description="decay of the first and second moment"
    )
    eps: PositiveFloat = Field(default=1.0e-8, description="added to the root of the second moment")
    weight_decay: NonNegativeFloat = Field(default=0.1, description="decoupled weight decay, on all parameters")


class ScheduleConfig(Section):
    """The learning rate over the run, as factors of `optimizer.lr`."""

    kind: Literal["warmup_cosine", "warmup_cosine_plateau", "constant"] = Field(
        default="warmup_cosine", description="`warmup_cosine_plateau` is the published fine-tuning schedule"
    )
    warmup: Fraction = Field(default=0.02, description="warmup_cosine: fraction of the run that warms up")
    warmup_from: Fraction = Field(default=0.2, description="warmup_cosine: factor at the first step")
    cosine_to: Fraction = Field(default=0.1, description="factor at the end of the cosine (both kinds)")
    warmup_epochs: NonNegativeFloat = Field(
        default=5.0, description="warmup_cosine_plateau: epochs of warm-up, from factor 0.1"
    )
    cosine_epochs: NonNegativeFloat = Field(
        default=32.0, description="warmup_cosine_plateau: the cosine ends after so many epochs"
    )
    plateau_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.8, description="then: factor at every plateau"
    )
    plateau_patience: int = Field(
        default=3, ge=0, description="then: validations without improvement before a reduction"
    )


class EarlyStoppingConfig(Section):
    """Stop when the primary metric no longer improves."""

    patience: int = Field(default=50, ge=1, description="validations without improvement")
    min_lr: NonNegativeFloat = Field(default=1.0e-8, description="stop when every learning rate is below this")


class TrainConfig(Section):
    """How long and how the weights are changed."""

    epochs: int | None = Field(
        default=None, ge=1, description="length in passes over the (temperature-expanded) structures"
    )
    steps: int | None = Field(default=None, ge=1, description="length in optimizer steps, instead of `epochs`")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="AdamW")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="learning rate over the run")
    clip_norm: PositiveFloat | None = Field(default=None, description="clip gradients by their global norm")
    clip_value: PositiveFloat | None = Field(
        default=None, description="clip every gradient entry, after the reduction over processes"
    )
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        default=None,
        description="decay of the moving average of the weights that is validated and exported; null: none",
    )
    edge_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="probability that an edge is dropped"
    )
    on_out_of_memory: Literal["stop", "split"] = Field(
        default="stop",
        description="`stop` with a message, or `split` the batch and go on (ZeRO 0 to 2; every process then holds whole "
        "gradients, and nothing is reduced while they are made)",
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None, description="stop without improvement; null: never"
    )

    @model_validator(mode="after")
    def _exclusive(self) -> TrainConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("`epochs` and `steps` both set: give one of them")
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("`clip_norm` and `clip_value` both set: give one of them")
        return self


class EngineConfig(Section):
    """DeepSpeed."""

    deepspeed: str = Field(
        default="zero1_fp32",
        description="DeepSpeed JSON file, or the name of one that comes with the package",
    )


class ValidateConfig(Section):
    """When to validate, and what decides which checkpoint is best."""

    every: PositiveFloat = Field(default=1.0, description="in epochs")
    metric: str | None = Field(
        default=None,
        description="primary metric as `task/label`, e.g. `aspirin/forces`; default: forces, else energy, of all tasks",
    )


class CheckpointConfig(Section):
    """When to write checkpoints."""

    every: PositiveFloat = Field(default=1.0, description="in epochs")
    keep: int = Field(default=2, ge=1, description="how many of the newest are kept")
    best: bool = Field(
        default=True, description="write one after every validation that was the best so far, and keep that one too"
    )
    background: bool = Field(
        default=False,
        description="write files while training goes on; takes host memory for a second copy of what is saved",
    )
