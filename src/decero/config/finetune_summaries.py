"""Define the settings of extractive summaries."""

from typing import Any

from pydantic import Field, model_validator

from decero.config.sections import MOST_ROWS, MOST_TOKENS, DataSection, Section
from decero.config.training_run import FineTuning


class SummaryData(DataSection):
    summary_column: str = Field("summary", description="column of the summary that people wrote")
    max_length: int = Field(
        512,
        ge=4,
        le=MOST_TOKENS,
        description="most tokens of a document that are read; later sentences are never chosen",
    )
    max_train_rows: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="label budget: train on this many documents, chosen by the seed"
    )

    @model_validator(mode="after")
    def _two_columns(self):
        if self.summary_column == self.text_column:
            raise ValueError("data.summary_column is the column of the documents; name that of the summaries")
        return self

    def source(self) -> dict[str, Any]:
        return super().source() | {"columns": {self.summary_column: "data.summary_column"}}


class ExtractiveSection(Section):
    num_sentences: int = Field(3, ge=1, le=1000, description="sentences of a summary")
    trigram_blocking: bool = Field(
        True, description="choose no sentence that shares three successive words with a chosen one"
    )


class FinetuneExtractiveSummaries(FineTuning):
    data: SummaryData
    objective: ExtractiveSection = ExtractiveSection()
