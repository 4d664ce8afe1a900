"""Define the settings that measure a model that draws pictures."""

from typing import Any

from pydantic import Field, model_validator

from decero.config.run_config import RunConfig
from decero.config.sections import MOST_EXAMPLES, SourceSection

MOST_PICTURES = 10_000  # of a class
MOST_REPEATS = 100


class DrawingsData(SourceSection):
    image_column: str = Field("image", description="column of the pictures: as in `datasets`, bytes, or paths")
    label_column: str = Field("label", description="column of the label: names, numbers, or ids of a ClassLabel")

    @model_validator(mode="after")
    def _read_once(self):
        if self.streaming:
            raise ValueError("data.streaming: pictures are read once, and kept; remove it")
        return self

    def source(self) -> dict[str, Any]:
        """Return the arguments of `load_corpus`."""
        columns = {self.image_column: "data.image_column", self.label_column: "data.label_column"}
        return super().source() | {"text_column": self.image_column, "columns": columns}


class EvaluateDrawings(RunConfig):
    options = ("--resume",)
    publishes = "a measurement trains no model"

    model: str = Field(description="folder or hub name of the model that draws")
    classifier: str = Field(
        description="folder or hub name of an independent classifier of the same classes, "
        "from recipes/finetune_image_classification.py"
    )
    data: DrawingsData
    pictures_per_class: int = Field(100, ge=1, le=MOST_PICTURES, description="pictures of each class, each time")
    repeats: int = Field(3, ge=1, le=MOST_REPEATS, description="draw so often, with seed, seed + 1, ...")
    steps: int | None = Field(
        None, ge=1, le=1000, description="steps of the solver of a diffusion model; 16 when not set"
    )
    temperature: float | None = Field(
        None, gt=0, le=100, description="of a model of image tokens: below 1 prefers likely pixels; 1 when not set"
    )
    guidance: float | None = Field(
        None, ge=0, le=1000,
        description="1 follows the class, more exaggerates it; when not set 2 for diffusion, 1 for image tokens",
    )  # fmt: skip
    per_device_eval_batch_size: int = Field(
        64, ge=1, le=MOST_EXAMPLES, description="pictures per batch of the classifier; does not change the results"
    )
