"""Define the settings of fine-tuning that labels words: entities, slots, parts of speech."""

from typing import Any, Literal

from pydantic import Field, model_validator

from decero.config.sections import CORPUS_ARGUMENTS, MOST_ROWS, MOST_TOKENS, MOST_WORKERS, Section, SourceSection
from decero.config.training_run import FineTuning


class WordData(SourceSection):
    tokens_column: str = Field("tokens", description="column of the words: lists, or texts that are split at spaces")
    tags_column: str = Field("ner_tags", description="column of the tags, one a word: names, or ids of a ClassLabel")
    entities_column: str | None = Field(
        None,
        description="instead of tokens_column and tags_column: column of [{start, end, label}] with the characters of "
        "each entity in text_column, counted from 0",
    )
    text_column: str = Field("text", description="column of the text, with entities_column")
    scheme: Literal["auto", "BIO", "IOB1", "BIOES", "none"] = Field(
        "auto",
        description="how tags mark entities; none: each tag is a class, as for parts of speech; auto: "
        "chosen by the tags of train; IOB1 is converted to BIO",
    )
    max_length: int = Field(128, ge=4, le=MOST_TOKENS, description="tokens in a window, including special tokens")
    stride: int | None = Field(
        None, ge=0, le=MOST_TOKENS, description="tokens that two windows of a long text share; a quarter when not set"
    )
    max_train_rows: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="label budget: train on this many texts, chosen by the seed"
    )
    num_proc: int | None = Field(
        None, ge=1, le=MOST_WORKERS, description="processes for tokenization; by corpus size when not set"
    )

    @model_validator(mode="after")
    def _one_form(self):
        if self.entities_column and {"tokens_column", "tags_column"} & self.given:
            raise ValueError("give data.entities_column, or data.tokens_column and data.tags_column, not both")
        if self.entities_column and self.scheme not in ("auto", "BIO", "BIOES"):
            raise ValueError(
                f"data.scheme: a model that learns data.entities_column has BIO or BIOES tags, not {self.scheme}"
            )
        return self

    @property
    def given(self) -> set[str]:
        """The settings with another value than their default."""
        fields = type(self).model_fields
        return {name for name in self.model_fields_set if getattr(self, name) != fields[name].default}

    def source(self) -> dict[str, Any]:
        """Return the arguments of `load_corpus`."""
        if self.entities_column:
            columns = {self.text_column: "data.text_column", self.entities_column: "data.entities_column"}
        else:
            columns = {self.tokens_column: "data.tokens_column", self.tags_column: "data.tags_column"}
        known = {name: value for name, value in self.model_dump().items() if name in CORPUS_ARGUMENTS}
        return known | {"text_column": next(iter(columns)), "columns": columns, "words": not self.entities_column}


class WordsSection(Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread over the tags in the loss")


class FinetuneTokenClassification(FineTuning):
    data: WordData
    objective: WordsSection = WordsSection()
