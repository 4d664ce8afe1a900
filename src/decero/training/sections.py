"""Settings of the pretraining objectives, for the recipes and for whoever reads a recipe's settings."""

from typing import Literal

from pydantic import Field, model_validator

from decero.training.config import DataSection, Section


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


class TextSection(DataSection):
    start_token: str | None = Field(
        None, description="token before each row; the tokenizer's bos (else its eos) when not set"
    )


class CausalSection(Section):
    name: Literal["causal_lm", "continuation"] = Field(
        "causal_lm", description="score every token, or those after a prefix of random length"
    )
