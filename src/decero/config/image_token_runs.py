"""Define the settings that turn pictures into rows of tokens, and that measure a model of such rows."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from decero.config.picture_source import PictureSource
from decero.config.run_config import RunConfig
from decero.config.sections import MOST_EXAMPLES, MOST_TOKENS, Section, SourceSection

MOST_SIDE = 256  # pixels: a picture is one row of tokens
MOST_COLORS = 256


class CaptionedPictures(PictureSource):
    label_column: str = Field(
        "label", description="column of the label, whose name is the caption: names, numbers, or ids of a ClassLabel"
    )
    caption_columns: list[str] = Field(
        [], description="columns of captions instead of labels; a picture gives a row for each of its captions"
    )

    @model_validator(mode="after")
    def _each_column_once(self):
        if len(set(self.caption_columns)) < len(self.caption_columns):
            raise ValueError("data.caption_columns: a column is named twice; name each column once")
        return self

    @property
    def others(self) -> dict[str, str]:
        if self.caption_columns:
            return dict.fromkeys(self.caption_columns, "data.caption_columns")
        return {self.label_column: "data.label_column"}


class ImageTokenSection(Section):
    size: list[Annotated[int, Field(ge=2, le=MOST_SIDE)]] = Field(
        min_length=2, max_length=2,
        description="height and width to which pictures are reduced; each pixel becomes a token",
    )  # fmt: skip
    num_channels: Literal[1, 3] = Field(1, description="1: grey, 3: colours")
    colors: int = Field(
        16, ge=2, le=MOST_COLORS, description="greys at equal distances, or colours found by k-means in train"
    )
    caption_vocab_size: int = Field(
        512, ge=264, le=MOST_TOKENS, description="entries for captions: byte-level BPE of train's captions"
    )
    uncaptioned: float = Field(
        0.1, ge=0, lt=1, description="share of train's rows without a caption, so that guidance works"
    )


class TokenizeImages(RunConfig):
    publishes = "rows of tokens are no model"

    data: CaptionedPictures
    image_tokens: ImageTokenSection


class EvaluateImageTokens(RunConfig):
    options = ("--resume",)
    publishes = "a measurement trains no model"
    own_texts = False

    model: str = Field(description="folder or hub name of a causal model that was trained on rows of tokenize_images")
    data: SourceSection
    max_pictures: int | None = Field(
        None, ge=2, le=10**9, description="measure this many rows of test, chosen at random; all when not set"
    )
    completed: int = Field(8, ge=1, le=64, description="pictures of test whose lower half is drawn anew")
    temperature: float = Field(1.0, gt=0, le=100, description="of drawn pixels; below 1 the likely ones are preferred")
    per_device_eval_batch_size: int = Field(
        64, ge=1, le=MOST_EXAMPLES, description="pictures per batch; does not change the results"
    )
