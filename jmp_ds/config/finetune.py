"""`finetune.yaml`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jmp_ds.config.base import PositiveFloat, Section
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.config.sections import ModelConfig
from jmp_ds.config.tasks import HEADS


class FromConfig(Section):
    """Where the weights come from. `from: scratch` is short for {scratch: true}."""

    bundle: str | None = Field(default=None, description="folder with a bundle, e.g. runs/pretrain-small/final")
    heads: Annotated[str, Field(pattern=HEADS)] = Field(
        default="new", description="`new`, `keep` those of the task with the same name, or `copy:TASK`"
    )
    scratch: bool = Field(default=False, description="random weights instead of a bundle")

    @model_validator(mode="after")
    def _one(self) -> FromConfig:
        if self.scratch == (self.bundle is not None):
            raise ValueError("give a `bundle`, or write `from: scratch`")
        if self.scratch and self.heads != "new":
            raise ValueError(f"`heads: {self.heads}` needs a bundle")
        return self


class LoraConfig(Section):
    """Low-rank changes of dense layers instead of the layers themselves; usually with `freeze: ["backbone.*"]`."""

    rank: int = Field(default=8, ge=1, description="rank of the change")
    alpha: PositiveFloat = Field(default=16.0, description="the change is multiplied by alpha/rank")
    layers: list[str] = Field(
        default_factory=lambda: ["backbone.int_blocks.*"],
        min_length=1,
        description="patterns of names of dense layers; * stands for anything",
    )


class RememberConfig(Section):
    """Structures of a pre-training task, on which the report says what was forgotten."""

    store: str = Field(description="store with the labels of that task")
    structures: int = Field(default=1000, ge=1, description="so many of them, drawn at random, at most")


class LayerwiseLrConfig(Section):
    """Factors of the learning rate by depth; `rest` is everything else (bases, output networks, heads)."""

    embedding: PositiveFloat = Field(default=1.0, description="atom embedding")
    blocks: list[PositiveFloat] | dict[str, list[PositiveFloat]] = Field(
        description="one factor per interaction block; or such lists by number of blocks, for networks of any depth"
    )
    rest: PositiveFloat = Field(default=1.0, description="everything else")

    @model_validator(mode="after")
    def _lengths(self) -> LayerwiseLrConfig:
        if isinstance(self.blocks, dict):
            wrong = [key for key, factors in self.blocks.items() if key != str(len(factors))]
            if wrong:
                raise ValueError(f"blocks: {wrong[0]}: {len(self.blocks[wrong[0]])} factors for {wrong[0]} blocks")
        return self

    def factors(self, num_blocks: int) -> list[float] | None:
        """One factor per block of a network of that depth; None if there are none for it."""
        found = self.blocks.get(str(num_blocks)) if isinstance(self.blocks, dict) else self.blocks
        return found if found is not None and len(found) == num_blocks else None


class FinetuneConfig(TrainingConfig):
    """Training of a pre-trained network (or of the same from random weights) on tasks of one's own."""

    source: FromConfig = Field(alias="from", description="where the weights come from")
    model: ModelConfig | None = Field(
        default=None, description="the network; only with `from: scratch`, otherwise the bundle says"
    )
    layerwise_lr: LayerwiseLrConfig | None = Field(default=None, description="factors of the learning rate by depth")
    freeze: list[str] = Field(
        default_factory=list,
        description="patterns of names of parameters that stay as they are, e.g. backbone.embedding.*",
    )
    lora: LoraConfig | None = Field(default=None, description="train low-rank changes of dense layers")
    remember: dict[str, RememberConfig] = Field(
        default_factory=dict,
        description="by task of the bundle: structures on which its old head is evaluated before and after",
    )

    def head_source(self, task: str) -> str | None:
        """The bundle's task that a task takes its heads from; None: they are new."""
        heads = self.tasks[task].heads or self.source.heads
        return None if heads == "new" else task if heads == "keep" else heads.removeprefix("copy:")
