"""Define the shape of a model with random weights: a preset and what to change in it."""

from typing import Any

from pydantic import Field, field_validator

from decero.config.model_numbers import check_model_numbers
from decero.config.sections import Section


class Shape(Section):
    config: str = Field(description="YAML preset of a decero architecture (configs/model/); random weights")
    overrides: dict[str, Any] = Field({}, description="fields of the model's configuration to change")

    @field_validator("overrides")
    @classmethod
    def _possible(cls, overrides):
        check_model_numbers(overrides, "overrides")
        return overrides
