"""The settings of a comparison: contenders, seeds, label budgets."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from decero.config.finetuning import ClassificationSection
from decero.config.run_config import RunConfig
from decero.config.sections import LabelledData, ModelSection, OptimSection, Section, TokenizerSection, TrainingSection
from decero.errors import did_you_mean


class Contender(Section):
    """Who takes part. What it says of `optim` and `training` is laid over what is shared by all."""

    model: ModelSection | None = Field(None, description="the encoder to fine-tune")
    tfidf: bool = Field(
        False, description="no encoder: TF-IDF of words and pairs + logistic regression, the honest floor"
    )
    tokenizer: TokenizerSection = TokenizerSection()
    optim: dict[str, Any] = Field({}, description="settings of optim that differ for this contender")
    training: dict[str, Any] = Field({}, description="settings of training that differ for this contender")

    @model_validator(mode="after")
    def _one_kind(self):
        if self.tfidf == (self.model is not None):
            raise ValueError("a contender is either a model or tfidf: true")
        return self


class Compare(RunConfig):
    title: str = Field("Which model to ship", description="headline of the report")
    contenders: dict[str, Contender] = Field(description="name -> who takes part")
    reference: str = Field(description="the contender that the others are compared with")
    seeds: list[int] = Field(
        [0, 1, 2], min_length=1, description="each decides weights, order, dropout and label budget"
    )
    label_budgets: list[int | None] = Field([None], min_length=1, description="labelled examples; null: all of train")
    keep_models: bool = Field(False, description="save model/ of every run, besides its predictions and metrics")
    metric: str | None = Field(None, description="what the table shows; accuracy, f1_micro or mse when not set")
    data: LabelledData
    objective: ClassificationSection = ClassificationSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection

    @model_validator(mode="after")
    def _known_names(self):
        if self.reference not in self.contenders:
            near = did_you_mean(self.reference, self.contenders)
            raise ValueError(f"reference: {self.reference} is no contender{near}")
        for name, values in (("seeds", self.seeds), ("label_budgets", self.label_budgets)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value is given twice")
        if self.hub.repo_id:
            raise ValueError("hub.repo_id: a comparison publishes nothing; fine-tune the winner with it set")
        for name, contender in self.contenders.items():
            for key in {"mixed_precision", "num_processes"} & contender.training.keys():
                raise ValueError(f"contenders.{name}.training.{key}: is one for all; set training.{key}")
        if self.data.max_train_rows is not None:
            raise ValueError("data.max_train_rows: in a comparison the budgets are label_budgets")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output)
