"""Define the settings of extractive question answering."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from decero.config.sections import MOST_ROWS, MOST_TOKENS, MOST_WORKERS, Section, SourceSection
from decero.config.training_run import FineTuning


class AnswerData(SourceSection):
    context_column: str = Field("context", description="column of the text that holds the answer")
    question_column: str = Field("question", description="column of the question")
    answers_column: str = Field(
        "answers",
        description="column of {text: [...], answer_start: [...]}, as in SQuAD; empty lists: the context has no answer",
    )
    answer_start_column: str | None = Field(
        None,
        description="where answers_column holds one answer as text: column of the character at which it starts",
    )
    id_column: str | None = Field(None, description="column of a name for each question, for predictions.parquet")
    max_length: int = Field(384, ge=8, le=MOST_TOKENS, description="most tokens per window: question, context, special")
    stride: int = Field(
        128, ge=0, le=MOST_TOKENS, description="context tokens that two neighbouring windows of a long context share"
    )
    max_answer_length: int = Field(30, ge=1, le=MOST_TOKENS, description="most tokens of a predicted answer")
    max_train_rows: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="label budget: train on this many questions, chosen by the seed"
    )
    num_proc: int | None = Field(
        None, ge=1, le=MOST_WORKERS, description="processes for tokenization; by corpus size when not set"
    )

    @model_validator(mode="after")
    def _windows_move_on(self):
        if self.stride >= self.max_length - 4:  # a question and three special tokens
            raise ValueError(
                f"data.stride {self.stride} leaves no new context in a window of data.max_length {self.max_length} "
                "tokens; lower data.stride"
            )
        return self

    def source(self) -> dict[str, Any]:
        """Return the arguments of `load_corpus`."""
        names = ("context_column", "question_column", "answers_column", "answer_start_column", "id_column")
        columns = {getattr(self, name): f"data.{name}" for name in names if getattr(self, name) is not None}
        return super().source() | {"text_column": self.context_column, "columns": columns}


class AnswerSection(Section):
    no_answer: Literal["auto", "on", "off"] = Field(
        "auto",
        description="whether the model may say that there is no answer; auto: if train has such questions",
    )
    articles: list[str] = Field(
        ["a", "an", "the"],
        description="words that exact match and F1 leave out; Spanish: [el, la, los, las, un, una, unos, unas]",
    )

    @field_validator("articles")
    @classmethod
    def _words(cls, articles):
        for word in articles:
            if not word.strip() or word.split() != [word]:
                raise ValueError(f"objective.articles: {word!r} is not one word")
        return articles


class FinetuneQuestionAnswering(FineTuning):
    data: AnswerData
    objective: AnswerSection = AnswerSection()
