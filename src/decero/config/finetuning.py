"""The settings of fine-tuning: classification, pairs of texts, prompts and completions."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from decero.config.sections import LabelledData, Section, SourceSection
from decero.config.training_run import TrainingRun

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


class ClassificationSection(Section):
    problem_type: ProblemType = Field("single_label_classification", description="what a label is")


class PairTask(SourceSection):
    parallel: dict[str, list[str]] | None = Field(
        None, description="instead: train, validation, test -> [sources.txt, targets.txt]; line n answers line n"
    )
    source_column: str = Field("source", description="column of what is read")
    target_column: str = Field("target", description="column of what is to be written")
    prefix: str = Field("", description="put before every source, e.g. 'summarize: '")
    weight: float = Field(1.0, gt=0, description="times an epoch goes through it; 0.5 draws half of it")

    @model_validator(mode="after")
    def _one_source(self):
        if sum(each is not None for each in (self.name, self.files, self.parallel)) != 1:
            raise ValueError("a task has exactly one of name (a data set), files (split -> paths) and parallel")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        if self.streaming and self.name is None:
            raise ValueError("streaming is for data sets by name; files are memory-mapped already, leave it out")
        return self


class PairData(Section):
    tasks: dict[str, PairTask] = Field(description="name -> a data set of pairs")
    max_source_length: int = Field(128, ge=4, description="tokens of a source, prefix and special ones included")
    max_target_length: int = Field(128, ge=4, description="tokens of a target, special ones included")
    max_train_rows: int | None = Field(
        None, ge=1, description="label budget: train on so many pairs of each task, chosen by the seed"
    )
    num_proc: int | None = Field(None, ge=1, description="processes that tokenize; chosen by corpus size when not set")

    @field_validator("tasks")
    @classmethod
    def _some(cls, tasks):
        if not tasks:
            raise ValueError("name at least one task")
        return tasks


class WritingSection(Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over the vocabulary")


class GenerationSection(Section):
    metric: Literal["translation", "summarization", "text"] = Field(
        "text", description="BLEU and chrF, ROUGE, or exact match and F1 of words"
    )
    num_beams: int = Field(1, ge=1, description="beams at the end of the run; evaluations on the way are greedy")
    length_penalty: float = Field(1.0, description="above 1 long answers are preferred, with beams")
    max_new_tokens: int = Field(128, ge=1, description="tokens an answer, at most")
    validation_rows: int = Field(
        200, ge=0, description="pairs of each validation split that evaluations answer; 0: only the loss is looked at"
    )

    @model_validator(mode="after")
    def _penalty_of_beams(self):
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise ValueError("generation.length_penalty compares beams; raise generation.num_beams or leave it out")
        return self


class CompletionSection(Section):
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the completion spread over the vocabulary")
    chat_template: Literal["auto", "on", "off"] = Field(
        "auto", description="ask in a turn of the user, as the tokenizer's template writes it; auto: where it has one"
    )
    separator: str | None = Field(
        None, min_length=1, description="put after every source where no chat template is; a line break when not set"
    )


class FinetuneClassification(TrainingRun):
    data: LabelledData
    objective: ClassificationSection = ClassificationSection()


class FinetuneSeq2Seq(TrainingRun):
    data: PairData
    objective: WritingSection = WritingSection()
    generation: GenerationSection = GenerationSection()


class FinetuneCausalLM(TrainingRun):
    data: PairData
    objective: CompletionSection = CompletionSection()
    generation: GenerationSection = GenerationSection()
