"""`finetune.yaml`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jmp_ds.config.base import PositiveFloat, Section
from jmp_ds.config.pretrain import TrainingConfig
from jmp_ds.config.sections import ModelConfig


class FromConfig(Section):
    """Where the weights come from. `from: scratch` is short for {scratch: true}."""

    bundle: str | None = Field(default=None, description="folder with a bundle, e.g. runs/pretrain-small/final")
    heads: Annotated[str, Field(pattern=r"^(new|keep|copy:.+)$")] = Field(
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

    @property
    def head_source(self) -> str | None:
        """Task that heads are copied from, if they are."""
        return self.heads.removeprefix("copy:") if self.heads.startswith("copy:") else None


class LayerwiseLrConfig(Section):
    """Factors of the learning rate by depth; `rest` is everything else (bases, output networks, heads)."""

    embedding: PositiveFloat = Field(default=1.0, description="atom embedding")
    blocks: list[PositiveFloat] = Field(description="one factor per interaction block")
    rest: PositiveFloat = Field(default=1.0, description="everything else")


class FinetuneConfig(TrainingConfig):
    """Training of a pre-trained network (or of the same from random weights) on tasks of one's own."""

    source: FromConfig = Field(alias="from", description="where the weights come from")
    model: ModelConfig | None = Field(
        default=None, description="the network; only with `from: scratch`, otherwise the bundle says"
    )
    layerwise_lr: LayerwiseLrConfig | None = Field(default=None, description="factors of the learning rate by depth")
