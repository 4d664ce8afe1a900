"""Define the settings of multiple choice."""

from typing import Literal

from pydantic import Field, model_validator

from decero.config.sections import MOST_ROWS, DataSection, Section
from decero.config.training_run import FineTuning


class ChoiceData(DataSection):
    text_column: str = Field("question", description="column of the question, or of the text to continue")
    context_column: str | None = Field(None, description="column of a text to read before the question")
    choices_column: str | list[str] | None = Field(
        None,
        description="column of lists of texts (choices when not set), or several columns, e.g. [ending0, ending1]",
    )
    choices: list[str] | None = Field(
        None, min_length=2, description="instead of choices_column: the same choices in every row, e.g. [no, yes]"
    )
    label_column: str = Field("label", description="column of the right choice: its number, its letter, or its text")
    max_train_rows: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="label budget: train on this many examples, chosen by the seed"
    )

    @model_validator(mode="after")
    def _one_place_of_choices(self):
        if self.choices is not None and self.choices_column is not None:
            raise ValueError("give one of data.choices (the same in every row) and data.choices_column")
        if len(set(self.choice_columns)) < len(self.choice_columns):
            raise ValueError("data.choices_column: a column appears twice; remove one")
        if isinstance(self.choices_column, list) and len(self.choices_column) < 2:
            raise ValueError("data.choices_column: give two columns or more, or the name of a column of lists")
        if self.choices is not None and len(set(self.choices)) < len(self.choices):
            raise ValueError("data.choices: a choice appears twice; remove one")
        return self

    @property
    def choice_columns(self) -> list[str]:
        """Return the columns that hold choices."""
        if self.choices is not None:
            return []
        column = self.choices_column or "choices"
        return [column] if isinstance(column, str) else column

    def source(self):
        columns = {self.label_column: "data.label_column"}
        columns |= dict.fromkeys(self.choice_columns, "data.choices_column")
        if self.context_column:
            columns[self.context_column] = "data.context_column"
        return super().source() | {"columns": columns}


class ChoiceSection(Section):
    score: Literal["head", "likelihood"] = Field(
        "head",
        description="head: an encoder scores each choice with a number; likelihood: a decoder sums the log-probability "
        "of each choice after the question, also without training (--eval-only)",
    )
    prompt: str | None = Field(
        None,
        description="with likelihood: the text before a choice, where {context} and {question} are replaced; by "
        "default both, with a line break between",
    )
    separator: str = Field(" ", description="with likelihood: what joins the prompt and a choice")

    @model_validator(mode="after")
    def _of_likelihood(self):
        if self.score == "head" and (self.prompt is not None or self.separator != " "):
            unset = "separator=' '" if self.prompt is None else "prompt=null"
            name = unset.partition("=")[0]
            raise ValueError(f"objective.{name} needs objective.score=likelihood; remove it, or set objective.{unset}")
        if self.prompt is not None and "{question}" not in self.prompt:
            raise ValueError("objective.prompt: write {question} where the question stands")
        return self


class FinetuneMultipleChoice(FineTuning):
    data: ChoiceData
    objective: ChoiceSection = ChoiceSection()

    @model_validator(mode="after")
    def _what_the_prompt_reads(self):
        if self.data.context_column is None and "{context}" in (self.objective.prompt or ""):
            raise ValueError("objective.prompt: {context} needs data.context_column")
        return self
