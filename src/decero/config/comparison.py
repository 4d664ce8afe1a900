"""Define the settings of a comparison: contenders, seeds, label budgets."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from decero.config.finetuning import ClassificationSection
from decero.config.run_config import RunConfig
from decero.config.sections import LabelledData, ModelSection, OptimSection, Section, TokenizerSection, TrainingSection
from decero.errors import did_you_mean


class Contender(Section):
    """Describe one contender. Its `optim` and `training` override the shared settings."""

    model: ModelSection | None = Field(None, description="the encoder to fine-tune")
    tfidf: bool = Field(
        False, description="instead of a model: TF-IDF of words and word pairs + logistic regression, as a baseline"
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
    contenders: dict[str, Contender] = Field(description="name -> a model to compare")
    reference: str = Field(description="name of the contender that all others are compared with")
    seeds: list[int] = Field(
        [0, 1, 2], min_length=1, description="one run per seed: it sets weights, data order, dropout and label budget"
    )
    label_budgets: list[int | None] = Field(
        [None], min_length=1, description="numbers of labelled examples to train on; null: all of train"
    )
    keep_models: bool = Field(False, description="also save model/ of every run, not only predictions and metrics")
    metric: str | None = Field(
        None, description="metric in the table; by default accuracy, f1_micro or mse, by problem_type"
    )
    data: LabelledData
    objective: ClassificationSection = ClassificationSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection

    @model_validator(mode="after")
    def _known_names(self):
        if self.reference not in self.contenders:
            near = did_you_mean(self.reference, self.contenders)
            raise ValueError(f"reference: unknown contender {self.reference}{near}")
        for name, values in (("seeds", self.seeds), ("label_budgets", self.label_budgets)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: a value appears twice; remove one")
        if self.hub.repo_id:
            raise ValueError(
                "hub.repo_id: a comparison publishes no model; remove it, and set it when you fine-tune the winner"
            )
        for name, contender in self.contenders.items():
            for key in {"mixed_precision", "num_processes"} & contender.training.keys():
                raise ValueError(
                    f"contenders.{name}.training.{key}: cannot differ between contenders; set training.{key}"
                )
        if self.data.max_train_rows is not None:
            raise ValueError("data.max_train_rows: a comparison uses label_budgets instead; set those")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output)
