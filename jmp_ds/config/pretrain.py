"""`pretrain.yaml`."""

from __future__ import annotations

from pydantic import Field

from jmp_ds.config.base import Section
from jmp_ds.config.sections import (
    CheckpointConfig,
    EngineConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    ValidateConfig,
)
from jmp_ds.config.tasks import TaskConfig


class TrainingConfig(Section):
    """What both kinds of training are told; see `PretrainConfig` and `FinetuneConfig`."""

    run: RunConfig = Field(description="where the run lives and what it runs on")
    tasks: dict[str, TaskConfig] = Field(min_length=1, description="what is learned, by name")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="order and size of batches")
    train: TrainConfig = Field(description="length, optimizer, schedule")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="DeepSpeed")
    validation: ValidateConfig = Field(default_factory=ValidateConfig, alias="validate", description="when to validate")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="when to write checkpoints")


class PretrainConfig(TrainingConfig):
    """Joint training of one network on several tasks, from random weights."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="the network")
