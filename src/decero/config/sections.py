"""The sections that recipes share: model, tokenizer, data, optimizer, training, tracking, hub."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of the settings: unknown keys and wrong types are refused, never guessed."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True)


class ModelSection(Section):
    config: str | None = Field(None, description="YAML preset of an architecture: random weights (configs/model/)")
    name_or_path: str | None = Field(None, description="checkpoint: hub name, folder, or package:NAME/FOLDER")
    overrides: dict[str, Any] = Field({}, description="fields of the model's configuration to change")
    revision: str | None = Field(None, description="commit of a hub checkpoint; required for remote code")
    trust_remote_code: bool = Field(False, description="run the code that a checkpoint brings; needs model.revision")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = (
        Field(None, description="attention backend; the best when not set, or where the device cannot serve it")
    )

    @model_validator(mode="after")
    def _one_source(self):
        if (self.config is None) == (self.name_or_path is None):
            raise ValueError("give exactly one of model.config (random weights) and model.name_or_path (a checkpoint)")
        if self.trust_remote_code and self.revision is None:
            raise ValueError(
                "model.trust_remote_code runs code of others; pin what you read with model.revision=COMMIT"
            )
        return self


class TokenizerSection(Section):
    name_or_path: str | None = Field(
        None, description="tokenizer: hub name, folder or package:NAME/FOLDER; the model's own when not set"
    )


class SourceSection(Section):
    """Where rows come from."""

    name: str | None = Field(None, description="bbc_news (embedded), a hub data set, or a folder in its layout")
    files: dict[str, str | list[str]] | None = Field(
        None,
        description="instead of a name: train, validation, test -> paths, globs, folders (txt jsonl csv tsv parquet)",
    )
    config_name: str | None = Field(None, description="configuration of a hub data set")
    revision: str | None = Field(None, description="commit of a hub data set")
    streaming: bool = Field(False, description="read a hub data set as it arrives instead of downloading it whole")
    max_rows: int | None = Field(None, ge=1, description="keep at most the first rows of each split")
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, description="carved from train when there is no validation split"
    )
    test_fraction: float = Field(0.0, ge=0, lt=1, description="carved from train when there is no test split")

    @model_validator(mode="after")
    def _one_source(self):
        if (self.name is None) == (self.files is None):
            raise ValueError("give exactly one of data.name (a data set) and data.files (split -> paths)")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("data.validation_fraction and data.test_fraction leave nothing to train on")
        return self

    @model_validator(mode="after")
    def _what_streams(self):
        if self.streaming and self.files is not None:
            raise ValueError("data.streaming is for data sets by name; files are memory-mapped already, leave it out")
        return self

    def source(self) -> dict[str, Any]:
        """The arguments of `load_corpus`."""
        return {k: v for k, v in self.model_dump().items() if k in CORPUS_ARGUMENTS}


class DataSection(SourceSection):
    sample_by: Literal["line", "paragraph", "document"] = Field("paragraph", description="one row of a txt file")
    text_column: str = Field("text", description="column of the text")
    max_length: int = Field(128, ge=4, description="tokens a row, special ones included")
    num_proc: int | None = Field(None, ge=1, description="processes that tokenize; chosen by corpus size when not set")


CORPUS_ARGUMENTS = (
    "name", "files", "config_name", "revision", "streaming", "buffer_size", "sample_by", "max_rows", "text_column",
    "validation_fraction", "test_fraction",
)  # fmt: skip


class LabelledData(DataSection):
    text_pair_column: str | None = Field(None, description="column of a second text, for pairs")
    label_column: str | list[str] = Field(
        "label", description="column of the label, of lists of labels, or several 0/1 columns"
    )
    max_train_rows: int | None = Field(
        None, ge=1, description="label budget: train on so many examples, chosen by the seed"
    )


class OptimSection(Section):
    name: Literal["adamw", "adam", "sgd", "rmsprop", "adafactor"] = Field("adamw", description="optimizer")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="on matrices; never on biases and norms")
    arguments: dict[str, Any] = Field(
        {}, description="further arguments of the optimizer's class, e.g. {betas: [0.9, 0.98]}"
    )
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = Field("linear", description="after the warm-up")
    num_warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the global gradient norm; null does not")


BUDGETS = ("global_batch_size", "global_batch_tokens"), ("per_device_batch_size", "per_device_tokens")


class TrainingSection(Section):
    max_train_steps: int | None = Field(None, ge=1, description="optimizer steps")
    num_train_epochs: int | None = Field(None, ge=1, description="passes over the data, instead of steps")
    global_batch_size: int | None = Field(
        32, ge=1, description="examples an optimizer step, whatever the number of devices"
    )
    global_batch_tokens: int | None = Field(
        None, ge=1, description="instead of examples: tokens an optimizer step, read and written, on average"
    )
    per_device_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        32, description="largest micro-batch, halved when memory runs out; auto: all that a device has to do in a step"
    )
    per_device_tokens: int | None = Field(
        None,
        ge=1,
        description="instead of examples: tokens of the largest micro-batch, read and written, at most; "
        "where rows are padded, the padding too",
    )
    mixed_precision: Literal["no", "bf16"] = Field("no", description="bf16 computes matrix products in bfloat16")
    packing: Literal["auto", "on", "off"] = Field(
        "auto", description="several texts a row, kept apart; auto: where it is proven to change nothing, on: or refuse"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations instead of storing them")
    compile: bool = Field(
        False, description="compile the model's layers with torch.compile; on a CPU that gains nothing"
    )
    eval_strategy: Literal["no", "steps", "epoch"] = Field("epoch", description="when to evaluate on validation")
    eval_steps: int = Field(100, ge=1, description="optimizer steps between evaluations, with eval_strategy=steps")
    per_device_eval_batch_size: int = Field(64, ge=1, description="examples an evaluation batch")
    logging_steps: int = Field(10, ge=1, description="optimizer steps between lines of metrics.jsonl")
    save_steps: int | None = Field(
        500, ge=1, description="optimizer steps between checkpoints, and one at the end; null: none"
    )
    save_total_limit: int = Field(1, ge=1, description="checkpoints to keep besides the best")
    metric_for_best_model: str | None = Field(
        None, description="e.g. eval_loss: model/ is the best checkpoint, not the last"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better metric_for_best_model"
    )
    average_last: int | None = Field(
        None, ge=2, description="model/ is the mean of the last so many checkpoints (save_steps apart)"
    )
    dataloader_num_workers: int = Field(0, ge=0, description="processes that collate batches")
    num_processes: int | None = Field(None, ge=1, description="refuse to run on another number of processes")
    ddp_timeout: int = Field(
        1800, ge=1, description="seconds that a process waits for the others before it gives the run up"
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
                "training.average_last takes checkpoints as they come: it needs training.save_steps and no "
                "training.metric_for_best_model"
            )
        return self

    @model_validator(mode="after")
    def _one_budget(self):
        for rows, tokens in BUDGETS:
            if getattr(self, tokens) is not None and rows not in self.model_fields_set:
                setattr(self, rows, None)
            if (getattr(self, rows) is None) == (getattr(self, tokens) is None):
                raise ValueError(f"give exactly one of training.{rows} and training.{tokens}, and the other as null")
        return self


class TrackingSection(Section):
    trackers: list[str] | Literal["auto"] = Field(
        "auto", description="accelerate's trackers; auto: tensorboard when installed"
    )
    project_name: str = Field("decero", description="project under which trackers file the run")


class HubSection(Section):
    repo_id: str | None = Field(None, description="push model/ to this hub repository at the end of the run")
    private: bool = Field(True, description="whether a repository that is made for it is private")
