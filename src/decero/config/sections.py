"""Define the sections of settings that recipes share."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from decero.config.model_numbers import check_model_numbers
from decero.config.optimizer_arguments import OptimizerName, check_optimizer_arguments

LARGEST_SEED = 2**32 - 1  # of numpy
MOST_ROWS = 10**12
MOST_TOKENS = 2**20  # of a text
MOST_EXAMPLES = 1_000_000  # of a batch
MOST_BATCH_TOKENS = 10**9
MOST_STEPS = 10**9
MOST_WORKERS = 512  # processes on one machine
NO_ARCHITECTURE = (  # fields of a configuration that say how a model is called or stored, and those that tasks decide
    "model_type", "architectures", "auto_map", "transformers_version", "_name_or_path", "return_dict",
    "output_attentions", "output_hidden_states", "is_encoder_decoder",
    "dtype", "torch_dtype", "problem_type", "num_labels", "id2label", "label2id",
)  # fmt: skip
COMMIT = re.compile(r"[0-9a-f]{40}")  # a branch, a tag or a short hash may name other code tomorrow
Kept = str | Annotated[int, Field(ge=-(2**63), lt=2**63)]  # a value of a column


class Section(BaseModel):
    """Hold one part of the settings. Unknown keys, wrong types and numbers out of bounds are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class ModelSection(Section):
    config: str | None = Field(
        None, description="YAML preset of an architecture (configs/model/); starts from random weights"
    )
    name_or_path: str | None = Field(
        None, description="checkpoint to start from: hub name, folder, or package:NAME/FOLDER"
    )
    overrides: dict[str, Any] = Field({}, description="fields of the model's configuration to change")
    revision: str | None = Field(None, description="commit of a hub checkpoint; required for remote code")
    trust_remote_code: bool = Field(
        False, description="allow Python code from the checkpoint to run; needs model.revision"
    )
    code_revision: str | None = Field(
        None, description="NAME/REPO@COMMIT of Python code that the checkpoint takes from another repository"
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = (
        Field(None, description="attention backend; the best available one when not set or not supported by the device")
    )

    @model_validator(mode="after")
    def _one_source(self):
        if len(self.sources()) != 1:
            raise ValueError("give exactly one of model.config (random weights) and model.name_or_path (a checkpoint)")
        if self.trust_remote_code and not COMMIT.fullmatch(self.revision or ""):
            given = "" if self.revision is None else f" ({self.revision} is none: give all 40 digits)"
            raise ValueError(
                "model.trust_remote_code runs code from the checkpoint; set model.revision to a commit that you trust"
                f"{given}"
            )
        if self.code_revision and not self.trust_remote_code:
            raise ValueError("model.code_revision has no effect without model.trust_remote_code; remove it")
        for name in self.overrides:
            if name in NO_ARCHITECTURE:
                raise ValueError(f"model.overrides.{name} is no part of an architecture; remove it")
        check_model_numbers(self.overrides, "model.overrides")
        return self

    def sources(self) -> list[Any]:
        """Return what the model is made from; exactly one may be given."""
        return [source for source in (self.config, self.name_or_path) if source is not None]


class TokenizerSection(Section):
    name_or_path: str | None = Field(
        None, description="tokenizer: hub name, folder or package:NAME/FOLDER; the one of the model when not set"
    )


class SourceSection(Section):
    """Hold the settings that say where rows come from."""

    name: str | None = Field(
        None, description="data set: bbc_news (included), a hub name, or a folder with the layout of a hub data set"
    )
    files: dict[str, str | list[str]] | None = Field(
        None,
        description="instead of name: train, validation, test -> paths, globs or folders "
        "(txt jsonl csv tsv parquet conll)",
    )
    config_name: str | None = Field(None, description="configuration of a hub data set")
    revision: str | None = Field(None, description="commit of a hub data set")
    streaming: bool = Field(False, description="read a hub data set over the network without downloading it whole")
    max_rows: int | None = Field(None, ge=1, le=MOST_ROWS, description="keep only this many first rows of each split")
    where: dict[str, Kept | list[Kept]] | None = Field(
        None, description="keep only rows with these values: column -> value or list of values, e.g. {lang: es}"
    )
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of train to hold out if there is no validation split"
    )
    test_fraction: float = Field(0.0, ge=0, lt=1, description="share of train to hold out if there is no test split")

    @model_validator(mode="after")
    def _one_source(self):
        if (self.name is None) == (self.files is None):
            raise ValueError("give exactly one of data.name (a data set) and data.files (split -> paths)")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("data.validation_fraction and data.test_fraction leave no rows for training; lower them")
        return self

    @model_validator(mode="after")
    def _what_streams(self):
        if self.streaming and self.files is not None:
            raise ValueError("data.streaming works only with data.name; files are memory-mapped, so remove it")
        return self

    @model_validator(mode="after")
    def _what_is_filtered(self):
        if self.where and (self.streaming or getattr(self, "parallel", None)):
            other = "streaming" if self.streaming else "parallel"
            raise ValueError(f"data.where: rows of {other} are not filtered; remove it, or {other}")
        return self

    def source(self) -> dict[str, Any]:
        """Return the arguments of `load_corpus`."""
        return {k: v for k, v in self.model_dump().items() if k in CORPUS_ARGUMENTS}


class DataSection(SourceSection):
    sample_by: Literal["line", "paragraph", "document"] = Field(
        "paragraph", description="what becomes one row in a txt file"
    )
    text_column: str = Field("text", description="column of the text")
    max_length: int = Field(128, ge=4, le=MOST_TOKENS, description="most tokens per row, including special tokens")
    num_proc: int | None = Field(
        None, ge=1, le=MOST_WORKERS, description="processes for tokenization; by corpus size when not set"
    )

    def source(self) -> dict[str, Any]:
        """Return the arguments of `load_corpus`; of files, only the columns that settings name are read."""
        return super().source() | {"columns": {}}


CORPUS_ARGUMENTS = (
    "name", "files", "config_name", "revision", "streaming", "buffer_size", "sample_by", "max_rows", "where",
    "text_column", "validation_fraction", "test_fraction",
)  # fmt: skip


class LabelledData(DataSection):
    text_pair_column: str | None = Field(None, description="column of the second text, for text pairs")
    label_column: str | list[str] = Field(
        "label", description="column of the label or of label lists, or a list of 0/1 columns"
    )
    max_train_rows: int | None = Field(
        None, ge=1, le=MOST_ROWS, description="label budget: train on this many examples, chosen by the seed"
    )

    def source(self) -> dict[str, Any]:
        labels = [self.label_column] if isinstance(self.label_column, str) else self.label_column
        columns = dict.fromkeys(labels, "data.label_column")
        if self.text_pair_column:
            columns[self.text_pair_column] = "data.text_pair_column"
        return super().source() | {"columns": columns}


class OptimSection(Section):
    name: OptimizerName = Field(
        "adamw",
        description="optimizer; muon: for the matrices of the layers, with adamw for all other weights; "
        "schedule_free_adamw: a mean of the weights instead of a schedule (pip install 'decero[schedulefree]')",
    )
    learning_rate: float = Field(1e-3, gt=0, le=1000, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, le=1000, description="weight decay of matrices; biases and norms have none")
    arguments: Annotated[dict[str, Any], AfterValidator(check_optimizer_arguments)] = Field(
        {}, description="more arguments for the optimizer class, e.g. {betas: [0.9, 0.98]}"
    )
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant", "warmup_stable_decay"] = Field(
        "linear",
        description="learning rate after warm-up; warmup_stable_decay falls in the last num_decay_steps; "
        "schedule_free_adamw is always constant",
    )
    num_decay_steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="a fifth of the run when not set")
    num_warmup_steps: int = Field(0, ge=0, le=MOST_STEPS, description="optimizer steps of linear warm-up")
    max_grad_norm: float | None = Field(
        1.0, gt=0, le=1e9, description="clip the global gradient norm to this; null: no clipping"
    )

    @model_validator(mode="after")
    def _no_schedule(self):
        if self.schedule_free and self.schedule != "constant":
            if "schedule" in self.model_fields_set:
                raise ValueError(f"optim.schedule: {self.name} needs none; remove it, or set it to constant")
            self.schedule = "constant"
            self.model_fields_set.discard("schedule")  # a contender may have another optimizer
        return self

    @property
    def schedule_free(self) -> bool:
        return self.name == "schedule_free_adamw"


BUDGETS = ("global_batch_size", "global_batch_tokens"), ("per_device_batch_size", "per_device_tokens")


class TrainingSection(Section):
    max_train_steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="optimizer steps to train")
    num_train_epochs: int | None = Field(
        None, ge=1, le=1_000_000, description="instead of max_train_steps: passes over the data"
    )
    global_batch_size: int | None = Field(
        32, ge=1, le=MOST_EXAMPLES, description="examples per optimizer step, over all devices"
    )
    global_batch_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_BATCH_TOKENS,
        description="instead of global_batch_size: mean tokens per optimizer step, source and target",
    )
    batch_warmup: float | None = Field(None, gt=0, le=1, description="share of the run until steps are of full size")
    per_device_batch_size: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)] | Literal["auto"] | None = Field(
        32, description="largest micro-batch, halved when memory runs out; auto: a device's whole share of the step"
    )
    per_device_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_BATCH_TOKENS,
        description="instead of per_device_batch_size: most tokens of a micro-batch with padding, source and target",
    )
    mixed_precision: Literal["no", "bf16", "auto"] = Field(
        "no", description="bf16 computes matrix products in bfloat16; auto: where the device does so itself, else no"
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="put several texts in one row, kept apart; auto: if the result stays the same; on: error if not",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations instead of storing them")
    compile: bool = Field(False, description="compile the layers with torch.compile; for GPUs, no gain on a CPU")
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        "epoch", description="when to evaluate on the validation split"
    )
    eval_steps: int = Field(
        100, ge=1, le=MOST_STEPS, description="optimizer steps between evaluations, with eval_strategy=steps"
    )
    per_device_eval_batch_size: int = Field(64, ge=1, le=MOST_EXAMPLES, description="examples per evaluation batch")
    logging_steps: int = Field(
        10, ge=1, le=MOST_STEPS, description="optimizer steps between training lines in metrics.jsonl"
    )
    save_steps: int | None = Field(
        500,
        ge=1,
        le=MOST_STEPS,
        description="optimizer steps between checkpoints, with one at the end; null: none before the end",
    )
    save_total_limit: int = Field(
        1, ge=1, le=MOST_STEPS, description="latest checkpoints to keep, in addition to the best one"
    )
    metric_for_best_model: str | None = Field(
        None, description="metric that selects the checkpoint for model/, e.g. eval_loss; the last one when not set"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="stop after this many evaluations without a better metric_for_best_model"
    )
    average_last: int | None = Field(
        None, ge=2, le=1000, description="make model/ the mean of this many checkpoints: the last, then at save_steps"
    )
    dataloader_num_workers: int | None = Field(
        None, ge=0, le=MOST_WORKERS, description="processes that prepare batches; not set: 2 on a GPU, 0 on a CPU"
    )
    num_processes: int | None = Field(
        None, ge=1, le=100_000, description="required number of processes; any other number is an error"
    )
    ddp_timeout: int = Field(
        1800, ge=1, le=30 * 86_400, description="seconds a process waits for the others before the run fails"
    )

    @model_validator(mode="after")
    def _one_length(self):
        if (self.max_train_steps is None) == (self.num_train_epochs is None):
            raise ValueError("give exactly one of training.max_train_steps and training.num_train_epochs")
        if self.metric_for_best_model and self.eval_strategy == "no":
            raise ValueError("training.metric_for_best_model needs evaluations; set training.eval_strategy=epoch")
        if self.early_stopping_patience and not self.metric_for_best_model:
            raise ValueError("training.early_stopping_patience needs training.metric_for_best_model, e.g. eval_loss")
        if self.average_last and (self.metric_for_best_model or self.save_steps is None):
            raise ValueError(
                "training.average_last averages the last checkpoints: set training.save_steps and remove "
                "training.metric_for_best_model"
            )
        return self

    @model_validator(mode="after")
    def _one_budget(self):
        for rows, tokens in BUDGETS:
            if getattr(self, tokens) is not None and rows not in self.model_fields_set:
                setattr(self, rows, None)
            if (getattr(self, rows) is None) == (getattr(self, tokens) is None):
                raise ValueError(f"give exactly one of training.{rows} and training.{tokens}; set the other to null")
        return self
