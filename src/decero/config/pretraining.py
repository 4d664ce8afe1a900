"""Settings of pretraining and its objectives, for the recipes and for whoever reads a recipe's settings."""

from typing import Literal

from pydantic import Field, model_validator

from decero.config.run_config import RunConfig
from decero.config.sections import DataSection, Section, TrainingSection


class UnlabelledData(DataSection):
    streaming: bool = Field(
        False, description="train is read, tokenised and cut as steps ask for it, and never held; needs max_train_steps"
    )
    buffer_size: int = Field(10_000, ge=1, description="with streaming: texts that are held and shuffled at a time")

    @model_validator(mode="after")
    def _what_streams(self):  # files as well
        return self


class Pretraining(RunConfig):
    """What holds between the sections of a run that may read a stream."""

    data: UnlabelledData
    training: TrainingSection

    @model_validator(mode="after")
    def _a_stream_has_no_end(self):
        if not self.data.streaming:
            return self
        if self.training.max_train_steps is None:
            raise ValueError(
                "training.num_train_epochs: how long an epoch of a stream is, nobody knows; "
                "give training.max_train_steps instead"
            )
        if self.training.eval_strategy == "epoch":
            if "eval_strategy" in self.training.model_fields_set:
                raise ValueError(
                    "training.eval_strategy=epoch: when an epoch of a stream ends, nobody knows; set it to steps"
                )
            self.training.eval_strategy = "steps"
        return self


class MaskedLMSection(Section):
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are scored")
    whole_word: bool = Field(True, description="mask words instead of tokens")
    scored_queries: bool = Field(
        True, description="the last layer computes scored positions alone, where the model can; not when compiled"
    )


class DenoisingSection(Section):
    name: Literal["span_corruption", "text_infilling", "prefix_lm"] = Field("span_corruption", description="objective")
    mlm_probability: float | None = Field(
        None, gt=0, lt=1, description="share of the tokens that is damaged; the paper's when not set (0.15, 0.3)"
    )
    mean_noise_span_length: float | None = Field(None, ge=1, description="tokens a span on average; 3 when not set")

    @model_validator(mode="after")
    def _no_spans(self):
        if self.name == "prefix_lm" and (self.mlm_probability or self.mean_noise_span_length):
            raise ValueError("objective: prefix_lm damages nothing; leave mlm_probability and its span length out")
        return self


class TextSection(UnlabelledData):
    start_token: str | None = Field(
        None, description="token before each row; the tokenizer's bos (else its eos) when not set"
    )


class CausalSection(Section):
    name: Literal["causal_lm", "continuation"] = Field(
        "causal_lm", description="score every token, or those after a prefix of random length"
    )
