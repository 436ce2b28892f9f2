"""What every section of a configuration has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: A number that must be larger than zero.
PositiveFloat = Annotated[float, Field(gt=0.0)]
#: A number that may be zero.
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
#: A fraction of something.
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """One section: strict types, no unknown keys, no infinities, read-only once made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True)
