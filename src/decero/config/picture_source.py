"""Define the settings that say where pictures come from."""

from typing import Any

from pydantic import Field, model_validator

from decero.config.sections import SourceSection


class PictureSource(SourceSection):
    image_column: str = Field(
        "image", description="column of the pictures: as in `datasets`, bytes, or paths from the folder of the file"
    )

    @model_validator(mode="after")
    def _read_once(self):
        if self.streaming:
            raise ValueError("data.streaming: pictures are read once, and kept; remove it")
        return self

    @property
    def others(self) -> dict[str, str]:
        """The columns besides the pictures, each with the setting that names it."""
        return {}

    def source(self) -> dict[str, Any]:
        """Return the arguments of `load_corpus`."""
        columns = {self.image_column: "data.image_column"} | self.others
        return super().source() | {"text_column": self.image_column, "columns": columns}


class LabelledPictures(PictureSource):
    label_column: str = Field("label", description="column of the label: names, numbers, or ids of a ClassLabel")

    @property
    def others(self) -> dict[str, str]:
        return {self.label_column: "data.label_column"}
