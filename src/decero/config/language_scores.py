"""Define the settings that measure a language model without training: text with masks, minimal pairs."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from decero.config.run_config import RunConfig
from decero.config.sections import (
    LARGEST_SEED,
    MOST_EXAMPLES,
    MOST_ROWS,
    DataSection,
    ModelSection,
    Section,
    SourceSection,
    TokenizerSection,
)


class PseudoLikelihoodSection(Section):
    name: Literal["within_word_l2r", "original", "sentence_l2r"] = Field(
        "within_word_l2r",
        description="what is masked with the token that a masked model is asked for: the rest of its word, nothing, "
        "or all text after it, which alone gives a probability",
    )


class ScoredModel(RunConfig):
    options = ("--resume",)
    publishes = "a measurement trains no model"
    own_texts = False

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    per_device_eval_batch_size: int = Field(
        64, ge=1, le=MOST_EXAMPLES, description="rows per batch; does not change the results"
    )
    mixed_precision: Literal["no", "bf16", "auto"] = Field(
        "no", description="bf16 computes matrix products in bfloat16; auto: where the device does so itself, else no"
    )


class EvaluateMaskedLM(ScoredModel):
    data: DataSection
    objective: PseudoLikelihoodSection = PseudoLikelihoodSection()
    split: Literal["train", "validation", "test"] = Field("validation", description="split to measure")


class PairsData(SourceSection):
    good_column: str = Field("good", description="column of the acceptable text")
    bad_column: str = Field("bad", description="column of the other text, which differs from it minimally")
    paradigm_column: str | None = Field("paradigm", description="column of the kind of pair; null: there is none")
    phenomenon_column: str | None = Field(
        "phenomenon", description="column of the group that is reported; null: there is none"
    )
    max_pairs: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="keep only this many first pairs of each paradigm"
    )

    @model_validator(mode="after")
    def _four_columns(self):
        named = [
            name for name in (self.good_column, self.bad_column, self.paradigm_column, self.phenomenon_column) if name
        ]
        if twice := next((name for name in named if named.count(name) > 1), None):
            raise ValueError(f"data: two settings name the column {twice}; give each its own")
        return self

    def source(self):
        """Return the arguments of `load_corpus`; of files, only the columns that settings name are read."""
        names = ("good_column", "bad_column", "paradigm_column", "phenomenon_column")
        columns = {getattr(self, name): f"data.{name}" for name in names if getattr(self, name)}
        return super().source() | {"text_column": self.good_column, "columns": columns}


class UnigramText(SourceSection):
    sample_by: Literal["line", "paragraph", "document"] = Field(
        "paragraph", description="what becomes one row in a txt file"
    )
    text_column: str = Field("text", description="column of the text")

    def source(self):
        """Return the arguments of `load_corpus`; of files, only the column of the text is read."""
        return super().source() | {"columns": {}}


class ControlSection(Section):
    """Models with random weights. One draw of weights prefers some words to others, so several are averaged."""

    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(
        [0, 1, 2, 3, 4], min_length=2, description="seeds of the weights; one model each"
    )
    model: ModelSection | None = Field(
        None, description="preset of a smaller architecture, with the same tokenizer; that of the model when not set"
    )

    @model_validator(mode="after")
    def _random(self):
        if self.model is not None and self.model.config is None:
            raise ValueError("control.model: give control.model.config, a preset; a checkpoint has no random weights")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("control.seeds: a seed stands there twice; remove it")
        return self


class EvaluateMinimalPairs(ScoredModel):
    data: PairsData
    objective: PseudoLikelihoodSection | None = Field(
        None, description="of a masked model; its defaults when not set. A causal model has its likelihood"
    )
    start_token: str | None = Field(
        None, description="of a causal model: token to put before each text; the tokenizer's bos, or else its eos"
    )
    split: Literal["train", "validation", "test"] = Field("test", description="split to measure")
    unigram: UnigramText | None = Field(
        None, description="training text of a unigram model, which is measured beside the model"
    )
    control: ControlSection | None = Field(
        None, description="models with random weights, which are measured beside the model and averaged"
    )
