"""The settings of a run: one strict schema, read from YAML and `key.sub=value` words. A misspelt key is an error."""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from decero.errors import UserError, did_you_mean
from decero.training.devices import Device, find_device

C = TypeVar("C", bound="RunConfig")


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


OPTIONS = {  # name -> what stands for its value, what it does
    "--dry-run": ("", "forecast the run and write nothing"),
    "--resume": ("", "go on from the last checkpoint"),
    "--budget": ("TIME", "choose shape, batch, steps and schedule that fit in it: 90s, 30m, 2h, 1d"),
    "--device": ("NAME", "with --dry-run: forecast for this accelerator instead of this machine"),
}


@dataclass
class Call:
    """How a run was started, which is no part of what it is: equal settings are equal however they were called.

    given: keys of the command line. notes: lines that go before the settings where they are written down.
    """

    dry_run: bool = False
    resume: bool = False
    budget: str | None = None
    device: Device | None = None
    given: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    began: float = field(default_factory=time.perf_counter)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call)


class RunConfig(Section):
    """What every recipe's settings share. A recipe subclasses it and names its own sections and options."""

    options: ClassVar[tuple[str, ...]] = ("--dry-run", "--resume")

    output: str = Field(description="folder of the run")
    seed: int = Field(0, ge=0, description="decides weights, order, masks, dropout and label budgets")
    tracking: TrackingSection = TrackingSection()
    hub: HubSection = HubSection()

    _call: Call = PrivateAttr(default_factory=Call)

    @property
    def call(self) -> Call:
        return self._call

    @property
    def dry_run(self) -> bool:
        return self._call.dry_run

    @property
    def resume(self) -> bool:
        """Asked for; or the launcher started the processes anew after one of them failed (`--max_restarts`)."""
        return self._call.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    @classmethod
    def from_cli(cls: type[C], argv: Sequence[str] | None = None) -> C:
        """CONFIG.yaml [key.sub=value ...] [options] [--help]. Raises UserError for what it cannot read."""
        argv = list(sys.argv[1:] if argv is None else argv)
        if "-h" in argv or "--help" in argv:
            print(_help(cls))
            raise SystemExit(0)
        words, flags = _take_options(cls.options, argv)
        paths = [w for w in words if "=" not in w]
        if len(paths) != 1:
            raise UserError(
                f"give one configuration file, then key.sub=value words; got {' '.join(paths) or 'no file'}"
            )
        changes = [w for w in words if "=" in w]
        config = cls.load(paths[0], changes)
        config._call = Call(
            dry_run="--dry-run" in flags, resume="--resume" in flags, budget=flags.get("--budget"),
            device=find_device(flags["--device"]) if "--device" in flags else None,
            given=frozenset(key for word in changes for key in _keys(word)),
        )  # fmt: skip
        _check_call(config._call)
        return config

    @classmethod
    def load(cls: type[C], path: str, overrides: Sequence[str] = ()) -> C:
        """Read a YAML file, lay `key.sub=value` words over it, check everything."""
        settings, changed = read_yaml(path), set()
        for word in overrides:
            key, _, value = word.partition("=")
            _put(settings, key.split("."), _yaml_value(word, value), word)
            changed.add(key)
        return cls.parse(settings, path, changed)

    @classmethod
    def parse(cls: type[C], settings: dict[str, Any], where: str, changed: set[str] = frozenset()) -> C:  # type: ignore[assignment]
        """Check settings that are already a mapping; `changed` names the keys that came from the command line."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise UserError(_explain(cls, error, where, changed)) from None

    def to_yaml(self) -> str:
        """Every setting as resolved, defaults included."""
        stream = StringIO()
        yaml = YAML()
        yaml.dump(self.model_dump(), stream)
        return "".join(f"# {note}\n" for note in self._call.notes) + stream.getvalue()


def _take_options(known: Sequence[str], argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Words without the options, and the options with their values, which may stand behind a space or an =."""
    words, flags, rest = [], {}, iter(argv)
    for word in rest:
        if not word.startswith("-"):
            words.append(word)
            continue
        name, _, value = word.partition("=")
        if name not in known:
            near = did_you_mean(name, (*known, "--help")) or "; settings are given as key.sub=value"
            raise UserError(f"{name} is no option{near if name not in OPTIONS else ' of this recipe'}  (all: --help)")
        stands_for, _ = OPTIONS[name]
        value = value or (next(rest, "") if stands_for else "")
        if bool(value) != bool(stands_for):
            raise UserError(f"{name} {f'needs a {stands_for}' if stands_for else 'takes no value'}  (all: --help)")
        flags[name] = value
    return words, flags


def _keys(word: str) -> Iterator[str]:
    """The settings that a word of the command line gives: several when its value is a mapping."""
    key, _, text = word.partition("=")
    below = [(key, _yaml_value(word, text))]
    while below:
        key, value = below.pop()
        yield key
        below += [(f"{key}.{name}", item) for name, item in value.items()] if isinstance(value, dict) else []


def _check_call(call: Call) -> None:
    """Refuse options that contradict each other or the settings beside them."""
    if call.device and not call.dry_run:
        raise UserError("--device: a run takes the machine it is on; add --dry-run to forecast for another")
    if call.budget is None:
        return
    seconds_of(call.budget)
    if call.device:
        raise UserError("--budget is measured where it is spent; leave --device out")
    for name in ("training.max_train_steps", "training.num_train_epochs"):
        if name in call.given:
            raise UserError(f"--budget decides how long to train, and so does {name}; leave one of the two out")


def seconds_of(text: str) -> float:
    """90s, 30m, 1.5h or 1d as seconds. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    if not found or float(found[1]) == 0:
        raise UserError(f"--budget: {text} is no time; write a number and s, m, h or d, as in 30m")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML 1.2 mapping (1e-3 is a number, no is a word). Raises UserError naming the file and line."""
    path = Path(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{did_you_mean(path.name, beside, f'{path.parent}/')}")
    try:
        settings = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: is no YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no settings; write key: value lines")
    return settings


def _yaml_value(word: str, text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        raise UserError(f"command line: {word} is no YAML value; quote it as a shell word") from None


def _put(settings: dict[str, Any], keys: list[str], value: Any, word: str) -> None:
    for key in keys[:-1]:
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise UserError(f"command line: {word}: {key} holds a value, not further settings")
    settings[keys[-1]] = value


def _explain(cls: type[BaseModel], error: ValidationError, where: str, changed: set[str]) -> str:
    """The first mistake as one line: which file, which key, the nearest valid key, what was expected."""
    first, more = error.errors(include_url=False)[0], error.error_count() - 1
    keys = [str(k) for k in first["loc"]]
    parent: type[BaseModel] | None = cls
    path: list[str] = []
    for key in keys:
        field = parent.model_fields.get(key) if parent else None
        if parent and field is None and first["type"] != "extra_forbidden":
            break  # what follows names a branch of a union, not a setting
        path.append(key)
        parent = _section(field.annotation) if field else parent
    name = ".".join(path)
    valid = list(_parent(cls, keys).model_fields)
    where = "command line" if name in changed else where
    tail = f"  (and {more} more; all settings: --help)" if more else "  (all settings: --help)"
    if first["type"] == "extra_forbidden":
        prefix = "".join(f"{k}." for k in keys[:-1])
        near = (
            did_you_mean(keys[-1], valid, prefix)
            or f"; settings of {prefix.rstrip('.') or 'a run'}: {', '.join(valid)}"
        )
        return f"{where}: {name} is no setting{near}{tail}"
    if first["type"] == "missing":
        return f"{where}: {name} is missing; add it{tail}"
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}{tail}"
    got = first["input"]
    said = first["msg"][0].lower() + first["msg"][1:]
    near = did_you_mean(str(got), _choices(cls, keys)) if isinstance(got, str) else ""
    return f"{where}: {name} is {got!r}, but {said}{near}{tail}"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, be it optional or the value of a mapping."""
    for part in (annotation, *(a for arg in get_args(annotation) for a in (arg, *get_args(arg)))):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _parent(cls: type[BaseModel], keys: list[str]) -> type[BaseModel]:
    parent = cls
    for key in keys[:-1]:
        field = parent.model_fields.get(key)
        parent = (_section(field.annotation) if field else None) or parent
    return parent


def _choices(cls: type[BaseModel], keys: list[str]) -> list[str]:
    field = _parent(cls, [*keys[:2], ""][: len(keys)]).model_fields.get(keys[min(len(keys), 2) - 1])
    return [
        a for arg in (get_args(field.annotation) if field else ()) for a in (arg, *get_args(arg)) if isinstance(a, str)
    ]


def _help(cls: type[BaseModel], prefix: str = "") -> str:
    """Every setting with its type, default and meaning."""
    lines = []
    if not prefix:
        shown = {name: " ".join([name, OPTIONS[name][0]]).strip() for name in cls.options}  # type: ignore[attr-defined]
        lines = [
            f"{Path(sys.argv[0]).name} CONFIG.yaml [key.sub=value ...] {' '.join(f'[{s}]' for s in shown.values())}"
        ]
        lines += ["", *(f"  {text:<16}{OPTIONS[name][1]}" for name, text in shown.items()), ""]
    for name, each in cls.model_fields.items():
        section = _section(each.annotation)
        if section is not None:
            is_map = not (isinstance(each.annotation, type) or type(None) in get_args(each.annotation))
            lines.append(_help(section, f"{prefix}{name}.{'NAME.' if is_map else ''}"))
            continue
        named = isinstance(each.annotation, type) and not get_args(each.annotation)
        kind = each.annotation.__name__ if named else str(each.annotation).replace("typing.", "")  # type: ignore[union-attr]
        default = "required" if each.is_required() else f"= {each.default!r}"
        lines.append(f"  {prefix}{name}  ({kind}) {default}\n      {each.description or ''}")
    return "\n".join(lines)


def seed_sequence(*parts: int) -> int:
    """A 63-bit seed from several numbers, for libraries that take one."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)
