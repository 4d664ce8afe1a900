"""Define the settings of pretraining, tokenizer training and causal LM evaluation."""

from typing import Literal

from pydantic import Field, model_validator

from decero.config.distill_sections import DistillSection
from decero.config.run_config import RunConfig
from decero.config.sections import (
    MOST_EXAMPLES,
    MOST_TOKENS,
    DataSection,
    ModelSection,
    Section,
    TokenizerSection,
)
from decero.config.training_run import TrainingRun


class UnlabelledData(DataSection):
    streaming: bool = Field(
        False, description="read, tokenize and cut train during training, without keeping it; needs max_train_steps"
    )
    buffer_size: int = Field(
        10_000, ge=1, le=10**9, description="with streaming: texts to hold in memory and shuffle together"
    )
    length_warmup: float | None = Field(
        None, gt=0, le=1, description="share of the run in which rows grow from a quarter of max_length to all of it"
    )

    @model_validator(mode="after")
    def _what_streams(self):  # overrides SourceSection: pretraining can stream files too
        return self


class Pretraining(TrainingRun):
    """Hold the settings of a run on unlabelled text, which may be a stream."""

    options = (*TrainingRun.options, "--budget")

    data: UnlabelledData

    @model_validator(mode="after")
    def _a_stream_has_no_end(self):
        if not self.data.streaming:
            return self
        if self.training.max_train_steps is None:
            raise ValueError(
                "training.num_train_epochs: a stream has no known length; set training.max_train_steps instead"
            )
        if self.training.eval_strategy == "epoch":
            if "eval_strategy" in self.training.model_fields_set:
                raise ValueError(
                    "training.eval_strategy=epoch: a stream has no known length; set training.eval_strategy=steps"
                )
            self.training.eval_strategy = "steps"
        return self


class MaskedLMSection(Section):
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are masked and scored")
    final_mlm_probability: float | None = Field(
        None, gt=0, lt=1, description="this share at the end of the run, with a linear change; the same when not set"
    )
    whole_word: bool = Field(True, description="mask whole words instead of single tokens")
    scored_queries: bool = Field(True, description="compute the last layer only at scored positions, if the model can")
    distill: DistillSection | None = Field(
        None, description="also learn from the outputs of a teacher with the same tokenizer"
    )


class PermutationSection(Section):
    plm_probability: float = Field(
        1 / 6, gt=0, lt=1, description="share of the tokens that are targets; 1/6 as in the paper"
    )
    max_span_length: int = Field(5, ge=1, le=MOST_TOKENS, description="most targets side by side; spans have 1 to this")


class DetectionSection(Section):
    mlm_probability: float = Field(0.15, gt=0, lt=1, description="share of the tokens that the generator replaces")
    whole_word: bool = Field(False, description="replace whole words instead of single tokens")
    discriminator_weight: float = Field(
        50.0,
        gt=0,
        le=1e6,
        description="weight of the discriminator's loss beside that of the generator; 50 as in the paper",
    )
    generator_size: float = Field(
        0.25,
        gt=0,
        le=1,
        description="width of a new generator, as a share of the discriminator's; 1/4 to 1/2 work best",
    )
    generator: str | None = Field(
        None,
        description="generator to begin with, a checkpoint; when not set, the folder `generator` beside the checkpoint "
        "of model.name_or_path, or else a new one",
    )


class DenoisingSection(Section):
    name: Literal["span_corruption", "text_infilling", "prefix_lm"] = Field(
        "span_corruption", description="how text is damaged"
    )
    mlm_probability: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of tokens to damage; default as in the papers: span_corruption 0.15, text_infilling 0.3",
    )
    mean_noise_span_length: float | None = Field(
        None, ge=1, le=MOST_TOKENS, description="mean tokens per damaged span; 3 when not set"
    )

    @model_validator(mode="after")
    def _no_spans(self):
        if self.name == "prefix_lm" and (self.mlm_probability or self.mean_noise_span_length):
            raise ValueError(
                "objective: prefix_lm damages no tokens; remove mlm_probability and mean_noise_span_length"
            )
        return self


class TextSection(UnlabelledData):
    start_token: str | None = Field(
        None, description="token to put before each row; when not set the tokenizer's bos, or else its eos"
    )


class CausalSection(Section):
    name: Literal["causal_lm", "continuation", "hybrid_lm"] = Field(
        "causal_lm",
        description="causal_lm scores every token, continuation only those after a random-length prefix; "
        "hybrid_lm also learns to fill holes",
    )
    causal_fraction: float | None = Field(
        None, gt=0, lt=1, description="hybrid_lm: share of the rows that are read from left to right; 0.5 when not set"
    )
    mlm_probability: float | None = Field(
        None, gt=0, lt=1, description="hybrid_lm: share of masked tokens in the other rows; 0.15 when not set"
    )

    @model_validator(mode="after")
    def _no_masks(self):
        if self.name != "hybrid_lm" and (self.causal_fraction or self.mlm_probability):
            raise ValueError(
                f"objective: {self.name} masks no tokens; remove causal_fraction and mlm_probability, or set "
                "objective.name=hybrid_lm"
            )
        return self


class PretrainMLM(Pretraining):
    objective: MaskedLMSection = MaskedLMSection()


class PretrainPLM(Pretraining):
    objective: PermutationSection = PermutationSection()


class PretrainRTD(Pretraining):
    objective: DetectionSection = DetectionSection()


class PretrainSeq2Seq(Pretraining):
    objective: DenoisingSection = DenoisingSection()


class PretrainCausalLM(Pretraining):
    data: TextSection
    objective: CausalSection = CausalSection()


class ScoredText(DataSection):
    start_token: str | None = Field(
        None, description="token to put before each row; when not set the tokenizer's bos, or else its eos"
    )


class EvaluateCausalLM(RunConfig):
    options = ("--resume",)
    publishes = "a measurement trains no model"
    own_texts = False

    model: ModelSection
    tokenizer: TokenizerSection = TokenizerSection()
    data: ScoredText
    split: Literal["train", "validation", "test"] = Field("validation", description="split to measure")
    baselines: list[Literal["ngram", "lzma", "zlib"]] = Field(
        [], description="baselines to measure too, each given data.files.train: byte 6-grams, compressors"
    )
    bigram_slices: bool = Field(
        False,
        description="also give the perplexity of tokens that complete a pair seen earlier in the row, "
        "and of the others; reads the text twice",
    )
    per_device_eval_batch_size: int = Field(
        16, ge=1, le=MOST_EXAMPLES, description="rows per batch; does not change the results"
    )
    mixed_precision: Literal["no", "bf16", "auto"] = Field(
        "no", description="bf16 computes matrix products in bfloat16; auto: where the device does so itself, else no"
    )


class TokenizerTraining(Section):
    algorithm: Literal["wordpiece", "byte_level_bpe", "unigram"] = Field(
        "wordpiece", description="tokenization algorithm"
    )
    vocab_size: int = Field(8192, ge=16, le=10_000_000, description="entries, special tokens included")
    lowercase: bool = Field(False, description="lowercase text first")
    min_frequency: int = Field(2, ge=1, le=10**9, description="times a pair must occur to become an entry")
    num_sentinels: int = Field(
        0, ge=0, le=100_000, description="sentinel tokens for span corruption; if above 0 the special tokens are T5's"
    )
    model_max_length: int = Field(
        512, ge=4, le=MOST_TOKENS, description="longest sequence of the model, stored with the tokenizer"
    )


class TrainTokenizer(RunConfig):
    data: DataSection
    tokenizer: TokenizerTraining = TokenizerTraining()
    model: ModelSection | None = Field(
        None, description="check that token ids fit the vocabulary of this preset; for a decoder, leave prompts open"
    )
