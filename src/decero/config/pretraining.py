"""The settings of pretraining and what surrounds it: tokenizers, language models, their likelihood of a text."""

from typing import Literal

from pydantic import Field, model_validator

from decero.config.run_config import RunConfig
from decero.config.sections import DataSection, ModelSection, Section, TokenizerSection
from decero.config.training_run import TrainingRun


class UnlabelledData(DataSection):
    streaming: bool = Field(
        False, description="train is read, tokenised and cut as steps ask for it, and never held; needs max_train_steps"
    )
    buffer_size: int = Field(10_000, ge=1, description="with streaming: texts that are held and shuffled at a time")

    @model_validator(mode="after")
    def _what_streams(self):  # files as well
        return self


class Pretraining(TrainingRun):
    """A run on text without labels, which may be a stream."""

    options = (*TrainingRun.options, "--budget")

    data: UnlabelledData

    @model_validator(mode="after")
    def _a_stream_has_no_end(self):
        if not self.data.streaming:
            return self
        if self.training.max_train_steps is None:
            raise ValueError(
                "training.num_train_epochs: a stream has no known length; give training.max_train_steps instead"
            )
        if self.training.eval_strategy == "epoch":
            if "eval_strategy" in self.training.model_fields_set:
                raise ValueError(
                    "training.eval_strategy=epoch: a stream has no known length; set training.eval_strategy=steps"
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


class PretrainMLM(Pretraining):
    objective: MaskedLMSection = MaskedLMSection()


class PretrainSeq2Seq(Pretraining):
    objective: DenoisingSection = DenoisingSection()


class PretrainCausalLM(Pretraining):
    data: TextSection
    objective: CausalSection = CausalSection()


class ScoredText(DataSection):
    start_token: str | None = Field(
        None, description="token before each row; the tokenizer's bos (else its eos) when not set"
    )


class EvaluateCausalLM(RunConfig):
    options = ("--resume",)

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: ScoredText
    split: Literal["train", "validation", "test"] = Field("validation", description="the text that is measured")
    baselines: list[Literal["ngram", "lzma", "zlib"]] = Field(
        [], description="beside the model, each having read data.files.train: byte 6-grams, compressors"
    )
    per_device_eval_batch_size: int = Field(16, ge=1, description="rows a batch; changes no figure")
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16 computes matrix products in bfloat16")


class TokenizerTraining(Section):
    algorithm: Literal["wordpiece", "byte_level_bpe", "unigram"] = Field("wordpiece", description="how text is cut")
    vocab_size: int = Field(8192, ge=16, description="entries, special tokens included")
    lowercase: bool = Field(False, description="lowercase text before cutting it")
    min_frequency: int = Field(2, ge=1, description="how often a pair must occur to become an entry")
    num_sentinels: int = Field(0, ge=0, description="marks for span corruption; with them special tokens are T5's")
    model_max_length: int = Field(512, ge=4, description="the longest sequence that the tokenizer's model reads")


class TrainTokenizer(RunConfig):
    data: DataSection
    tokenizer: TokenizerTraining = TokenizerTraining()
    model: ModelSection | None = Field(None, description="refuse ids beyond the vocabulary of this preset")
