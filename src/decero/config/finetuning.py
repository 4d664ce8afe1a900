"""Define the settings of fine-tuning: classification, text pairs, prompts and completions."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from decero.config.distill_sections import DistillTexts
from decero.config.sections import (
    LARGEST_SEED,
    MOST_ROWS,
    MOST_TOKENS,
    MOST_WORKERS,
    LabelledData,
    Section,
    SourceSection,
)
from decero.config.training_run import FineTuning

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


class ClassificationSection(Section):
    problem_type: ProblemType = Field(
        "single_label_classification", description="kind of label: one class, several classes, or a number"
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["validation"] = Field(
        0.5,
        description="of two labels, or of several at once: predict a label above this probability (of two, the second "
        "one); validation: choose it after training, by the main metric on the validation split",
    )
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        "none",
        description="weights of classes in the training loss: balanced, or label -> weight (1 for all others); with "
        "several labels, those of positive examples",
    )
    distill: DistillTexts | None = Field(None, description="also learn from the outputs of a teacher")

    @model_validator(mode="after")
    def _of_labels(self):
        if self.problem_type == "regression":
            if self.threshold != 0.5:
                raise ValueError("objective.threshold: a regression predicts no labels; remove it")
            if self.class_weights != "none":
                raise ValueError("objective.class_weights: a regression has no classes; remove it")
            if self.distill and self.distill.temperature:
                raise ValueError("objective.distill.temperature: a regression has none; remove it")
        if self.distill and self.class_weights != "none":
            raise ValueError("objective.class_weights: a teacher's probabilities have no weights; remove one of them")
        return self


class PairTask(SourceSection):
    parallel: dict[str, list[str]] | None = Field(
        None,
        description="instead of name or files: train, validation, test -> [sources.txt, targets.txt], paired by line",
    )
    source_column: str = Field("source", description="column of the source text")
    target_column: str = Field("target", description="column of the target text")
    messages_column: str | None = Field(
        None,
        description="instead of both: column of dialogues, lists of {role, content}; the assistant's turns are scored",
    )
    group_column: str | None = Field(
        None, description="report the metrics of answers also for each value of this column, with 95 % intervals"
    )
    answer_column: str | None = Field(
        None, description="column of the words that a right answer contains; adds the metric answer_found"
    )
    prefix: str = Field("", description="text to put before every source, e.g. 'summarize: '")
    source_lang: str | None = Field(
        None, description="language of the sources, for a multilingual tokenizer, e.g. eng_Latn (NLLB), en_XX (mBART)"
    )
    target_lang: str | None = Field(
        None, description="language of the targets, e.g. fra_Latn; for multilingual Marian, e.g. fra"
    )
    weight: float = Field(1.0, gt=0, le=1000, description="passes per epoch; 0.5 draws half of the pairs")

    @model_validator(mode="after")
    def _one_source(self):
        if sum(each is not None for each in (self.name, self.files, self.parallel)) != 1:
            raise ValueError("give each task exactly one of name (a data set), files (split -> paths) and parallel")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave no rows for training; lower them")
        if self.streaming and self.name is None:
            raise ValueError("streaming works only with name; files are memory-mapped, so remove it")
        return self

    @model_validator(mode="after")
    def _pairs_or_dialogues(self):
        given = sorted(self.model_fields_set & {"source_column", "target_column", "prefix", "parallel"})
        if self.messages_column is not None and given:
            raise ValueError(f"messages_column names whole dialogues, so remove {given[0]}")
        if self.source_column == self.target_column:
            raise ValueError("target_column is the column of the sources; name another")
        if self.parallel is not None and (self.group_column or self.answer_column):
            raise ValueError("parallel files have no columns; remove group_column and answer_column")
        texts = [self.messages_column] if self.messages_column else [self.source_column, self.target_column]
        for name in ("group_column", "answer_column"):
            if getattr(self, name) in texts:
                raise ValueError(f"{name} is a column of the texts; name another")
        return self


class PairData(Section):
    tasks: dict[str, PairTask] = Field(description="name -> a data set of pairs")
    max_source_length: int = Field(
        128, ge=4, le=MOST_TOKENS, description="most tokens in a source, including prefix and special tokens"
    )
    max_target_length: int = Field(
        128, ge=4, le=MOST_TOKENS, description="most tokens in a target, including special tokens"
    )
    max_train_rows: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="label budget: train on this many pairs per task, chosen by the seed"
    )
    num_proc: int | None = Field(
        None, ge=1, le=MOST_WORKERS, description="processes for tokenization; by corpus size when not set"
    )

    @field_validator("tasks")
    @classmethod
    def _some(cls, tasks):
        if not tasks:
            raise ValueError("name at least one task")
        return tasks


class WritingSection(Section):
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="probability mass spread over the vocabulary in the loss"
    )


class GenerationSection(Section):
    metric: Literal["translation", "summarization", "text"] = Field(
        "text", description="translation: BLEU and chrF; summarization: ROUGE; text: exact match and word F1"
    )
    tokenize: Literal["auto", "13a", "char", "flores101", "flores200", "intl", "ja-mecab", "ko-mecab", "none", "zh"] = (
        Field(
            "auto",
            description="BLEU's tokenizer, as in sacreBLEU; auto: zh or char in scripts without spaces, else 13a",
        )
    )
    num_beams: int = Field(
        1, ge=1, le=1024, description="beams in the final evaluation; evaluations during training are greedy"
    )
    length_penalty: float = Field(1.0, ge=-10, le=10, description="with beams: values above 1 prefer longer answers")
    max_new_tokens: int = Field(128, ge=1, le=MOST_TOKENS, description="most tokens per answer")
    validation_rows: int = Field(
        200,
        ge=0,
        le=MOST_ROWS,
        description="validation pairs to answer in each evaluation, per task; 0: compute only the loss",
    )

    @model_validator(mode="after")
    def _tokenizer_of_bleu(self):
        if self.tokenize != "auto" and self.metric != "translation":
            raise ValueError("generation.tokenize is BLEU's; set generation.metric=translation or remove it")
        return self

    @model_validator(mode="after")
    def _penalty_of_beams(self):
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise ValueError("generation.length_penalty needs beams; raise generation.num_beams or remove it")
        return self


class CompletionSection(Section):
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="probability mass spread over the vocabulary in the loss"
    )
    chat_template: Literal["auto", "on", "off", "chatml"] = Field(
        "auto",
        description="write the source as a user turn with the tokenizer's chat template; auto: if it has one; "
        "chatml: use ChatML, and add its two tokens",
    )
    separator: str | None = Field(
        None,
        min_length=1,
        description="text to put after every source if no chat template is used; a line break when not set",
    )


class FoldSection(Section):
    number: int = Field(ge=0, lt=1000, description="the fold that is the test split; the first is 0")
    of: int = Field(ge=2, le=1000, description="number of folds")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed that divides the rows")

    @model_validator(mode="after")
    def _one_of_them(self):
        if self.number >= self.of:
            raise ValueError(f"data.fold.number: {self.number} is outside 0 to {self.of - 1}")
        return self


class ClassificationData(LabelledData):
    fold: FoldSection | None = Field(
        None,
        description="cross-validation: test on one fold of train, and train on the others; compare.py sets it by folds",
    )

    @model_validator(mode="after")
    def _one_test_split(self):
        if self.fold and self.test_fraction:
            raise ValueError("data.test_fraction: the fold is the test split; remove one of them")
        return self

    def source(self) -> dict[str, Any]:
        without = {"validation_fraction": 0.0} if self.fold else {}  # held out from the other folds, later
        return super().source() | {"number_rows": True} | without


class FinetuneClassification(FineTuning):
    data: ClassificationData
    objective: ClassificationSection = ClassificationSection()


class FinetuneSeq2Seq(FineTuning):
    data: PairData
    objective: WritingSection = WritingSection()
    generation: GenerationSection = GenerationSection()

    @model_validator(mode="after")
    def _no_dialogues(self):
        for name, task in self.data.tasks.items():
            if task.messages_column is not None:
                raise ValueError(
                    f"data.tasks.{name}.messages_column: an encoder-decoder reads no dialogues; use finetune_causal_lm"
                )
        return self


class FinetuneCausalLM(FineTuning):
    data: PairData
    objective: CompletionSection = CompletionSection()
    generation: GenerationSection = GenerationSection()
